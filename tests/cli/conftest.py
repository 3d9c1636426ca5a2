"""Let the tests of this room import their helper by its name; a fleet of processes on the Mosquitto of the test run."""

import sys
import tempfile
from pathlib import Path

import pytest

from har_edge.mqtt.broker.launcher import start_mosquitto
from har_edge.resources import find_folder

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(scope="session")
def slices(tmp_path_factory):
    """The shipped int8 model in three slices; sources enter in the first two, the third takes what both made."""
    from har_edge.config.catalog import find_model
    from har_edge.runtime.slicing import prepare

    found = find_model("int8")
    folder = tmp_path_factory.mktemp("slices")
    prepare(found.path, found.entry.task, folder, stages=3, cuts=[4, 9])
    return folder


@pytest.fixture
def fleet(slices, tmp_path, request):
    """Processes of one pipeline, in a folder without data; its broker is the one of the test run."""
    from tests.cli.fleet import Fleet

    with Fleet(slices, tmp_path, request.getfixturevalue("mosquitto").address) as fleet:
        yield fleet


@pytest.fixture
def own_broker(mosquitto):
    """A Mosquitto of this test alone; its database is where Mosquitto's own user may write, not in pytest's folder."""
    with tempfile.TemporaryDirectory(prefix="har-edge-test-") as folder:
        Path(folder).chmod(0o755)
        broker = start_mosquitto(find_folder("brokers") / "mosquitto.conf", Path(folder) / "broker")
        yield broker
        broker.stop()
