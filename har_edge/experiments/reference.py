"""The model and the recordings of a trial, and the answers of the whole model, run offline, to them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from har_edge.config.catalog import VERSION, Catalog, find_model, store_catalog
from har_edge.config.pipeline import Pipeline
from har_edge.data.files import read_recordings
from har_edge.data.live import LiveStream, lay_out
from har_edge.data.recording import Recording, Window
from har_edge.data.synthetic import synthesize
from har_edge.data.windows import windows
from har_edge.errors import ConfigError
from har_edge.evaluation.composition import load_whole
from har_edge.evaluation.prediction import Classifier
from har_edge.experiments.load import Answers
from har_edge.inference.interpreter import Interpreter
from har_edge.runtime.slicing import prepare


@dataclass(frozen=True, slots=True)
class Reference:
    """A model file with its manifest, its pipeline, recordings, and the whole model; `data` says what these are."""

    model: Path
    pipeline: Pipeline
    recordings: Sequence[Recording]
    data: str
    whole: Interpreter

    @property
    def streams(self) -> list[str]:
        return [recording.stream for recording in self.recordings]

    @property
    def spacing_s(self) -> float:
        """The time between two windows of a stream at the pace of life."""
        stream = self.pipeline.task.stream
        return stream.hop / stream.rate_hz

    def windows(self, limit: int | None = None) -> list[Window]:
        """Return the windows of every recording as a sensor cuts them, at most the first `limit` of each."""
        stream = self.pipeline.task.stream
        return [
            window
            for recording in self.recordings
            for window in list(windows(recording, stream.length, stream.hop, within_activity=False))[:limit]
        ]

    def answers(self, made: Iterable[Window]) -> Answers:
        """Return label and confidence of each window, to the bit that a result gives."""
        task, run = self.pipeline.task, Classifier(self.whole.run, self.whole.inputs, self.pipeline.task)
        output = next(port for port in self.whole.outputs if port.name == task.output)
        answers = {}
        for window in made:
            said = run.predict(window)
            answers[said.stream, said.seq] = (task.label_ids[said.answer], said.confidence(output))
        return answers

    def live(self, stream: str) -> LiveStream:
        """Return what a sensor makes of the lines of a device that has all sources."""
        pipeline, task = self.pipeline, self.pipeline.task
        layout = lay_out(pipeline.described, pipeline.stream, list(task.inputs), stamped=True)
        return LiveStream(stream, layout, task.stream.rate_hz, task.stream.length, task.stream.hop)


def prepare_reference(
    model: str, folder: Path, where: Path | None, streams: Sequence[str], *, stages: int, hop: int, name: str
) -> Reference:
    """Copy a shipped model into `folder`, with a window every `hop` samples, and cut it there.

    Recordings come from `where`, else they are synthetic.
    """
    found = find_model(model)
    if found.entry is None:
        raise ConfigError(f"{model} has no task; expected a model of the manifest")
    task = found.entry.task
    task = msgspec.structs.replace(task, stream=msgspec.structs.replace(task.stream, hop=hop))
    (folder / "model").mkdir()
    path = folder / "model" / found.path.name
    shutil.copyfile(found.path, path)
    store_catalog(Catalog(VERSION, [msgspec.structs.replace(found.entry, task=task)]), path.parent)
    pipeline = prepare(path, task, folder / "slices", stages=stages, name=name)
    recordings = read_recordings(pipeline.stream, where, streams) if where else synthesize(streams)
    return Reference(path, pipeline, recordings, "real" if where else "synthetic", load_whole(path, task))
