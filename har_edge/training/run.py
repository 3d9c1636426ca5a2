"""The whole way from recordings to model files: measure on the split, then train what is shipped on everybody."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from har_edge.codecs.spec import parse_spec
from har_edge.config.catalog import BaselineScore, ModelEntry, SplitScore
from har_edge.config.task import Task
from har_edge.data.description import StreamDescription
from har_edge.data.grouping import regroup, regroup_recording
from har_edge.data.recording import Recording
from har_edge.errors import ConfigError
from har_edge.evaluation.baseline import METHOD, predict_baseline
from har_edge.evaluation.prediction import Classifier, predict_recordings
from har_edge.evaluation.report import Scores, score, scored
from har_edge.evaluation.study import NO_REDUCTION, Downstream, System, Training, Variant
from har_edge.inference.interpreter import Interpreter, Port
from har_edge.tflite.manifest import TensorSpec
from har_edge.training.codec import MadeFiles
from har_edge.training.fit import Recipe
from har_edge.training.system import SystemTrainer
from har_edge.training.versions import versions

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Split:
    """Streams to measure with: weights from `train`, figures from `test`."""

    train: Sequence[str]
    test: Sequence[str]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One .tflite file with its entry in the manifest, and the files of its reducers by name."""

    content: bytes
    entry: ModelEntry
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """The models to make: a variant, or if None the network of early fusion, as float32 and as int8."""

    variant: Variant | None = None
    grouping: str = "location"

    @property
    def name(self) -> str:
        """Name of what a variant makes: `unreduced`, or its first method, and `restore` where windows are restored."""
        if self.variant is None or self.variant.reducer == NO_REDUCTION:
            return "unreduced"
        methods = "-".join(part.method for part in parse_spec(self.variant.reducer))
        return f"{methods}-restore" if self.variant.downstream is Downstream.RESTORE else methods


class ModelBuilder:
    """Trains and scores the models of one data set.

    `described` is what a task says of the data set: a name that is built in, or the file of its description. Raises
    ConfigError when the split names a stream twice, or one that has no recording.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        description: StreamDescription,
        split: Split,
        recipe: Recipe,
        *,
        command: str,
        log: Log,
        request: ModelRequest | None = None,
        described: str | None = None,
    ) -> None:
        self._request = request or ModelRequest()
        self._recordings = {
            recording.stream: regroup_recording(recording, description, self._request.grouping)
            for recording in recordings
        }
        _check_split(split, self._recordings)
        self._full = description
        self._description = regroup(description, self._request.grouping)
        self._split = split
        self._recipe = recipe
        self._command = command
        self._log = log
        self._described = described or description.name
        self._stem = "har" if description.name == "mhealth" else description.name

    def make(self, *, final: bool, baseline: bool) -> list[ModelFile]:
        """Train on the split and score it; with `final`, then train on all streams what is to be shipped."""
        split = self._train(self._split.train, "-split")
        scores = {name: self._score(system, name) for name, system in split.items()}
        baselines = [self._baseline(next(iter(split.values())).task)] if baseline else []
        ways = [("-split", self._split.train, split)]
        if final:
            everybody = list(self._recordings)
            ways.insert(0, ("", everybody, self._train(everybody, "")))
        return [
            self._file(name, suffix, streams, systems[name], scores[name], baselines, split[name])
            for suffix, streams, systems in ways
            for name in systems
        ]

    def _train(self, streams: Sequence[str], suffix: str) -> dict[str, System]:
        """Return the systems asked for, by name."""
        self._log(f"training on {', '.join(streams)}")
        training = Training([self._recordings[stream] for stream in streams])
        variant, name = self._request.variant, self._request.name
        trainer = SystemTrainer(self._full, self._recipe, stem=f"{self._stem}-{name}{suffix}", progress=self._show)
        if variant is None:
            systems = trainer.fit_early(self._request.grouping, training, self._recipe.seed)
        else:
            unreduced = (
                trainer.fit(variant.unreduced, training, self._recipe.seed, None) if variant.needs_unreduced else None
            )
            systems = {name: trainer.fit(variant, training, self._recipe.seed, unreduced)}
        return {name: self._described_as(system) for name, system in systems.items()}

    def _described_as(self, system: System) -> System:
        stream = msgspec.structs.replace(system.task.stream, description=self._described)
        return replace(system, task=msgspec.structs.replace(system.task, stream=stream))

    def _show(self, epoch: int, loss: float) -> None:
        self._log(f"  epoch {epoch + 1}/{self._recipe.epochs}: loss {loss:.4f}")

    def _score(self, system: System, name: str) -> Scores:
        interpreter = Interpreter(system.model)
        channels = {source.name: len(source.channels) for source in self._description.sources}
        classifier = Classifier(
            interpreter.run, interpreter.inputs, system.task, channels=channels, files=MadeFiles(system.files)
        )
        test = [self._recordings[stream] for stream in self._split.test]
        scores = score(predict_recordings(classifier, test, system.task), system.task.labels)
        self._tell(name, scores)
        return scores

    def _baseline(self, task: Task) -> BaselineScore:
        train, test = ([self._recordings[stream] for stream in side] for side in (self._split.train, self._split.test))
        scores = score(predict_baseline(train, test, task, self._recipe.seed), task.labels)
        self._tell(METHOD, scores)
        return BaselineScore(METHOD, *scored(scores))

    def _tell(self, name: str, scores: Scores) -> None:
        accuracy, macro_f1 = scored(scores)
        self._log(
            f"{name}, tested on {', '.join(self._split.test)}: accuracy {accuracy:.4f}, "
            f"macro F1 {macro_f1:.4f}, {scores.windows} windows"
        )

    def _file(
        self,
        name: str,
        suffix: str,
        streams: Sequence[str],
        system: System,
        scores: Scores,
        baselines: list[BaselineScore],
        split: System,
    ) -> ModelFile:
        interpreter = Interpreter(system.model)
        rows = sum(len(recording) for recording in self._recordings.values())
        real = all(recording.real for recording in self._recordings.values()) and not self._full.synthetic
        entry = ModelEntry(
            name=f"{name}{suffix}",
            file=f"{self._stem}-{name}{suffix}.tflite",
            sha256=hashlib.sha256(system.model).hexdigest(),
            inputs=[_spec(port) for port in interpreter.inputs],
            outputs=[_spec(port) for port in interpreter.outputs],
            task=system.task,
            data=f"{self._full.name}: {len(self._recordings)} streams, {rows} labelled rows"
            + ("" if real else ", SYNTHETIC"),
            real=real,
            trained_on=list(streams),
            split=SplitScore(
                train=list(self._split.train),
                test=list(self._split.test),
                windows=scores.windows,
                accuracy=scored(scores)[0],
                macro_f1=scored(scores)[1],
                model=hashlib.sha256(split.model).hexdigest(),
            ),
            baselines=baselines,
            command=self._command,
            seed=self._recipe.seed,
            versions=versions(),
        )
        return ModelFile(system.model, entry, system.files)


def _spec(port: Port) -> TensorSpec:
    return TensorSpec(port.name, port.shape, port.dtype.name)


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
