"""Texts from the network, made fit for a terminal: what others say must not move its cursor or change its title."""

from __future__ import annotations

from collections.abc import Collection

MAX_TEXT = 400


def escape(text: str, keep: str = "") -> str:
    """Return a text in which letters that do not print, but for those to keep, stand as Python writes them."""
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape", "replace").decode("ascii")
        for letter in text
    )


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """Return printable characters only, and at most `limit` of them."""
    clean = escape(text[:limit])
    return clean[: limit - 1] + "…" if len(clean) > limit or len(text) > limit else clean


def listed(names: Collection[str], most: int = 8) -> str:
    """Return names in their order, separated by commas: the first ones, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more


# Stands in the name of pictures that somebody put into a folder: nothing says whether they are real.
UNKNOWN_ORIGIN = "nothing is known of their origin"


def name_pictures(folder: str) -> str:
    """Return the name of the pictures of a folder.

    >>> name_pictures("bottles")
    'pictures of bottles (nothing is known of their origin)'
    """
    return f"pictures of {folder} ({UNKNOWN_ORIGIN})"


def with_origin(name: str, *, real: bool) -> str:
    """Return the name of samples, with whether they are real unless it says itself that nobody knows.

    >>> with_origin("mnist", real=True), with_origin(name_pictures("bottles"), real=False)
    ('mnist (real)', 'pictures of bottles (nothing is known of their origin)')
    """
    return name if UNKNOWN_ORIGIN in name else f"{name} ({origin_word(name, real=real)})"


def origin_word(name: str, *, real: bool) -> str:
    """Return whether samples of this name are real, synthetic, or of unknown origin, in words."""
    if UNKNOWN_ORIGIN in name:
        return "of unknown origin"
    return "real" if real else "synthetic"
