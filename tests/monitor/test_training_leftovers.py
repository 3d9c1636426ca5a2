"""What trainings leave at the broker: named when they have died, cleared on demand, and nothing of a live one."""

from __future__ import annotations

import time

import pytest

from har_edge.monitor import training_leftovers
from har_edge.monitor.broker_checks import Verdict
from har_edge.monitor.leftovers import Retained
from har_edge.monitor.training_leftovers import clear_trainings, read_trainings, report_trainings
from har_edge.mqtt.bus import Session
from har_edge.mqtt.memory import MemoryBroker, MemoryBus
from har_edge.protocol.status import NodeStatus, State
from har_edge.protocol.topics import TrainingTopics
from har_edge.protocol.training import (
    BlockFile,
    CheckpointNote,
    RunState,
    TrainingFile,
    TrainingJob,
    TrainingProgress,
    encode_progress,
    encode_training,
)
from har_edge.protocol.training_results import ModelNote
from har_edge.runtime.artifacts import encode_chunks
from tests.runtime.deployed import TOPICS

NOTHING = Retained({}, None)
COMMAND = "har-edge doctor --clear"
FILES = TrainingTopics(TOPICS.base, TOPICS.pipeline)


class Trainer:
    """A trainer that retains what a real one does."""

    def __init__(self, broker: MemoryBroker, run: str) -> None:
        self.bus: MemoryBus = broker.connect(Session(f"trainer-{run}", clean_start=True))
        self.run = run

    def retain(self, level: str, payload: bytes) -> None:
        self.bus.publish(TOPICS.training(self.run, level), payload, retain=True)
        self.bus.poll(0)

    def put(self, content: bytes) -> TrainingFile:
        chunks = encode_chunks(FILES, content)
        for one in chunks:
            self.bus.publish(one.topic, one.payload, retain=True)
        self.bus.poll(0)
        return TrainingFile(chunks[-1].topic.rsplit("/", 1)[1], len(content))

    def progress(self, state: RunState) -> None:
        progress = TrainingProgress(run=self.run, author="one", state=state, time=time.time())
        self.retain("progress", encode_progress(progress))

    def begin(self, content: bytes, state: RunState = RunState.RUNNING) -> None:
        file = self.put(content)
        job = TrainingJob(
            run=self.run, author="one", started=1.7e9, graph=file, spec=file, batch=4, parameters=1, shape=(1,),
            blocks=(BlockFile(file.sha256, file.size, 1),),
        )  # fmt: skip
        self.retain("job", encode_training(job))
        self.progress(state)

    def checkpoint(self, content: bytes) -> None:
        note = CheckpointNote(run=self.run, author="one", file=self.put(content), settings="c" * 64, round=1, epoch=1)
        self.retain("checkpoint", encode_training(note))

    def model(self, content: bytes) -> None:
        file = self.put(content)
        note = ModelNote(
            run=self.run, author="one", sha256=file.sha256, size=file.size, replaces=("f" * 64,), time=1.7e9
        )
        self.retain("model", encode_training(note))


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    monkeypatch.setattr(training_leftovers, "QUIET_S", 0.05)
    monkeypatch.setattr(training_leftovers, "TRAINING_LISTEN_S", 0.3)
    return MemoryBroker()


def retained(broker: MemoryBroker) -> set[str]:
    bus = broker.connect(Session("see", clean_start=True))
    bus.subscribe(["#"])
    found = {one.topic.removeprefix(TOPICS.prefix) for one in bus.poll(0) if one.retained}
    bus.close(forget=True)
    return found


def test_what_a_killed_training_left_is_named_and_cleared(broker: MemoryBroker) -> None:
    trainer = Trainer(broker, "night")
    trainer.begin(b"graph")
    trainer.checkpoint(b"weights")
    found = read_trainings(broker.connect, TOPICS, NOTHING)
    (finding,) = report_trainings("leftovers", found, COMMAND)
    assert finding.verdict is Verdict.NOTE and COMMAND in (finding.remedy or "")
    assert finding.said == "trainings that were killed: night; 2 files of trainings that have gone (12 B)"
    lines = list(clear_trainings(broker.connect, TOPICS, found))
    assert lines[0] == "training night (killed): checkpoint, job, progress removed"
    assert retained(broker) == set()
    assert not read_trainings(broker.connect, TOPICS, NOTHING).found


def test_nothing_of_a_live_training_is_found(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, live = Trainer(broker, "dead"), Trainer(broker, "live")
    dead.begin(b"graph")
    dead.checkpoint(b"weights")
    live.begin(b"graph")  # the same file as the dead one's
    live.checkpoint(b"others")
    live.put(b"a checkpoint that its note will name")
    before = retained(broker)
    connect = broker.connect

    def look(session: Session) -> MemoryBus:
        bus = connect(session)
        poll = bus.poll

        def polled(timeout_s: float, most_bytes: int | None = None):  # type: ignore[no-untyped-def]
            live.progress(RunState.RUNNING)
            return poll(timeout_s, most_bytes)

        monkeypatch.setattr(bus, "poll", polled)
        return bus

    found = read_trainings(look, TOPICS, NOTHING)
    assert [one.run for one in found.runs] == ["dead"] and len(found.files) == 1
    list(clear_trainings(connect, TOPICS, found))
    assert {one for one in before - retained(broker) if one.startswith("train/")} == {
        "train/dead/job", "train/dead/progress", "train/dead/checkpoint"
    }  # fmt: skip
    assert all(f"train/live/{level}" in retained(broker) for level in ("job", "progress", "checkpoint"))


def test_a_finished_training_is_no_reason_to_worry(broker: MemoryBroker) -> None:
    Trainer(broker, "done").progress(RunState.FINISHED)
    found = read_trainings(broker.connect, TOPICS, NOTHING)
    (finding,) = report_trainings("leftovers", found, COMMAND)
    assert finding.verdict is Verdict.OK and "trainings that have ended: done (finished)" in finding.said


def test_a_deployed_model_stays_while_a_coordinator_lives(broker: MemoryBroker) -> None:
    Trainer(broker, "done").model(b"model")
    coordinator = NodeStatus("coordinator", "coordinator", State.READY, "1", 1.0)
    assert not read_trainings(broker.connect, TOPICS, Retained({"coordinator": coordinator}, None)).found
    found = read_trainings(broker.connect, TOPICS, NOTHING)
    assert len(found.files) == 1
    list(clear_trainings(broker.connect, TOPICS, found))
    assert retained(broker) == set()
