"""Figures as people read them: a bar, a duration, a size."""

from __future__ import annotations

WIDTH = 24
_PARTS = " ▏▎▍▌▋▊▉█"


def bar(value: float, longest: float, width: int = WIDTH) -> str:
    """Return a bar as long as `value` is of `longest`, to an eighth of a character."""
    eighths = round(8 * width * min(1.0, value / longest)) if longest > 0 else 0
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_PARTS[rest] if rest else "")


def duration(seconds: float) -> str:
    """Return seconds with the unit that keeps three digits."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms"), (1.0, "s")):
        value = seconds * factor
        if value < 999.5 or unit == "s":
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    raise AssertionError


def size(count: int) -> str:
    """Return bytes in powers of a thousand."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
