"""Doing one cell of a study after the other: what is stored is taken, the rest is fitted and scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from har_edge import __version__
from har_edge.codecs.catalog import make_reducer
from har_edge.config.task import with_reducers
from har_edge.data.description import StreamDescription
from har_edge.data.grouping import regroup, regroup_recording
from har_edge.data.recording import Recording
from har_edge.evaluation.baseline import TRAINING_HOP, predict_windows
from har_edge.evaluation.cell import (
    Cell,
    Deployed,
    Job,
    Score,
    check_task,
    count_answers,
    measure_codes,
    score_deployed,
)
from har_edge.evaluation.store import Store, digest, fingerprint_of
from har_edge.evaluation.study import NO_REDUCTION, Design, System, Trainer

# To be raised when the cells and systems of before are no longer right.
FORMAT = 2


@dataclass(frozen=True, slots=True)
class Setting:
    """What all cells of a study share.

    `prints` is the fingerprint of each recording; `recipe` says all that decides the weights besides design, training
    and seed; `out` is the folder of the store. `make_trainer` must be something that can be sent to another process: a
    module's function, or a partial of one.
    """

    recordings: Sequence[Recording]
    prints: Mapping[str, str]
    description: StreamDescription
    length: int
    hop: int
    batches: tuple[int, ...]
    missing: bool
    recipe: str
    out: Path
    make_trainer: Callable[[], Trainer]

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
        """What a stream measures: each sample of each channel once, as float32."""
        return self.description.rate_hz * sum(len(source.channels) for source in self.description.sources) * 4

    def system_key(self, job: Job) -> str:
        """Return the hash of all that decides the system of a job."""
        fold = job.fold
        training = [self.prints[stream] for stream in fold.train], fingerprint_of(fold.chosen)
        windows = repr(self.description), self.length, self.hop
        return digest(FORMAT, __version__, self.recipe, windows, job.design, training, job.seed)

    def cell_key(self, job: Job) -> str:
        """Return the hash of all that decides a cell."""
        fold = job.fold
        test = [self.prints[stream] for stream in fold.test], fingerprint_of(fold.asked)
        return digest(self.system_key(job), job.protocol, fold.name, test, self.batches, self.missing)


class Bench:
    """Does jobs one by one, with one trainer."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._store = Store(setting.out)
        self._grouped: dict[str, list[Recording]] = {}

    @cached_property
    def _trainer(self) -> Trainer:
        return self._setting.make_trainer()

    def do(self, job: Job) -> Cell:
        """Fit (or take the stored system) and score; store and return the cell."""
        started = time.perf_counter()
        score = self._score_baseline(job) if job.design is None else self._score_design(job, job.design)
        cell = Cell(
            key=self._setting.cell_key(job),
            design=job.design,
            protocol=job.protocol,
            fold=job.fold.name,
            seed=job.seed,
            score=score,
            seconds=time.perf_counter() - started,
            system=None if job.design is None else self._setting.system_key(job),
        )
        self._store.put_cell(cell)
        return cell

    def _score_design(self, job: Job, design: Design) -> Score:
        setting = self._setting
        system = self._system(job, design)
        sources = regroup(setting.description, design.grouping).sources
        channels = {source.name: len(source.channels) for source in sources}
        deployed = Deployed(system, self._store.system_folder(setting.system_key(job)), channels)
        windows = list(job.fold.test_windows(self._recordings(design.grouping), setting.length, setting.hop))
        return score_deployed(deployed, windows, setting.batches, setting.missing)

    def _system(self, job: Job, design: Design) -> System:
        """Return the system of a job, stored; fit it, and the unreduced one if it needs that, where it is not."""
        setting, key = self._setting, self._setting.system_key(job)
        stored = self._store.system(key)
        if stored is not None:
            return stored
        unreduced = None
        if design.needs_unreduced:
            unreduced = self._system(replace(job, design=design.unreduced), design.unreduced)
        training = job.fold.training(self._recordings(design.grouping))
        system = self._trainer.fit(design, training, job.seed, unreduced)
        check_task(system.task, setting.length, setting.hop, setting.label_ids, str(job))
        if design.reducer == NO_REDUCTION:  # what is shipped sends the model's own integers; here none means none
            whole = with_reducers(system.task, dict.fromkeys(system.task.inputs, NO_REDUCTION))
            system = replace(system, task=whole)
        self._store.put_system(key, system)
        return system

    def _score_baseline(self, job: Job) -> Score:
        """Score the trees; they take whole windows, so what is sent is what is sent without reduction."""
        setting, fold = self._setting, job.fold
        windows = list(fold.test_windows(setting.recordings, setting.length, setting.hop))
        known = fold.training(setting.recordings).windows(setting.length, TRAINING_HOP)
        predictions = predict_windows(known, windows, setting.label_ids, job.seed)
        confusions, mixed = count_answers(predictions, len(setting.label_ids))
        reducers = {
            source.name: make_reducer(NO_REDUCTION, setting.length, len(source.channels))
            for source in setting.description.sources
        }
        return measure_codes(windows, reducers, setting.batches, setting.label_ids, confusions, mixed, {})

    def _recordings(self, grouping: str) -> list[Recording]:
        if grouping not in self._grouped:
            description = self._setting.description
            self._grouped[grouping] = [
                regroup_recording(recording, description, grouping) for recording in self._setting.recordings
            ]
        return self._grouped[grouping]
