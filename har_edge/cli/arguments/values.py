"""Read the values of options, each with bounds and an error that says what was expected."""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path

MAX_SUBJECTS = 10_000
# The limit of protocol/wire.py, which is not imported here because it needs NumPy; a test compares the two.
MAX_BATCH = 1024
# Counts are indices and array sizes further down, on 32-bit systems too.
MAX_COUNT = 2**31 - 1
MAX_SEED = 2**32 - 1
MAX_BYTES = 2**62
MAX_THREADS = 256
MAX_DIGITS = 30
# Slower than this, a window of a second takes hours.
MIN_SPEED, MAX_SPEED = 1e-4, 1e6


def subjects(text: str) -> list[str]:
    """Read `7,8`, `1-6` or names of streams; numbers stand for subject<N>."""
    names: list[str] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        first, dash, last = part.partition("-")
        if first.isdecimal() and (not dash or last.isdecimal()):
            if int(last or first) - int(first) >= MAX_SUBJECTS:
                raise argparse.ArgumentTypeError(f"{part!r} names more than {MAX_SUBJECTS} streams")
            names += [f"subject{number}" for number in range(int(first), int(last or first) + 1)]
        else:
            names.append(part)
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names no stream; expected numbers such as 7,8 or 1-6, or names")
    return names


def operator_indices(text: str) -> list[int]:
    """Read the operators to cut before, such as `4` or `4,9`."""
    try:
        indices = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of operator indices such as 4 or 4,9") from None
    if any(later <= earlier for earlier, later in pairwise(indices)):
        raise argparse.ArgumentTypeError(f"{text!r} came; expected operator indices that rise, each once, such as 4,9")
    return indices


def speed(text: str) -> float | None:
    """Read a speed: a factor of real time, or `max` for no limit."""
    if text == "max":
        return None
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not MIN_SPEED <= factor <= MAX_SPEED:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no speed; expected a factor from {MIN_SPEED:g} to {MAX_SPEED:.0f}, or max"
        )
    return factor


def seconds(text: str) -> float:
    """Read a time in seconds, above 0 and at most an hour."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} came; expected seconds above 0, and at most 3600")
    return value


def amount(text: str) -> float:
    """Read a finite number above 0."""
    return _between(text, math.inf, "a number above 0")


def probability(text: str) -> float:
    """Read a probability above 0 and below 1."""
    return _between(text, 1.0, "a number above 0 and below 1")


def _between(text: str, most: float, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < most:
        raise argparse.ArgumentTypeError(f"{text!r} came; expected {expected}")
    return value


def port(text: str) -> int:
    """Read a TCP port."""
    return _whole(text, 1, 65535, "1 to 65535", "is no port")


def host(text: str) -> str:
    """Read an address to listen on, one that name resolution can handle."""
    try:
        text.encode("idna")
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no host; expected an address or a name to listen on") from None
    return text


def writable_file(text: str) -> Path:
    """Read the path of a file to write; refuse at once a file that could not be written after a long run."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written; expected a file in a folder that exists")
    return path


def batch(text: str) -> int:
    """Read the number of windows that share a message."""
    return _whole(text, 1, MAX_BATCH, f"1 to {MAX_BATCH} windows a message")


def natural(text: str) -> int:
    """Read a whole number, 0 included."""
    return _whole(text, 0, MAX_COUNT, f"a whole number from 0 to {MAX_COUNT}")


def seed(text: str) -> int:
    """Read the seed of a random generator, 32 bits."""
    return _whole(text, 0, MAX_SEED, f"a whole number from 0 to {MAX_SEED}")


def positive(text: str) -> int:
    """Read a whole number above 0."""
    return _whole(text, 1, MAX_COUNT, f"a whole number above 0, and at most {MAX_COUNT}")


def threads(text: str) -> int:
    """Read the number of threads."""
    return _whole(text, 1, MAX_THREADS, f"1 to {MAX_THREADS} threads")


def size_bytes(text: str) -> int:
    """Read a size in bytes above 0."""
    return _whole(text, 1, MAX_BYTES, f"bytes above 0, and at most {MAX_BYTES}")


def _whole(text: str, least: int, most: int, expected: str, came: str = "came") -> int:
    """Return a whole number from `least` to `most`; a text longer than any bound is not converted."""
    number = int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else -1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} {came}; expected {expected}")
    return number
