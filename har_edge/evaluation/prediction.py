"""The answers of a model, window by window; every figure here is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.files import NO_FILES, ReducerFiles
from har_edge.codecs.packing import pack
from har_edge.config.classifier_output import INDICES, read_classes
from har_edge.config.task import Task
from har_edge.data.recording import Recording, Window
from har_edge.data.windows import windows
from har_edge.errors import MessageError, ModelError
from har_edge.inference.input_adapter import make_input_adapter
from har_edge.inference.interpreter import Port
from har_edge.inference.missing_input import missing_input
from har_edge.inference.saturation import Saturation, range_of, range_taken

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one window, as class indices from 0; `truth` is None for mixed activities and unknown labels.

    `scores` are the model's output as it is: one number a class, quantised where the model is, or the class alone.
    """

    stream: str
    seq: int
    truth: int | None
    answer: int
    scores: Array

    def confidence(self, output: Port) -> float:
        """Return the score of the answer as a result gives it; `output` is the port that the scores came from."""
        if self.scores.size == 1 and self.scores.dtype.name in INDICES:
            return 1.0
        return float(output.real(self.scores)[self.answer])


class Classifier:
    """Turns windows into predictions the way the pipeline does: reduce, restore if need be, run, take the largest.

    `ports` are the inputs that `run` takes, whether that is a whole model or its slices in a row. `channels` says how
    many each source has; by default as many as its input tensor, which must then be [windows, length, channels].
    `files` opens what fitted reducers name. With `watch`, values that saturate are counted (`saturations`), and many of
    them warned of. Raises ModelError when the task names a tensor that is no input.
    """

    def __init__(
        self,
        run: Run,
        ports: Sequence[Port],
        task: Task,
        *,
        channels: Mapping[str, int] | None = None,
        files: ReducerFiles = NO_FILES,
        watch: bool = False,
    ) -> None:
        self._run = run
        self._task = task
        self._classes = {label: index for index, label in enumerate(task.label_ids)}
        known = {port.name: port for port in ports}
        self._encoders = {}
        self._sent: dict[str, Saturation] = {}
        self._entered: dict[str, Saturation] = {}
        for source, entry in task.inputs.items():
            port = known.get(entry.tensor)
            if port is None or (channels is None and len(port.shape) != 3):
                there = ", ".join(f"{name} {list(port.shape)}" for name, port in known.items())
                raise ModelError(
                    f"the task feeds {source} to tensor {entry.tensor!r} [windows, length, channels], but the model "
                    f"takes {there}; use the task that belongs to this model"
                )
            length, width = port.shape[1:] if channels is None else (task.stream.length, channels[source])
            reducer = make_reducer(entry.reducer, length, width, files)
            sent, entered = range_taken(reducer), range_of(port.dtype.name, port.scale, port.zero_point)
            if watch and sent is not None:
                self._sent[source] = Saturation(source, f"reducer {reducer.spec!r}", sent)
            if watch and entered is not None:
                self._entered[source] = Saturation(source, f"input {port.name!r}", entered)
            adapt = make_input_adapter(source, reducer, port, length, width, self._entered.get(source))
            self._encoders[source] = (port, reducer, adapt)

    @property
    def saturations(self) -> list[Saturation]:
        """The counts of each source whose values were quantised by a fixed scale."""
        return [one for one in (*self._sent.values(), *self._entered.values()) if one.values]

    def predict(self, window: Window, missing: frozenset[str] = frozenset()) -> Prediction:
        """Return the answer to one window, run alone as in a pipeline without batches.

        Sources named in `missing` enter as a pipeline that carries on without them lets them.
        """
        for source in self._sent.keys() - missing:
            self._sent[source].note(window.samples[source])
        values = {
            port.name: missing_input(port, 1)
            if source in missing
            else adapt(pack(reducer, [reducer.encode(window.samples[source])]))
            for source, (port, reducer, adapt) in self._encoders.items()
        }
        scores = self._run(values)[self._task.output].reshape(-1)
        truth = None if window.label is None else self._classes.get(window.label)
        return Prediction(window.stream, window.seq, truth, self._answer(window, scores), scores)

    def _answer(self, window: Window, scores: Array) -> int:
        try:
            (answer,), best = read_classes(scores, 1, len(self._task.labels))
        except MessageError as error:
            raise ModelError(f"output {self._task.output!r} of the model: {error}") from None
        if best is not None and not np.isfinite(best).all():
            raise ModelError(
                f"output {self._task.output!r} of the model: its best score for window {window.seq} of "
                f"{window.stream} is {best[0]}, which is no answer, and a stage drops such windows; expected a number: "
                "the model itself makes it of numbers; look for a logarithm, a root or a division in it"
            )
        return answer


def predict_recordings(
    classifier: Classifier, recordings: Iterable[Recording], task: Task, missing: frozenset[str] = frozenset()
) -> Iterator[Prediction]:
    """Yield a prediction for every window of the recordings, cut by stream position as sensors cut them."""
    for recording in recordings:
        for window in windows(recording, task.stream.length, task.stream.hop, within_activity=False):
            yield classifier.predict(window, missing)
