"""The order of tests for several processes: none is left out, and waiting begins at once."""

from __future__ import annotations

import pytest

from tests.lanes import deal


@pytest.mark.parametrize("workers", [2, 3, 4, 6, 16])
@pytest.mark.parametrize(("slow", "quick"), [(0, 50), (50, 0), (7, 100), (90, 20), (1, 1)])
def test_each_test_is_dealt_once(slow: int, quick: int, workers: int) -> None:
    dealt = deal([f"s{number}" for number in range(slow)], [f"q{number}" for number in range(quick)], workers)
    assert sorted(dealt) == sorted([*(f"s{number}" for number in range(slow)), *(f"q{n}" for n in range(quick))])


def test_one_of_four_computes_and_the_others_begin_with_what_waits() -> None:
    assert "".join(deal("ABCDEF", "abcdefghij", 4)) == "abcdADefBEghCFij"
