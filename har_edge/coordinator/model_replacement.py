"""A model that came of a training and takes the place of the one that a coordinator deploys.

The trainer retains a note (`train/<run>/model`) with the models that it replaces, and the file beside it. A coordinator
that was started with one of these goes on with the new one, now and after each restart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from har_edge.config.classifier_output import INDICES
from har_edge.config.model_outputs import list_tensors, values_of
from har_edge.config.task import Task
from har_edge.errors import BrokerError, ConfigError, HarEdgeError
from har_edge.mqtt.bus import Bus, Session
from har_edge.protocol.events import TrainingEvent, decode
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import TrainingLevel
from har_edge.protocol.training_results import ModelNote
from har_edge.tflite.model import Model

# So many notes are kept: names come from the network.
MAX_NOTES = 64
# After so long a model that could not be prepared is tried again: its file may have come since.
AGAIN_S = 60.0
# The status of a coordinator says so of a model that it cannot deploy; a trainer reads it.
NOT_DEPLOYED = "is not deployed:"
# The counter in a coordinator's status that says that it hears of models.
HEARS_OF_MODELS = "hears_of_models"
_Prepared = TypeVar("_Prepared")


def choose_replacement(notes: Iterable[ModelNote], sha256: str) -> ModelNote | None:
    """Return the newest model that takes the place of the one with this hash."""
    fitting = [one for one in notes if sha256 in one.replaces and one.sha256 != sha256]
    return max(fitting, key=lambda one: (one.time, one.sha256), default=None)


def check_replacement(model: Model, task: Task) -> None:
    """Raise ConfigError for a model without the outputs of a task, or with another number of classes."""
    tensors = [model.main.tensors[index] for index in model.main.outputs]
    outputs = {tensor.name: tensor for tensor in tensors}
    missing = [name for name in task.results if name not in outputs]
    if missing:
        raise ConfigError(f"its outputs are {list_tensors(tensors)}; the pipeline takes {', '.join(missing)}")
    scores = outputs[task.output]
    found = values_of(scores.signature)
    if task.anomaly is not None:
        if found != 1:
            raise ConfigError(f"it gives {list_tensors([scores])}; the pipeline takes one score a picture")
    elif task.labels and found != len(task.labels) and not (found == 1 and scores.dtype in INDICES):
        raise ConfigError(f"it gives {list_tensors([scores])}; the pipeline has {len(task.labels)} classes")


class ModelWatch:
    """Hears of models on a connection of its own: a broker whose access list knows none may refuse the subscription."""

    def __init__(self, connect: Callable[[Session], Bus], topics: Topics, name: str) -> None:
        self._topics, self.notes = topics, dict[str, ModelNote]()
        self._bus: Bus | None = None
        try:
            self._bus = connect(Session(name, clean_start=True))
            self._bus.subscribe([topics.training("+", TrainingLevel.MODEL.value)])
        except BrokerError:
            self.close()

    def poll(self) -> None:
        """Take what came."""
        try:
            for delivery in self._bus.poll(0.0) if self._bus is not None else ():
                assert self._bus is not None
                self._bus.acknowledge(delivery)
                event = decode(delivery, self._topics)
                if isinstance(event, TrainingEvent):
                    self._take(event)
        except BrokerError:
            self.close()

    def _take(self, event: TrainingEvent) -> None:
        if isinstance(event.message, ModelNote) and (event.run in self.notes or len(self.notes) < MAX_NOTES):
            self.notes[event.run] = event.message
        elif event.message is None:
            self.notes.pop(event.run, None)

    def close(self) -> None:
        """End the connection."""
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.close(forget=True)


class ModelReplacer(Generic[_Prepared]):
    """Prepares the model that takes the place of the running one, in a thread: the coordinator looks on meanwhile.

    `problem` says why there is none, `ready` is what was prepared.
    """

    def __init__(
        self,
        watch: ModelWatch,
        sha256: str,
        prepare: Callable[[ModelNote], _Prepared],
        say: Callable[[str], None],
    ) -> None:
        self._watch, self._sha256, self._prepare, self._say = watch, sha256, prepare, say
        self.problem = ""
        self.ready: _Prepared | None = None
        self._failed: tuple[str, float] = ("", 0.0)
        self._thread: threading.Thread | None = None
        self._outcome: tuple[_Prepared | None, str] | None = None

    @property
    def pending(self) -> bool:
        """Whether another model is about to take the place of the running one: no plan is made for that now."""
        return self._thread is not None or self.ready is not None

    def poll(self, now: float) -> None:
        """Take what came, begin to prepare a model, or take the outcome."""
        self._watch.poll()
        if self._thread is not None and self._outcome is not None:
            self.ready, text = self._outcome
            self._thread = self._outcome = None
            if text:
                self.problem = text
                self._say(text)
        note = choose_replacement(self._watch.notes.values(), self._sha256)
        if note is None:
            self.problem = ""
        elif not self.pending and (self._failed[0] != note.sha256 or now >= self._failed[1] + AGAIN_S):
            self._failed, self.problem = (note.sha256, now), ""
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(note.time))
            self._say(f"the model of training {note.run} ({note.sha256[:12]}, {when}) takes the place of this one")
            self._thread = threading.Thread(target=self._run, args=(note,), name="replacement", daemon=True)
            self._thread.start()

    def _run(self, note: ModelNote) -> None:
        try:
            self._outcome = self._prepare(note), ""
        except (HarEdgeError, OSError) as error:
            self._outcome = None, f"the model {note.sha256[:12]} of training {note.run} {NOT_DEPLOYED} {error}"
        except Exception as error:  # the coordinator goes on with the model that it has
            self._outcome = (
                None,
                f"the model {note.sha256[:12]} of training {note.run} {NOT_DEPLOYED} {type(error).__name__}: {error}",
            )
