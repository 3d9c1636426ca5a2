"""Measure accuracy and loss on held-out samples, in a thread of its own: rounds go on meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from har_edge.inference.interpreter import Array, Interpreter, Port
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.data.input_layout import InputLayout
from har_edge.learning.server.run_record import EvaluationRequest
from har_edge.learning.updates.vectors import Vector, WeightLike, unflatten
from har_edge.tflite.gradient.weights import replace_weights
from har_edge.tflite.model import Model

_BATCH = 64


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """Accuracy and mean loss on held-out samples after an epoch."""

    epoch: int
    accuracy: float
    loss: float
    samples: int


class HeldOutSamples:
    """Scores weights on samples; for a mean squared error the accuracy is 0."""

    def __init__(
        self,
        model: Model,
        weights: tuple[WeightLike, ...],
        data: Dataset,
        *,
        classes: bool,
        layout: InputLayout | None = None,
    ) -> None:
        self._model, self._weights, self._data, self._classes = model, weights, data, classes
        self._layout = layout

    def score(self, weights: Vector) -> tuple[float, float]:
        """Return accuracy and mean loss of the model with these weights."""
        return self.score_file(bytes(replace_weights(self._model, unflatten(weights, self._weights))))

    def score_file(self, content: bytes) -> tuple[float, float]:
        """Return accuracy and mean loss of a file with the model's inputs and output, quantised or not."""
        interpreter = Interpreter(content)
        ports = {port.name: port for port in interpreter.inputs}
        first, output = interpreter.inputs[0], interpreter.outputs[0]
        step = _BATCH if first.shape[0] == -1 else first.shape[0]
        correct, loss, count = 0, 0.0, len(self._data)
        for start in range(0, count, step):
            chosen = np.arange(start, min(start + step, count))
            filled = np.resize(chosen, step) if first.shape[0] != -1 else chosen
            x = self._data.values(filled)
            parts = {first.name: x} if self._layout is None else self._layout.split(x)
            given = {name: quantised(values, ports[name]) for name, values in parts.items()}
            found = output.real(interpreter.run(given)[output.name])[: len(chosen)]
            if self._classes:
                labels, rows = self._data.y[chosen], found.reshape(len(chosen), -1)
                correct += int((rows.argmax(axis=1) == labels).sum())
                loss -= float(np.log(np.maximum(_probabilities(rows)[np.arange(len(labels)), labels], 1e-12)).sum())
            else:
                loss += float(np.square(found - x[: len(chosen)]).reshape(len(chosen), -1).mean(axis=1).sum())
        return correct / count, loss / count


def quantised(values: Array, port: Port) -> Array:
    """Return float values as an input takes them."""
    if port.scale <= 0 or port.dtype.kind not in "iu":
        return values
    limits = np.iinfo(port.dtype)
    found: Array = np.clip(np.rint(values / port.scale) + port.zero_point, limits.min, limits.max).astype(port.dtype)
    return found


def _probabilities(rows: Array) -> Array:
    """Return probabilities, from logits where the model ends with these."""
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        return rows
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    found: Array = powers / powers.sum(axis=1, keepdims=True)
    return found


class EvaluationThread:
    """Scores weights one after the other; `poll` returns what is done."""

    def __init__(self, score: Callable[[Vector], tuple[float, float]], samples: int) -> None:
        self._score, self._samples = score, samples
        self._asked: queue.SimpleQueue[EvaluationRequest | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[HeldOutScore | Exception] = queue.SimpleQueue()
        self._open = 0
        self._thread = threading.Thread(target=self._run, name="held-out", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether something was asked for that `poll` has not returned."""
        return self._open > 0

    def ask(self, request: EvaluationRequest) -> None:
        """Score weights when those before are done."""
        self._open += 1
        self._asked.put(request)

    def poll(self) -> list[HeldOutScore]:
        """Return the scores that are new. Raises what scoring raised."""
        found = []
        while not self._done.empty():
            self._open -= 1
            one = self._done.get()
            if isinstance(one, Exception):
                raise one
            found.append(one)
        return found

    def close(self) -> None:
        """End the thread."""
        self._asked.put(None)

    def _run(self) -> None:
        while (request := self._asked.get()) is not None:
            try:
                accuracy, loss = self._score(request.weights)
                self._done.put(HeldOutScore(request.epoch, accuracy, loss, self._samples))
            except Exception as error:  # raised where it is polled
                self._done.put(error)


class Unscored(EvaluationThread):
    """Scores nothing: for a training whose held-out samples are used after it alone."""

    def __init__(self) -> None:
        super().__init__(lambda weights: (0.0, 0.0), 0)

    def ask(self, request: EvaluationRequest) -> None:
        """Leave out what is asked for."""
