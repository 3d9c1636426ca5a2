"""Draw a figure as a bar. har_edge/units.py writes durations and sizes."""

from __future__ import annotations

WIDTH = 24
# A smaller share of values beyond the range of an input is not worth a line; --json has it.
TOLD_SHARE = 0.01
_PARTS = " ▏▎▍▌▋▊▉█"


def bar(value: float, longest: float, width: int = WIDTH) -> str:
    """Return a bar of the length `value` / `longest`, to an eighth of a character."""
    eighths = round(8 * width * min(1.0, value / longest)) if longest > 0 else 0
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_PARTS[rest] if rest else "")
