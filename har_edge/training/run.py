"""The whole way from recordings to model files: measure on the split, then train what is shipped on everybody."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from har_edge import __version__
from har_edge.errors import ConfigError
from har_edge.evaluation.baseline import METHOD, predict_baseline
from har_edge.evaluation.prediction import Classifier, predict_recordings
from har_edge.evaluation.report import Scores, score
from har_edge.graph.manifest import TensorSpec
from har_edge.inference.interpreter import Interpreter, Port
from har_edge.planning.catalog import BaselineScore, ModelEntry, SplitScore
from har_edge.planning.task import SourceInput, StreamTask, Task
from har_edge.streams.description import StreamDescription
from har_edge.streams.recording import Recording
from har_edge.streams.windows import default_window
from har_edge.training.dataset import WindowPool
from har_edge.training.export import export_float, export_int8
from har_edge.training.fit import Recipe, fit_network, window_entrances
from har_edge.training.network import fit_layout

PRECISIONS = ("float", "int8")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Split:
    """Streams to measure with: weights from `train`, figures from `test`."""

    train: Sequence[str]
    test: Sequence[str]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One .tflite file with its entry in the manifest."""

    content: bytes
    entry: ModelEntry


class Workshop:
    """Trains and scores the models of one data set.

    Raises ConfigError when the split names a stream twice, or one that has no recording.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        description: StreamDescription,
        split: Split,
        recipe: Recipe,
        *,
        command: str,
        say: Say,
    ) -> None:
        self._recordings = {recording.stream: recording for recording in recordings}
        _check_split(split, self._recordings)
        self._description = description
        self._split = split
        self._recipe = recipe
        self._command = command
        self._say = say
        self._length, self._hop = default_window(description.rate_hz)
        self._label_ids = [label for label in range(len(description.labels)) if label != description.null_label]

    def make(self, *, final: bool, baseline: bool) -> list[ModelFile]:
        """Train on the split and score it; with `final`, then train on all streams what is to be shipped."""
        split_models = self._train(self._split.train)
        scores = {name: self._score(model, name) for name, model in split_models.items()}
        baselines = [self._baseline()] if baseline else []
        ways = [("-split", self._split.train, split_models)]
        if final:
            everybody = list(self._recordings)
            ways.insert(0, ("", everybody, self._train(everybody)))
        return [
            self._file(name, suffix, streams, models[name], scores[name], baselines, split_models[name])
            for suffix, streams, models in ways
            for name in PRECISIONS
        ]

    def task(self, ports: Sequence[Port]) -> Task:
        """Return the task of a model with these inputs; each sensor's code is what the model takes, as it is."""
        reducers = {
            port.name: f"q8:{port.scale!r}:{port.zero_point}" if port.dtype == np.int8 else "none" for port in ports
        }
        return Task(
            stream=StreamTask(self._description.name, self._description.rate_hz, self._length, self._hop),
            inputs={
                source.name: SourceInput(source.name, reducers[source.name]) for source in self._description.sources
            },
            output="activity",
            labels=[self._description.labels[label] for label in self._label_ids],
            label_ids=self._label_ids,
        )

    def _train(self, streams: Sequence[str]) -> dict[str, bytes]:
        self._say(f"training on {', '.join(streams)}")
        recordings = [self._recordings[stream] for stream in streams]
        layout = fit_layout(window_entrances(self._description, self._length), len(self._label_ids))
        fitted = fit_network(
            recordings, self._description, self._label_ids, self._length, layout, self._recipe, self._show
        )
        calibration = WindowPool(recordings, self._length, self._label_ids, windows_a_length=2).draw().batch().samples
        return {"float": export_float(fitted), "int8": export_int8(fitted, calibration)}

    def _show(self, epoch: int, loss: float) -> None:
        self._say(f"  epoch {epoch + 1}/{self._recipe.epochs}: loss {loss:.4f}")

    def _score(self, model: bytes, name: str) -> Scores:
        interpreter = Interpreter(model)
        task = self.task(interpreter.inputs)
        classifier = Classifier(interpreter.run, interpreter.inputs, task)
        test = [self._recordings[stream] for stream in self._split.test]
        scores = score(predict_recordings(classifier, test, task), task.labels)
        self._tell(name, scores)
        return scores

    def _baseline(self) -> BaselineScore:
        task = self.task([_float_port(source.name) for source in self._description.sources])
        train, test = ([self._recordings[stream] for stream in side] for side in (self._split.train, self._split.test))
        scores = score(predict_baseline(train, test, task, self._recipe.seed), task.labels)
        self._tell(METHOD, scores)
        return BaselineScore(METHOD, scores.accuracy, scores.macro_f1)

    def _tell(self, name: str, scores: Scores) -> None:
        self._say(
            f"{name}, tested on {', '.join(self._split.test)}: accuracy {scores.accuracy:.4f}, "
            f"macro F1 {scores.macro_f1:.4f}, {scores.windows} windows"
        )

    def _file(
        self,
        name: str,
        suffix: str,
        streams: Sequence[str],
        content: bytes,
        scores: Scores,
        baselines: list[BaselineScore],
        split_model: bytes,
    ) -> ModelFile:
        interpreter = Interpreter(content)
        rows = sum(len(recording) for recording in self._recordings.values())
        real = all(recording.real for recording in self._recordings.values())
        entry = ModelEntry(
            name=f"{name}{suffix}",
            file=f"har-{name}{suffix}.tflite",
            sha256=hashlib.sha256(content).hexdigest(),
            inputs=[_spec(port) for port in interpreter.inputs],
            outputs=[_spec(port) for port in interpreter.outputs],
            task=self.task(interpreter.inputs),
            data=f"{self._description.name}: {len(self._recordings)} streams, {rows} labelled rows"
            + ("" if real else ", SYNTHETIC"),
            real=real,
            trained_on=list(streams),
            split=SplitScore(
                train=list(self._split.train),
                test=list(self._split.test),
                windows=scores.windows,
                accuracy=scores.accuracy,
                macro_f1=scores.macro_f1,
                model=hashlib.sha256(split_model).hexdigest(),
            ),
            baselines=baselines,
            command=self._command,
            seed=self._recipe.seed,
            versions=versions(),
        )
        return ModelFile(content, entry)


def versions() -> dict[str, str]:
    """Return the versions that the bytes of a model depend on."""
    return {
        "har_edge": __version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
    }


def _spec(port: Port) -> TensorSpec:
    return TensorSpec(port.name, port.shape, port.dtype.name)


def _float_port(name: str) -> Port:
    return Port(name, (), np.dtype(np.float32), 0.0, 0)


def _check_split(split: Split, known: dict[str, Recording]) -> None:
    named = [*split.train, *split.test]
    twice = sorted({stream for stream in named if named.count(stream) > 1})
    if twice:
        raise ConfigError(f"{', '.join(twice)} named twice; a stream is for training or for testing, once")
    missing = sorted(set(named) - set(known))
    if missing or not split.train or not split.test:
        raise ConfigError(
            f"split of {', '.join(split.train) or 'nothing'} against {', '.join(split.test) or 'nothing'}: expected "
            f"both to name some of {', '.join(known)}"
        )
