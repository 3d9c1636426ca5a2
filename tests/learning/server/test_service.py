"""The loop around a server: a full disk is told and the run goes on; the last checkpoint is at the broker meanwhile."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from har_edge.errors import ConfigError
from har_edge.learning import run_service
from har_edge.learning.known_run import KnownRun, look_for_run, refuse_second
from har_edge.learning.published_files import PublishedFiles
from har_edge.learning.server.checkpoints import Checkpoint
from har_edge.learning.server.held_out import EvaluationThread
from har_edge.learning.server.service import TrainingService, run_training
from har_edge.mqtt.bus import Session
from har_edge.protocol.events import TrainingEvent, decode
from har_edge.protocol.topics import TrainingTopics
from har_edge.protocol.training import CheckpointNote, RunState, TrainingProgress, encode_progress
from har_edge.runtime.stop import Stop
from tests.learning.training_rig import TOPICS, Fleet, make_fleet


def serve(fleet: Fleet, path: Path, lines: list[str], shown: list[TrainingProgress]) -> None:
    """Run the server of a fleet to its end by the real loop; its workers take a turn before each step."""
    evaluation = EvaluationThread(lambda weights: (0.5, 1.0), 10)
    files = PublishedFiles(TrainingTopics("har", "har"), lambda sha256: served.content(sha256) or b"")
    served = TrainingService(fleet.server_bus, fleet.server, files, evaluation, path, lines.append, shown.append)
    step = served.step

    def turn() -> None:
        fleet.now = time.monotonic()
        for name, node in fleet.nodes.items():
            node.free_at = 0.0
            fleet._turn_node(name, node)
        step()

    served.step = turn  # type: ignore[method-assign]
    run_training(served, fleet.server, Stop())


def test_a_full_disk_is_told_once_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(run_service, "store_checkpoint", full)
    fleet, lines, shown = make_fleet(epochs=2, checkpoint_s=0.0), list[str](), list[TrainingProgress]()
    seen = fleet.broker.connect(Session("seen"))
    seen.subscribe([TOPICS.training("r", "checkpoint")])
    serve(fleet, tmp_path / "r.checkpoint", lines, shown)
    assert fleet.server.state is RunState.FINISHED and shown[-1].accuracy == 0.5
    told = [line for line in lines if "No space left on device; the run goes on without it" in line]
    assert len(told) == 1 and not (tmp_path / "r.checkpoint").exists()
    notes = [decode(one, TOPICS) for one in seen.poll(0)]
    messages = [one.message for one in notes if isinstance(one, TrainingEvent)]
    assert isinstance(messages[0], CheckpointNote) and messages[-1] is None  # a run that ended leaves none
    assert [line for line in lines if line.startswith("epoch 2: accuracy 0.5000")]


def test_a_checkpoint_is_written_as_a_whole(tmp_path: Path) -> None:
    import msgspec

    fleet = make_fleet(epochs=1)
    serve(fleet, tmp_path / "r.checkpoint", [], [])
    found = msgspec.msgpack.decode((tmp_path / "r.checkpoint").read_bytes(), type=Checkpoint)
    assert (found.epoch, found.total, found.settings) == (2, 340, fleet.settings.hash)
    assert [path.name for path in tmp_path.iterdir()] == ["r.checkpoint"]


def test_a_run_of_the_same_name_that_lives_is_found_and_one_that_died_is_not() -> None:
    fleet = make_fleet()
    look = fleet.broker.connect(Session("look"))
    fleet.server_bus.poll(0)
    progress = fleet.server.progress(1.7e9)
    topic = TOPICS.training("r", "progress")
    fleet.server_bus.publish(topic, encode_progress(progress), retain=True)
    fleet.server_bus.poll(0)
    now = iter(range(1000))
    assert look_for_run(look, TOPICS, "r", lambda: next(now) / 10) == KnownRun("", None, 1.7e9)  # may have died
    look.subscribe([topic])
    fleet.server_bus.publish(topic, encode_progress(progress))
    fleet.server_bus.poll(0)
    found = look_for_run(look, TOPICS, "r", lambda: next(now) / 10)
    assert found.alive == "one"
    with pytest.raises(ConfigError, match="a training 'r' is running already \\(by one\\)"):
        refuse_second(found, "r")
