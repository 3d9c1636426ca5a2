"""`har-edge train --deploy`: roll a trained model out into the pipeline that runs, by its coordinator."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.cli.console import say
from har_edge.errors import ConfigError
from har_edge.units import plural

if TYPE_CHECKING:
    from har_edge.config.task import Task
    from har_edge.learning.data.datasets import Dataset
    from har_edge.mqtt.bus import Bus, Outgoing
    from har_edge.protocol.deployment import Deployment
    from har_edge.protocol.status import NodeStatus
    from har_edge.protocol.topics import Topics
    from har_edge.protocol.training_results import ModelNote
    from har_edge.runtime.stop import Stop
    from har_edge.tflite.model import Model

# How long retained messages may take to come.
LOOK_S = 3.0
# After so long without a word of progress the command ends; the coordinator goes on.
PATIENCE_S = 180.0
_POLL_S = 0.1


@dataclass(slots=True)
class RunningPipeline:
    """The retained messages of a pipeline: its plan, its coordinator's status, and the models of trainings."""

    plan: Deployment | None = None
    coordinator: NodeStatus | None = None
    notes: dict[str, ModelNote] = field(default_factory=dict)

    @property
    def model_sha256(self) -> str:
        """The hash of the model that windows go through; "" where nothing is deployed."""
        current = self.plan.current if self.plan is not None else None
        return current.manifest.model_sha256 if current is not None else ""

    @property
    def settled(self) -> bool:
        """Whether one generation is left."""
        return self.plan is not None and len(self.plan.generations) == 1 and self.plan.current is not None


class PipelineView:
    """Follows a pipeline on a connection of its own."""

    def __init__(self, args: argparse.Namespace, topics: Topics) -> None:
        from har_edge.mqtt.bus import Session
        from har_edge.protocol.topics import COORDINATOR

        self.bus: Bus = options.reach(args, Session(f"deploy-{secrets.token_hex(8)}", clean_start=True))
        self.topics, self.seen = topics, RunningPipeline()
        self.bus.subscribe([topics.plan(), topics.status(COORDINATOR), topics.training("+", "model")])

    def look(self, seconds: float, done: Callable[[RunningPipeline], object]) -> RunningPipeline:
        """Take what comes until something holds, at most so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not done(self.seen):
            self.poll()
        return self.seen

    def poll(self) -> None:
        """Wait a moment for messages, and take them."""
        from har_edge.protocol.events import PlanEvent, StatusEvent, TrainingEvent, decode
        from har_edge.protocol.topics import COORDINATOR
        from har_edge.protocol.training_results import ModelNote

        for delivery in self.bus.poll(_POLL_S):
            self.bus.acknowledge(delivery)
            match decode(delivery, self.topics):
                case PlanEvent(deployment=deployment):
                    self.seen.plan = deployment
                case StatusEvent(node=node, status=status) if node == COORDINATOR:
                    self.seen.coordinator = status
                case TrainingEvent(message=ModelNote() as note):
                    self.seen.notes[note.run] = note
                case TrainingEvent(message=None) as event:
                    self.seen.notes.pop(event.run, None)

    def publish(self, messages: Iterable[Outgoing]) -> None:
        """Publish, and wait until the broker has all; what comes meanwhile is taken."""
        from har_edge.errors import BrokerError

        for one in messages:
            self.bus.publish(one.topic, one.payload, retain=one.retain)
        until = time.monotonic() + PATIENCE_S
        while self.bus.unsent:
            self.poll()
            if time.monotonic() > until:
                raise BrokerError(f"{plural(self.bus.unsent, 'message')} did not reach the broker; see its log")

    def close(self) -> None:
        """End the connection."""
        self.bus.close(forget=True)


def check_deployable(args: argparse.Namespace, topics: Topics, model: Model, data: Dataset | None) -> None:
    """Raise ConfigError where no coordinator runs that takes models, or the model does not fit what it runs."""
    view = PipelineView(args, topics)
    try:
        seen = view.look(LOOK_S, lambda one: one.plan is not None and one.coordinator is not None)
    finally:
        view.close()
    check_pipeline(seen, topics, model, data)


def check_pipeline(seen: RunningPipeline, topics: Topics, model: Model, data: Dataset | None) -> None:
    """Raise ConfigError where a model cannot be rolled out into a pipeline."""
    from har_edge.coordinator.model_replacement import check_replacement

    task = check_takes_models(seen, topics)
    try:
        check_replacement(model, task)
        check_inputs(seen, model)
        check_meaning(task, data)
    except ConfigError as error:
        raise ConfigError(
            f"the model does not fit pipeline {topics.pipeline}: {error}; train the model that runs there, or deploy "
            "this one with a coordinator of its own"
        ) from None


def check_takes_models(seen: RunningPipeline, topics: Topics) -> Task:
    """Return the task of a pipeline; ConfigError where it has no coordinator that rolls trained models out."""
    from har_edge.coordinator.model_replacement import HEARS_OF_MODELS
    from har_edge.protocol.status import ALIVE

    start = f"start one first: `har-edge coordinator --model MODEL --pipeline {topics.pipeline}`"
    status = seen.coordinator
    if status is None or status.state not in ALIVE:
        raise ConfigError(f"--deploy came, and no coordinator runs in pipeline {topics.pipeline}; {start}")
    if not status.counters.get(HEARS_OF_MODELS):
        raise ConfigError(
            f"--deploy came, and the coordinator of pipeline {topics.pipeline} (har-edge {status.version}) takes no "
            "trained models: it is older, or was started with --keep-model"
        )
    if seen.plan is None or not seen.model_sha256:
        raise ConfigError(
            f"--deploy came, and the coordinator of pipeline {topics.pipeline} has deployed nothing yet; start nodes, "
            "and wait until `har-edge status` shows its stages"
        )
    return seen.plan.config.task


def check_inputs(seen: RunningPipeline, model: Model) -> None:
    """Raise ConfigError for a model with other inputs than those that the pipeline's sources enter."""
    from har_edge.config.model_outputs import list_tensors

    assert seen.plan is not None and seen.plan.current is not None
    tensors = [model.main.tensors[index] for index in model.main.inputs]
    own = {tensor.name: tuple(tensor.signature[1:]) for tensor in tensors}
    specs = {spec.name: tuple(spec.shape[1:]) for entry in seen.plan.current.manifest.slices for spec in entry.inputs}
    for source, enters in seen.plan.config.task.inputs.items():
        wanted = specs.get(enters.tensor, own.get(enters.tensor))
        if own.get(enters.tensor) != wanted or wanted is None:
            raise ConfigError(
                f"source {source} enters {enters.tensor} {list(wanted or ())} there, and the model takes "
                f"{list_tensors(tensors)}"
            )


def check_meaning(task: Task, data: Dataset | None) -> None:
    """Raise ConfigError where classes or pixels mean something else in the pipeline than in the data.

    Scores of anomalies are no classes, and a version that ran before needs no data.
    """
    import numpy as np

    if data is None or task.anomaly is not None:
        return
    if tuple(task.labels) != data.classes:
        came = ", ".join(data.classes[:5]) or "none"
        raise ConfigError(f"its classes are {', '.join(task.labels[:5]) or 'none'} ..., those of the data {came} ...")
    if task.image is not None and data.x.dtype == np.uint8:
        mean, std = (-data.offset / data.scale,), (1 / data.scale,)
        there = task.image.mean or (0.0,), task.image.std or (1.0,)
        if not (np.allclose(there[0], mean) and np.allclose(there[1], std)):
            raise ConfigError(
                f"pixels enter as (byte - {there[0][0]:g}) / {there[1][0]:g} there, and the model learned from "
                f"(byte - {mean[0]:g}) / {std[0]:g}"
            )


def deploy(
    args: argparse.Namespace, topics: Topics, run: str, content: bytes, model: Model, data: Dataset | None, stop: Stop
) -> bool:
    """Hand a model to the coordinator, and follow the rollout; return whether windows go through the model at the end.

    The file and its note stay at the broker: a coordinator that starts again finds them there.
    """
    view = PipelineView(args, topics)
    try:
        seen = view.look(LOOK_S, lambda one: one.plan is not None and one.coordinator is not None)
        view.look(0.5, lambda _: False)  # the notes of earlier ones
        check_pipeline(seen, topics, model, data)
        note = _make_note(seen, run, content)
        if note is None:
            say(f"pipeline {topics.pipeline} runs this very model already")
            return True
        before = dict(seen.notes)
        view.publish(_model_messages(topics, note, content))
        say(f"deploy: model {note.sha256[:12]} is at the broker; the coordinator rolls it out")
        done = _follow(view, note, stop)
        if done is not None:
            view.publish(_removals(topics, note, before, done))
        return bool(done)
    finally:
        view.close()


def _make_note(seen: RunningPipeline, run: str, content: bytes) -> ModelNote | None:
    """Return the note that replaces the running model, and all those that this one had replaced; None where it runs."""
    from har_edge.protocol.training_results import MAX_REPLACED, ModelNote

    sha256, current = hashlib.sha256(content).hexdigest(), seen.model_sha256
    if sha256 == current:
        return None
    before = [one for note in seen.notes.values() if note.sha256 == current for one in note.replaces]
    replaces = tuple(dict.fromkeys(one for one in (current, *before) if one != sha256))[:MAX_REPLACED]
    return ModelNote(
        run=run,
        author=f"train-{secrets.token_hex(6)}",
        sha256=sha256,
        size=len(content),
        replaces=replaces,
        time=max(time.time(), *(note.time + 1 for note in seen.notes.values()), 0.0),
    )


def _model_messages(topics: Topics, note: ModelNote, content: bytes) -> list[Outgoing]:
    """Return the note, and the file that it names: a file that nothing names would count as left over."""
    from har_edge.mqtt.bus import Outgoing
    from har_edge.protocol.topics import TrainingTopics
    from har_edge.protocol.training import encode_training
    from har_edge.runtime.artifacts import encode_chunks

    said = Outgoing(topics.training(note.run, "model"), encode_training(note), retain=True)
    return [said, *encode_chunks(TrainingTopics(topics.base, topics.pipeline), content)]


def _follow(view: PipelineView, note: ModelNote, stop: Stop) -> bool | None:
    """Say how the rollout goes; return whether it was done, None where it has not ended."""
    from har_edge.coordinator.model_replacement import NOT_DEPLOYED

    said, moved = "", time.monotonic()
    while time.monotonic() < moved + PATIENCE_S and not stop.asked:
        view.poll()
        seen = view.seen
        detail = seen.coordinator.detail if seen.coordinator is not None else ""
        if detail != said:
            said, moved = detail, time.monotonic()
            say(f"deploy: {detail}")
        if NOT_DEPLOYED in detail and note.sha256[:12] in detail:
            return False
        if seen.model_sha256 == note.sha256 and seen.settled:
            assert seen.plan is not None
            say(f"deployed: epoch {seen.plan.epoch} of pipeline {view.topics.pipeline} runs the trained model")
            return True
    say(f"not deployed yet: {said}; the coordinator goes on: see `har-edge status --pipeline {view.topics.pipeline}`")
    return None


def _removals(topics: Topics, note: ModelNote, before: Mapping[str, ModelNote], done: bool) -> list[Outgoing]:
    """Return what removes the models that this one has replaced; or this one, where it was not deployed."""
    from har_edge.mqtt.bus import Outgoing
    from har_edge.protocol.artifacts import count_chunks
    from har_edge.protocol.topics import TrainingTopics
    from har_edge.protocol.training import encode_training
    from har_edge.runtime.artifacts import clear

    files, gone = TrainingTopics(topics.base, topics.pipeline), list[Outgoing]()
    for one in [old for old in before.values() if old.sha256 in note.replaces] if done else [note]:
        if one.run != note.run:
            gone.append(Outgoing(topics.training(one.run, "model"), b"", retain=True))
        gone += clear(files, one.sha256, count_chunks(one.size))
    if not done:  # what stood there before counts again
        old = before.get(note.run)
        payload = encode_training(old) if old is not None else b""
        gone.insert(0, Outgoing(topics.training(note.run, "model"), payload, retain=True))
    return gone
