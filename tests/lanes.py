"""In which order tests run, so that those that wait and those that compute share the processors."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")


class Lanes:
    """Orders tests for the processes of `pytest -n N --dist worksteal`, which get equal shares of the list, in order.

    Slow tests wait for most of their time. Three quarters of the processes begin with them, the others compute from
    the start; the quick tests that are left at the end go to whoever is done.
    """

    @pytest.hookimpl(trylast=True)  # after -m has selected
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        if workers > 1:
            slow = [item for item in items if item.get_closest_marker("slow")]
            items[:] = deal(slow, [item for item in items if not item.get_closest_marker("slow")], workers)


def deal(slow: Sequence[T], quick: Sequence[T], workers: int) -> list[T]:
    """Return all of them as `workers` shares, one after the other: the slow ones first in three quarters of these."""
    size, computing = -(-(len(slow) + len(quick)) // workers), workers // 4
    rest, dealt = iter(quick), list[T]()
    for worker in range(workers):
        share = slow[worker - computing :: workers - computing] if worker >= computing else []
        dealt += [*share, *itertools.islice(rest, max(0, size - len(share)))]
    return dealt + list(rest)
