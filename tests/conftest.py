"""Fixtures that every room may use: the real recordings, a real Mosquitto, the embedded broker."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import har_edge
from har_edge.mqtt.broker.embedded import EmbeddedBroker, start_embedded
from har_edge.mqtt.broker.launcher import Mosquitto, find_mosquitto, start_mosquitto
from har_edge.resources import find_folder
from tests.lanes import Lanes

# Rooms whose tests emulate devices or bound how long something may take.
ALONE = ("faults", "emulation", "experiments")
# Fixtures that start processes, and markers, that make a test a slow one.
SLOW_FIXTURES, SLOW_MARKERS = {"fleet", "own_broker"}, ("alone", "training")
# A file of tests that all need TensorFlow says so in this line.
TRAINING = "\npytestmark = pytest.mark.training\n"
# Below which folder pytest puts those of its tests.
_TEMPROOT = "PYTEST_DEBUG_TEMPROOT"
_OWN_FOLDER = pytest.StashKey[Path]()


# However slow a busy machine is, what a test asserts stays so.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_configure(config: pytest.Config) -> None:
    """Give this run a folder of its own, and let its processes, workers too, compile each module once.

    In the folder that runs share, a second run of root closes to Mosquitto's user what the first one opened.
    """
    config.pluginmanager.register(Lanes())
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if config.option.basetemp is None and _TEMPROOT not in os.environ:
        os.environ[_TEMPROOT] = tempfile.mkdtemp(prefix="har-edge-tests-")
        config.stash[_OWN_FOLDER] = Path(os.environ[_TEMPROOT])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep that folder only where something failed."""
    folder = session.config.stash.get(_OWN_FOLDER, None)
    if folder is not None:
        del os.environ[_TEMPROOT]
        if exitstatus == pytest.ExitCode.OK:
            shutil.rmtree(folder, ignore_errors=True)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where no test that needs TensorFlow is wanted, do not import it: in each worker that takes seconds."""
    wanted = str(config.getoption("-m"))
    if collection_path.suffix != ".py" or not any(f"not {name}" in wanted for name in ("training", "slow")):
        return None
    return TRAINING in collection_path.read_text(encoding="utf-8") or None


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without HAR_EDGE_DATA the `dataset` tests cannot run; in CI nothing may be skipped for want of something.

    Tests of other brokers and of an emulated machine run where they are asked for alone (-m brokers, -m arm64).
    """
    root = Path(__file__).parent
    for item in items:
        if item.path.relative_to(root).parts[0] in ALONE or "_machine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.alone)
        if item.get_closest_marker("alone") and item.path.parent.name != "faults":
            item.add_marker(pytest.mark.xdist_group("emulation"))  # one bed's sweep sees another's dead owner
        slow = SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if slow or any(item.get_closest_marker(marker) for marker in SLOW_MARKERS):
            item.add_marker(pytest.mark.slow)
    for marker in ("arm64", "brokers"):
        if marker not in str(config.getoption("-m")):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(marker)])
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
    if os.environ.get("CI") == "true":
        if root.parent in Path(har_edge.__file__).resolve().parents:
            raise pytest.UsageError(f"CI tests what is installed, not {har_edge.__file__} of the tree (.ci/run)")
        missing = [name for name in ("tensorflow", "mqtt5") if importlib.util.find_spec(name) is None]
        missing += [tool for tool in ("openssl", "mosquitto_passwd") if shutil.which(tool) is None]
        if missing or find_mosquitto() is None:
            raise pytest.UsageError(f"CI needs Mosquitto, openssl and '.[test,training]'; missing: {missing}")
    if os.environ.get("HAR_EDGE_DATA"):
        return
    if os.environ.get("CI") == "true":
        raise pytest.UsageError("CI must set HAR_EDGE_DATA to the folder with the real recordings")
    without = pytest.mark.skip(reason="needs the real recordings: set HAR_EDGE_DATA")
    for item in items:
        if item.get_closest_marker("dataset"):
            item.add_marker(without)


@pytest.fixture(scope="session", autouse=True)
def _open_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the user that root's Mosquitto becomes into the folders of this test run."""
    folder = tmp_path_factory.getbasetemp()
    while os.geteuid() == 0 and folder != Path(tempfile.gettempdir()) and folder.stat().st_uid == 0:
        folder.chmod(folder.stat().st_mode | 0o755)
        folder = folder.parent


@pytest.fixture(scope="session")
def dataset() -> Path:
    """The folder with the real recordings."""
    return Path(os.environ["HAR_EDGE_DATA"])


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """A Mosquitto of this test run, with the configuration that har_edge ships."""
    if find_mosquitto() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs Mosquitto: apt-get install mosquitto")
        pytest.skip("Mosquitto is not installed: apt-get install mosquitto")
    directory = tmp_path_factory.mktemp("mosquitto")
    for parent in (directory, directory.parent, directory.parent.parent):
        parent.chmod(0o755)
    with start_mosquitto(find_folder("brokers") / "mosquitto.conf", directory) as broker:
        yield broker


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedBroker]:
    """The embedded broker of this test run."""
    broker = start_embedded()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def cut(tmp_path_factory):
    """Return a function that cuts a shipped model and returns its pipeline, once for the same cuts."""
    from har_edge.config.catalog import find_model
    from har_edge.runtime.slicing import prepare

    known = {}

    def prepared(model, *cuts):
        if (model, cuts) not in known:
            found = find_model(model)
            folder = tmp_path_factory.mktemp("slices")
            known[model, cuts] = prepare(found.path, found.entry.task, folder, stages=len(cuts) + 1, cuts=cuts)
        return known[model, cuts]

    return prepared
