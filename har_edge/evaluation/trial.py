"""One trial of a study: one variant in one fold with one seed, fitted and scored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.reducer import Reducer
from har_edge.config.task import Task
from har_edge.data.recording import Window
from har_edge.errors import ModelError
from har_edge.evaluation.metrics import confusion_matrix
from har_edge.evaluation.prediction import Classifier, Prediction
from har_edge.evaluation.protocol import Fold, Protocol
from har_edge.evaluation.study import System, Variant
from har_edge.evaluation.traffic import Encoded, Traffic, code_bytes, encode_window, measure_traffic
from har_edge.inference.codecs import FolderFiles
from har_edge.inference.interpreter import Interpreter

# Rows are the truth, columns the answers.
Counts = list[list[int]]


@dataclass(frozen=True, slots=True)
class Trial:
    """One variant, fold and seed to fit and score.

    `variant` None stands for the baseline, which needs no network and no reducer.
    """

    variant: Variant | None
    protocol: Protocol
    fold: Fold
    seed: int

    def __str__(self) -> str:
        return f"{self.variant or 'baseline'}, {self.protocol.value} fold {self.fold.name}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Score:
    """The figures of one system on some windows.

    `confusions` has a matrix for each subject, over its windows of one activity; `without` the same for each source
    that was missing. `mixed` windows were not scored. `code_bytes` and `traffic` are sums over all windows, mixed ones
    included. `operations` and `encode_us` (median, measured) are of one window, all sources together. `error` is the
    mean squared error of restored windows over the variance of the channel, averaged over channels; None where nothing
    restores.
    """

    confusions: dict[str, Counts]
    mixed: int
    code_bytes: int
    traffic: list[Traffic]
    operations: int
    encode_us: float
    error: float | None
    without: dict[str, dict[str, Counts]]


class TrialResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"variant": "design"}):
    """The result of one trial, as it is stored on disk, where the key of the variant is `design`.

    `system` is the key of the system that was scored, None for the baseline.
    """

    key: str
    variant: Variant | None
    protocol: Protocol
    fold: str
    seed: int
    score: Score
    seconds: float
    system: str | None


class Deployed:
    """A system as a pipeline would run it: reducers from its folder, model in the interpreter."""

    def __init__(self, system: System, folder: Path, channels: Mapping[str, int]) -> None:
        """Open a system whose files lie in `folder`; their hashes are checked. `channels` is how many a source has."""
        task, files = system.task, FolderFiles(folder, system.task.files)
        missing = sorted(set(task.inputs) - set(channels))
        if missing:
            raise ModelError(f"the system takes {', '.join(missing)}; expected some of {', '.join(channels)}")
        interpreter = Interpreter(system.model)
        self.task = task
        self.reducers: dict[str, Reducer] = {
            source: make_reducer(entry.reducer, task.stream.length, channels[source], files)
            for source, entry in task.inputs.items()
        }
        self.output = next(port for port in interpreter.outputs if port.name == task.output)
        self.classifier = Classifier(interpreter.run, interpreter.inputs, task, channels=channels, files=files)


def score_deployed(deployed: Deployed, windows: Sequence[Window], batches: Sequence[int], missing: bool) -> Score:
    """Answer, reduce and restore every window; with `missing`, answer again without each source in turn."""
    task, reducers = deployed.task, deployed.reducers
    confusions, mixed = count_answers(map(deployed.classifier.predict, windows), len(task.labels))
    without = {}
    if missing and len(reducers) > 1:
        for source in reducers:
            rows = (deployed.classifier.predict(window, missing=frozenset({source})) for window in windows)
            without[source] = count_answers(rows, len(task.labels))[0]
    return measure_codes(windows, reducers, batches, task.label_ids, confusions, mixed, without)


def measure_codes(
    windows: Sequence[Window],
    reducers: Mapping[str, Reducer],
    batches: Sequence[int],
    label_ids: Sequence[int],
    confusions: dict[str, Counts],
    mixed: int,
    without: dict[str, dict[str, Counts]],
) -> Score:
    """Add to the answers what the codes of these windows cost and keep."""
    encoded, spent = [], []
    for window in windows:
        started = time.perf_counter()
        encoded.append(encode_window(window, reducers, label_ids))
        spent.append(time.perf_counter() - started)
    return Score(
        confusions,
        mixed,
        code_bytes(encoded),
        [measure_traffic(encoded, reducers, batch) for batch in batches],
        sum(reducer.operations for reducer in reducers.values()),
        float(np.median(spent)) * 1e6 if spent else 0.0,
        restoration_error(windows, encoded, reducers),
        without,
    )


def restoration_error(
    windows: Sequence[Window], encoded: Sequence[Encoded], reducers: Mapping[str, Reducer]
) -> float | None:
    """Return the mean over channels of squared error / variance; None where a source cannot be restored.

    Channels that never change are left out: their variance is 0. Error and variance are those of all windows given.
    """
    if not windows or not all(reducer.restores for reducer in reducers.values()):
        return None
    ratios = []
    for source, reducer in reducers.items():
        true = np.stack([window.samples[source] for window in windows]).astype(np.float64)
        came = np.stack([reducer.decode(window.codes[source]) for window in encoded])
        variance = true.var(axis=(0, 1))
        error = ((came - true) ** 2).mean(axis=(0, 1))
        ratios.append(error[variance > 0] / variance[variance > 0])
    every = np.concatenate(ratios)
    return float(every.mean()) if len(every) else 0.0


def count_answers(predictions: Iterable[Prediction], classes: int) -> tuple[dict[str, Counts], int]:
    """Return a confusion matrix for each stream, and how many windows were left out for want of one activity."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    mixed = 0
    for prediction in predictions:
        if prediction.truth is None:
            mixed += 1
            continue
        pairs.setdefault(prediction.stream, []).append((prediction.truth, prediction.answer))
    matrices = {
        stream: confusion_matrix([truth for truth, _ in rows], [answer for _, answer in rows], classes).tolist()
        for stream, rows in pairs.items()
    }
    return matrices, mixed


def check_task(task: Task, length: int, hop: int, label_ids: Sequence[int], what: str) -> None:
    """Refuse a system that was made for other windows or classes than the study scores, with ModelError."""
    came = (task.stream.length, task.stream.hop, list(task.label_ids))
    if came != (length, hop, list(label_ids)):
        raise ModelError(
            f"{what}: the trainer made a system for windows of {came[0]} samples every {came[1]} and labels {came[2]}; "
            f"expected {length} every {hop} and {list(label_ids)}"
        )
