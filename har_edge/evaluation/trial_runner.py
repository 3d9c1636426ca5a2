"""Run one trial of a study: fit its system, unless that came along, and score it.

Everything a trial needs comes as an argument, and everything it makes is returned, so that it runs on any machine.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from har_edge import __version__
from har_edge.codecs.catalog import make_reducer
from har_edge.config.task import with_reducers
from har_edge.data.description import StreamDescription
from har_edge.data.grouping import regroup, regroup_recording
from har_edge.data.recording import Recording
from har_edge.errors import HarEdgeError
from har_edge.evaluation.baseline import TRAINING_HOP, predict_windows
from har_edge.evaluation.study import NO_REDUCTION, System, Trainer, Variant
from har_edge.evaluation.trial import (
    Deployed,
    Score,
    Trial,
    TrialResult,
    check_task,
    count_answers,
    measure_codes,
    score_deployed,
)
from har_edge.evaluation.trial_store import digest, fingerprint_of

# To be raised when stored results and systems are no longer right.
FORMAT = 2


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """Everything that all trials of a study share.

    `fingerprints` holds the fingerprint of each recording by stream. `recipe` is a text of all that decides the weights
    besides variant, training and seed. `out` is the folder of the store. `make_trainer` is sent to other processes, so
    it must be a function of a module or a partial of one. Processes elsewhere get the variables of `environment` that
    they lack.
    """

    recordings: Sequence[Recording]
    fingerprints: Mapping[str, str]
    description: StreamDescription
    length: int
    hop: int
    batches: tuple[int, ...]
    missing: bool
    recipe: str
    out: Path
    make_trainer: Callable[[], Trainer]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def label_ids(self) -> list[int]:
        """The labels that are classes: all but the null label."""
        return [label for label in range(len(self.description.labels)) if label != self.description.null_label]

    @property
    def labels(self) -> list[str]:
        """The names of the classes."""
        return [self.description.labels[label] for label in self.label_ids]

    @property
    def raw_bytes_per_s(self) -> float:
        """The bytes that a stream measures in a second: each sample of each channel once, as float32."""
        return self.description.rate_hz * sum(len(source.channels) for source in self.description.sources) * 4

    def system_key(self, trial: Trial) -> str:
        """Return the hash of all that decides the system of a trial."""
        fold = trial.fold
        training = [self.fingerprints[stream] for stream in fold.train], fingerprint_of(fold.chosen)
        windows = repr(self.description), self.length, self.hop
        return digest(FORMAT, __version__, self.recipe, windows, trial.variant, training, trial.seed)

    def trial_key(self, trial: Trial) -> str:
        """Return the hash of all that decides the result of a trial."""
        fold = trial.fold
        test = [self.fingerprints[stream] for stream in fold.test], fingerprint_of(fold.asked)
        return digest(self.system_key(trial), trial.protocol, fold.name, test, self.batches, self.missing)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A trial to run, with the systems that were fitted before: its own, and that of its unreduced variant."""

    trial: Trial
    system: System | None = None
    unreduced: System | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a trial: its result, or the error it met, and the systems that were fitted for it, by their keys."""

    result: TrialResult | None
    error: str
    systems: Mapping[str, System]


class TrialRunner:
    """Runs trials one by one, with one trainer."""

    def __init__(self, config: StudyConfig) -> None:
        self._config = config
        self._grouped: dict[str, list[Recording]] = {}

    @cached_property
    def _trainer(self) -> Trainer:
        return self._config.make_trainer()

    def run(self, assignment: Assignment) -> Completion:
        """Fit the systems that are missing, and score; return any error instead of raising it."""
        fitted: dict[str, System] = {}
        try:
            return Completion(self._run(assignment, fitted), "", fitted)
        except HarEdgeError as error:
            return Completion(None, f"{type(error).__name__}: {error}", fitted)
        except Exception:  # a defect of one trainer must not end the other trials, and its place must be told
            return Completion(None, traceback.format_exc().rstrip(), fitted)

    def _run(self, assignment: Assignment, fitted: dict[str, System]) -> TrialResult:
        started = time.perf_counter()
        config, trial = self._config, assignment.trial
        if trial.variant is None:
            score = self._score_baseline(trial)
        else:
            system = assignment.system or self._fit(trial, trial.variant, assignment.unreduced, fitted)
            score = self._score_system(trial, trial.variant, system)
        return TrialResult(
            key=config.trial_key(trial),
            variant=trial.variant,
            protocol=trial.protocol,
            fold=trial.fold.name,
            seed=trial.seed,
            score=score,
            seconds=time.perf_counter() - started,
            system=None if trial.variant is None else config.system_key(trial),
        )

    def _score_system(self, trial: Trial, variant: Variant, system: System) -> Score:
        config = self._config
        sources = regroup(config.description, variant.grouping).sources
        channels = {source.name: len(source.channels) for source in sources}
        windows = list(trial.fold.test_windows(self._recordings(variant.grouping), config.length, config.hop))
        with tempfile.TemporaryDirectory(prefix="har-edge-trial-") as folder:
            for name, content in system.files.items():
                (Path(folder) / name).write_bytes(content)
            deployed = Deployed(system, Path(folder), channels)
            return score_deployed(deployed, windows, config.batches, config.missing)

    def _fit(self, trial: Trial, variant: Variant, unreduced: System | None, fitted: dict[str, System]) -> System:
        """Fit the system of a trial, and the unreduced one if it is needed and missing; add both to `fitted`."""
        config = self._config
        if variant.needs_unreduced and unreduced is None:
            unreduced = self._fit(replace(trial, variant=variant.unreduced), variant.unreduced, None, fitted)
        training = trial.fold.training(self._recordings(variant.grouping))
        system = self._trainer.fit(variant, training, trial.seed, unreduced if variant.needs_unreduced else None)
        check_task(system.task, config.length, config.hop, config.label_ids, str(trial))
        if variant.reducer == NO_REDUCTION:  # what is shipped sends the model's own integers; here none means none
            whole = with_reducers(system.task, dict.fromkeys(system.task.inputs, NO_REDUCTION))
            system = replace(system, task=whole)
        fitted[config.system_key(replace(trial, variant=variant))] = system
        return system

    def _score_baseline(self, trial: Trial) -> Score:
        """Score the trees; they take whole windows, so what is sent is what is sent without reduction."""
        config, fold = self._config, trial.fold
        windows = list(fold.test_windows(config.recordings, config.length, config.hop))
        known = fold.training(config.recordings).windows(config.length, TRAINING_HOP)
        predictions = predict_windows(known, windows, config.label_ids, trial.seed)
        confusions, mixed = count_answers(predictions, len(config.label_ids))
        reducers = {
            source.name: make_reducer(NO_REDUCTION, config.length, len(source.channels))
            for source in config.description.sources
        }
        return measure_codes(windows, reducers, config.batches, config.label_ids, confusions, mixed, {})

    def _recordings(self, grouping: str) -> list[Recording]:
        if grouping not in self._grouped:
            description = self._config.description
            self._grouped[grouping] = [
                regroup_recording(recording, description, grouping) for recording in self._config.recordings
            ]
        return self._grouped[grouping]
