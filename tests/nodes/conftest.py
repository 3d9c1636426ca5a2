"""Pipelines cut from the shipped models, and a small one whose stage is a plain function."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(scope="session")
def cut(tmp_path_factory):
    """Return a function that cuts a shipped model and returns its pipeline, once for the same cuts."""
    from har_edge.config.catalog import find_model
    from har_edge.nodes.cutting import prepare

    known = {}

    def prepared(model, *cuts):
        if (model, cuts) not in known:
            found = find_model(model)
            folder = tmp_path_factory.mktemp("slices")
            known[model, cuts] = prepare(found.path, found.entry.task, folder, stages=len(cuts) + 1, cuts=cuts)
        return known[model, cuts]

    return prepared
