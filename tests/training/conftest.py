"""Small recordings for the training tests."""

from __future__ import annotations

import pytest

from har_edge.data.description import StreamDescription, load_description
from har_edge.data.recording import Recording
from har_edge.data.synthetic import synthesize


@pytest.fixture(scope="session")
def description() -> StreamDescription:
    return load_description("mhealth")


@pytest.fixture(scope="session")
def recordings() -> list[Recording]:
    """Three synthetic people, nine seconds of each activity."""
    return synthesize(["subject1", "subject2", "subject3"], seconds_per_activity=9.0)
