"""A deployment in three stages on a Mosquitto of its own, under load, to be hurt by the tests of this room."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from har_edge.mqtt.broker.launcher import find_mosquitto

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory):
    """The int8 model in three slices, synthetic recordings of two streams, and what the whole model says of them."""
    from har_edge.experiments.reference import prepare_reference

    folder = tmp_path_factory.mktemp("faults")
    return prepare_reference("int8", folder, None, ("subject7", "subject8"), stages=3, hop=25, name="faults")


@pytest.fixture(scope="session")
def expected(reference):
    """What the whole model answers to the windows of one round."""
    from tests.faults.rig import WINDOWS

    return reference.answers(reference.windows(WINDOWS))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the user of Mosquitto may enter; pytest closes those of root to others when it starts anew."""
    with tempfile.TemporaryDirectory(prefix="har-edge-faults-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def environment(folder: Path) -> Iterator[object]:
    """A Mosquitto that may be killed."""
    from har_edge.experiments.environment import local_environment

    if find_mosquitto() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs Mosquitto: apt-get install mosquitto")
        pytest.skip("Mosquitto is not installed: apt-get install mosquitto")
    with local_environment(folder) as environment:
        yield environment
