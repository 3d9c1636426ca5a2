"""What comes over the network is shown without moving the cursor."""

from __future__ import annotations

import pytest

from har_edge.protocol.text import escape, listed, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü", "plain ü"),
        ("a\x1b[31mb\n", r"a\x1b[31mb\n"),
        ("x" * 500, "x" * 399 + "…"),
        ("\u202egnp", r"\u202egnp"),
    ],
)
def test_text_from_the_network_is_bounded_and_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_surrogate_cannot_break_the_escape() -> None:
    assert printable("\ud800") == r"\ud800"


def test_lines_may_be_kept() -> None:
    assert escape("a\n\tb\x07\x9b31m", keep="\n\t") == "a\n\tb\\x07\\x9b31m"


def test_the_first_of_many_names_are_listed_and_the_others_counted() -> None:
    assert (listed([]), listed(("b", "a")), listed(list("abcd"), most=2)) == ("", "b, a", "a, b and 2 more")
