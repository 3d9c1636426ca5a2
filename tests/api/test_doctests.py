"""What the docstrings of the public API and its page show is what happens."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import har_edge

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "python.md"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without recordings, on a machine without any."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)


@pytest.mark.parametrize("name", sorted({*har_edge._PUBLIC.values()} - {"har_edge.protocol.results"}))
def test_a_docstring_shows_what_happens(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), verbose=False)
    assert found.failed == 0 and found.attempted > 0


@pytest.mark.slow
def test_the_page_shows_what_happens() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.failed == 0 and found.attempted > 10
