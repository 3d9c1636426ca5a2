"""The examples in the docstrings of the numerics."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["masking.fixed_point", "optimizers.optimizers", "optimizers.schedules", "updates.compression"]
)
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"har_edge.learning.{name}"))
    assert (found.failed, found.attempted > 0) == (0, True)
