"""A model that takes another's place: which one counts, how it is prepared, and what is said where it cannot be."""

from __future__ import annotations

import threading
import time

import pytest

from har_edge.config.catalog import find_model
from har_edge.config.task import Task
from har_edge.coordinator.model_replacement import (
    AGAIN_S,
    NOT_DEPLOYED,
    ModelReplacer,
    ModelWatch,
    check_replacement,
    choose_replacement,
)
from har_edge.errors import BrokerError, ConfigError, ModelError
from har_edge.mqtt.bus import Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.training import encode_training
from har_edge.protocol.training_results import ModelNote
from har_edge.tflite.model import read_model
from tests.runtime.deployed import TOPICS

OLD, NEW, NEWER = "a" * 64, "b" * 64, "c" * 64


def note(sha256: str = NEW, *replaces: str, time: float = 1.0, run: str = "r") -> ModelNote:
    return ModelNote(run=run, author="one", sha256=sha256, size=3, replaces=replaces or (OLD,), time=time)


def test_the_newest_model_that_replaces_the_running_one_counts() -> None:
    notes = [note(NEW), note(NEWER, OLD, NEW, time=2.0), note("d" * 64, "e" * 64, time=3.0)]
    assert choose_replacement(notes, OLD) == notes[1]
    assert choose_replacement(notes, NEW) == notes[1]
    assert choose_replacement(notes, NEWER) is None


def make(prepare, notes: dict[str, ModelNote]):  # type: ignore[no-untyped-def]
    watch = ModelWatch(MemoryBroker().connect, TOPICS, "watch")
    watch.notes.update(notes)
    said: list[str] = []
    return ModelReplacer(watch, OLD, prepare, said.append), said


def until(replacer, done) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 5
    while not done():
        assert time.monotonic() < deadline
        replacer.poll(0.0)
        time.sleep(0.005)


def test_a_model_is_prepared_in_a_thread_and_is_ready_then() -> None:
    go = threading.Event()

    def prepare(one: ModelNote) -> str:
        assert go.wait(5)
        return one.sha256

    replacer, said = make(prepare, {"r": note()})
    replacer.poll(0.0)
    assert replacer.pending and replacer.ready is None and "of training r (bbbbbbbbbbbb" in said[0]
    go.set()
    until(replacer, lambda: replacer.ready)
    assert replacer.ready == NEW and not replacer.problem


def test_a_model_that_cannot_be_prepared_is_told_and_tried_again_later() -> None:
    tries: list[str] = []

    def prepare(one: ModelNote) -> str:
        tries.append(one.sha256)
        raise ModelError("it is damaged")

    replacer, said = make(prepare, {"r": note()})
    replacer.poll(0.0)
    until(replacer, lambda: replacer.problem)
    assert replacer.problem == said[-1] == f"the model bbbbbbbbbbbb of training r {NOT_DEPLOYED} it is damaged"
    assert not replacer.pending
    replacer.poll(AGAIN_S - 1)
    assert len(tries) == 1
    replacer.poll(AGAIN_S)
    assert replacer.problem == ""  # it is being tried: nothing of before is said


def test_a_broker_that_refuses_the_subscription_costs_the_models_alone() -> None:
    def refuse(session: Session):  # type: ignore[no-untyped-def]
        raise BrokerError("not permitted")

    watch = ModelWatch(refuse, TOPICS, "watch")
    watch.poll()
    assert watch.notes == {}


def test_a_note_is_heard_and_forgotten_when_it_is_taken_away() -> None:
    broker = MemoryBroker()
    trainer = broker.connect(Session("trainer"))
    trainer.publish(TOPICS.training("r", "model"), encode_training(note()), retain=True)
    trainer.poll(0)
    watch = ModelWatch(broker.connect, TOPICS, "watch")
    watch.poll()
    assert watch.notes == {"r": note()}
    trainer.publish(TOPICS.training("r", "model"), b"", retain=True)
    trainer.poll(0)
    watch.poll()
    assert watch.notes == {}


def test_a_model_with_other_outputs_or_classes_does_not_fit() -> None:
    found = find_model("float")
    assert found.entry is not None
    model, task = read_model(found.path), found.entry.task
    check_replacement(model, task)
    with pytest.raises(ConfigError, match=r"the pipeline takes scores"):
        check_replacement(model, _changed(task, output="scores"))
    with pytest.raises(ConfigError, match=r"the pipeline has 11 classes"):
        check_replacement(model, _changed(task, labels=task.labels[:11]))


def _changed(task: Task, **more: object) -> Task:
    import msgspec

    return msgspec.structs.replace(task, **more)
