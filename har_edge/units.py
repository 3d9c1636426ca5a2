"""Figures as people read them, the same everywhere: a duration, a size, a rate. Bytes in powers of a thousand."""

from __future__ import annotations

import math

_TIMES = ((1e6, "µs"), (1e3, "ms"), (1.0, "s"))
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def duration(seconds: float) -> str:
    """Return seconds with the unit that keeps three digits: "1.23 ms"; a negative time keeps its sign.

    >>> duration(0.00123), duration(12.3), duration(250.0), duration(0.0)
    ('1.23 ms', '12.3 s', '250 s', '0 s')
    """
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if not seconds or not math.isfinite(seconds):
        return f"{seconds:g} s"
    for factor, unit in _TIMES:
        value = seconds * factor
        if value < 999.5 or unit == "s":
            return f"{value:.{_decimals(value)}f} {unit}"
    raise AssertionError


def size(count: float) -> str:
    """Return bytes in powers of a thousand, with one decimal: "12.3 kB"; whole bytes below a thousand.

    >>> size(999), size(1234), size(12_340_000), size(250e6)
    ('999 B', '1.2 kB', '12.3 MB', '250.0 MB')
    """
    for factor, unit in _SIZES:
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "window"), plural(2, "window")
    ('1 window', '2 windows')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def speed(bytes_per_s: float) -> str:
    """Return bytes a second: "11.8 MB/s"."""
    return f"{size(bytes_per_s)}/s"


def _decimals(value: float) -> int:
    """Return how many decimals leave three digits."""
    return 2 if value < 9.995 else 1 if value < 99.95 else 0


def ago(seconds: float) -> str:
    """Return how long ago something was, in the unit a person would use; what lies ahead, by another clock, is now.

    >>> ago(-3.0), ago(45.2), ago(600.0), ago(10_000.0), ago(300_000.0)
    ('0 s ago', '45 s ago', '10 min ago', '2.8 h ago', '3.5 days ago')
    """
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s ago"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.1f} h ago" if seconds < 172_800 else f"{seconds / 86_400:.1f} days ago"
