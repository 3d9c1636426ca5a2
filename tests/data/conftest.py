"""A small recording in the shape of mHealth, and a cache of its own for every test."""

import numpy as np
import pytest

from har_edge.data.description import load_description

ROWS = [(1, 300), (0, 40), (4, 500), (0, 10), (4, 260), (12, 90)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)


@pytest.fixture
def mhealth():
    return load_description("mhealth")


@pytest.fixture
def numbers():
    """Float32 [1200, 23] as a log can say them exactly, and the labels."""
    labels = np.concatenate([np.full(count, label) for label, count in ROWS])
    values = np.random.default_rng(5).normal(0, 30, (len(labels), 23)).astype(np.float32)
    return values, labels


@pytest.fixture
def log(numbers):
    """The bytes of that log."""
    values, labels = numbers
    lines = [
        "\t".join([*(repr(float(value)) for value in row), str(label)]) for row, label in zip(*numbers, strict=True)
    ]
    assert len(lines) == len(values) == len(labels)
    return ("\n".join(lines) + "\n").encode()
