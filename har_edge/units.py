"""Figures as people read them, alike everywhere: a duration, a size, a rate. Bytes in powers of a thousand."""

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
