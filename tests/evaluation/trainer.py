"""A trainer without TensorFlow: the nearest class mean, written as a .tflite of one dense layer a source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.codecs.catalog import make_reducer
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.data.description import StreamDescription
from har_edge.errors import ConfigError
from har_edge.evaluation.study import Downstream, System, Training, Variant
from har_edge.tflite.schema import tflite
from tests.tflite.models import Draft, GraphDraft

# Reducers that this trainer has trouble with.
REFUSED, FATAL, BROKEN = "paa:7", "paa:9", "paa:11"


@dataclass(frozen=True)
class MeansTrainer:
    """Notes every fit as a line in `log`, so that tests can tell what was fitted again."""

    description: StreamDescription
    length: int
    hop: int
    log: Path

    def fit(self, variant: Variant, training: Training, seed: int, unreduced: System | None) -> System:
        with self.log.open("a") as file:
            file.write(f"{variant} on {','.join(recording.stream for recording in training.recordings)} seed {seed}\n")
        assert (unreduced is not None) == variant.needs_unreduced
        if variant.reducer == FATAL:
            os._exit(9)
        if variant.reducer == BROKEN:
            raise ZeroDivisionError("a bug")
        if variant.reducer == REFUSED:
            raise ConfigError("this trainer wants nothing of sevens")
        sources = {name: values.shape[1] for name, values in training.recordings[0].samples.items()}
        task = self.task(variant, list(sources))
        return System(task, unreduced.model if unreduced else self.model(variant, training, sources), {})

    def task(self, variant: Variant, sources: list[str]) -> Task:
        label_ids = [n for n in range(len(self.description.labels)) if n != self.description.null_label]
        return Task(
            stream=StreamTask(
                self.description.name, self.description.rate_hz, self.length, self.hop, grouping=variant.grouping
            ),
            inputs={name: SourceInput(name, variant.reducer) for name in sources},
            output="activity",
            labels=[self.description.labels[label] for label in label_ids],
            label_ids=label_ids,
        )

    def model(self, variant: Variant, training: Training, sources: Mapping[str, int]) -> bytes:
        spec = variant.reducer if variant.downstream is Downstream.CODES else "none"
        reducers = {name: make_reducer(spec, self.length, channels) for name, channels in sources.items()}
        task = self.task(variant, list(sources))
        known = [window for window in training.windows(self.length, self.hop) if window.label in task.label_ids]
        classes = np.array([task.label_ids.index(window.label or 0) for window in known])
        draft = Draft()
        graph = draft.graph()
        parts = []
        for name, reducer in reducers.items():
            rows = np.stack([reducer.features(reducer.encode(window.samples[name])) for window in known])
            parts.append(self.layer(graph, name, rows, classes, len(task.labels)))
        total = parts[0]
        for number, part in enumerate(parts[1:]):
            total = graph.add(total, part, "activity" if number == len(parts) - 2 else None)
        graph.raw.tensors[total].name = "activity"
        graph.output(total)
        return draft.build()

    def layer(self, graph: GraphDraft, name: str, rows: npt.NDArray[Any], classes: npt.NDArray[Any], count: int) -> int:
        """Scores of one source: for each class minus half the squared distance to its mean, in units of the spread."""
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        spread = flat.var(0) + 1e-6 + 0.01 * flat.var(0).max()
        means = np.stack([flat[classes == n].mean(0) if (classes == n).any() else flat.mean(0) for n in range(count)])
        weights = graph.const((means / spread).astype(np.float32))
        bias = graph.const((-0.5 * (means**2 / spread).sum(1)).astype(np.float32))
        taken = graph.input([1, *rows.shape[1:]], name, signature=[-1, *rows.shape[1:]])
        vector = graph.tensor([1, flat.shape[1]], signature=[-1, flat.shape[1]])
        shape = graph.const(np.array([-1, flat.shape[1]], np.int32))
        graph.op("RESHAPE", [taken, shape], [vector], tflite.ReshapeOptionsT())
        scores = graph.tensor([1, count], signature=[-1, count])
        graph.op("FULLY_CONNECTED", [vector, weights, bias], [scores], tflite.FullyConnectedOptionsT())
        return scores
