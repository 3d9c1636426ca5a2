"""A study from variants to rows, with a trainer that takes milliseconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.config.task import Task, with_reducers
from har_edge.data.description import load_description
from har_edge.data.recording import Recording
from har_edge.data.synthetic import synthesize
from har_edge.errors import ConfigError, ModelError
from har_edge.evaluation.engine import SerialEngine, open_engine
from har_edge.evaluation.executor import TrialOutcome, run_trials
from har_edge.evaluation.metrics import accuracy, macro_f1
from har_edge.evaluation.prediction import Prediction
from har_edge.evaluation.protocol import Protocol, loso_folds, random_folds
from har_edge.evaluation.rows import ResultAggregator, Row
from har_edge.evaluation.study import Downstream, System, Variant
from har_edge.evaluation.trial import Trial, count_answers
from har_edge.evaluation.trial_runner import Assignment, Completion, StudyConfig
from har_edge.evaluation.trial_store import TrialStore, fingerprint
from tests.evaluation.trainer import BROKEN, FATAL, REFUSED, MeansTrainer

LENGTH, HOP = 250, 125
NONE = Variant("none", Downstream.CODES)


@pytest.fixture(scope="module")
def three() -> list[Recording]:
    return synthesize(["subject1", "subject2", "subject10"], seconds_per_activity=12.0)


@pytest.fixture
def config(three: list[Recording], tmp_path: Path) -> StudyConfig:
    return make_config(three, tmp_path)


def make_config(recordings: list[Recording], folder: Path, **changes: object) -> StudyConfig:
    description = load_description("mhealth")
    values = {
        "recordings": recordings,
        "fingerprints": {recording.stream: fingerprint(recording) for recording in recordings},
        "description": description,
        "length": LENGTH,
        "hop": HOP,
        "batches": (1, 4),
        "missing": False,
        "recipe": "means",
        "out": folder / "out",
        "make_trainer": partial(MeansTrainer, description, LENGTH, HOP, folder / "log"),
    }
    return StudyConfig(**(values | changes))  # type: ignore[arg-type]


def loso(config: StudyConfig, *variants: Variant | None, seeds: tuple[int, ...] = (0,)) -> list[Trial]:
    folds = loso_folds([recording.stream for recording in config.recordings])
    return [Trial(variant, Protocol.LOSO, fold, seed) for variant in variants for seed in seeds for fold in folds]


def study(config: StudyConfig, trials: list[Trial], workers: int = 1) -> tuple[list[TrialOutcome], list[Row]]:
    aggregator, outcomes, rows = ResultAggregator(config, trials, "here"), [], []
    with closing(open_engine("local", config, workers)) as engine:
        for outcome in run_trials(config, trials, engine):
            outcomes.append(outcome)
            rows += aggregator.add(outcome)
    return outcomes, rows


def fits(config: StudyConfig) -> list[str]:
    log = config.out.parent / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_rows_say_what_was_measured(config: StudyConfig, three: list[Recording]) -> None:
    variants = [NONE, Variant("paa:10+q8", Downstream.RESTORE), Variant("paa:10+q8", Downstream.CODES)]
    outcomes, rows = study(config, loso(config, *variants))
    assert all(outcome.result and not outcome.reused for outcome in outcomes)
    assert [(row.name, row.batch) for row in rows] == [
        ("none", 1),
        ("none batch 4", 4),
        ("paa:10+q8 restore", 1),
        ("paa:10+q8 restore batch 4", 4),
        ("paa:10+q8 codes", 1),
        ("paa:10+q8 codes batch 4", 4),
    ]
    none, restored, codes = rows[0], rows[2], rows[4]
    assert list(none.per_subject) == ["subject1", "subject2", "subject10"]
    assert none.accuracy == pytest.approx(np.mean(list(none.per_subject.values())))
    assert none.accuracy_std == pytest.approx(np.std(list(none.per_subject.values()), ddof=1))
    assert none.accuracy_pooled == accuracy(np.array(none.confusion))
    assert none.macro_f1_pooled == macro_f1(np.array(none.confusion))
    assert none.accuracy > 0.3 and codes.accuracy > 0.3  # chance is 0.08
    assert none.raw_bytes_per_s == 50 * 23 * 4 and none.code_bytes_per_s == 2 * none.raw_bytes_per_s
    assert none.error == 0.0 and restored.error == codes.error and 0 < (restored.error or 0) < 1
    # 25 pieces and 8 bytes of range a channel, 23 channels, a window every 2.5 s
    assert restored.code_bytes_per_s == (25 + 8) * 23 / 2.5
    assert restored.code_bytes_per_s < restored.wire_bytes_per_s < restored.code_bytes_per_s + 3 * 100 / 2.5
    assert rows[3].wire_bytes_per_s < restored.wire_bytes_per_s and rows[3].accuracy == restored.accuracy
    assert restored.reduction == 1 - restored.wire_bytes_per_s / restored.raw_bytes_per_s
    assert restored.ack_bytes_per_s == pytest.approx(3 * 4 / 2.5)
    assert rows[3].ack_bytes_per_s < restored.ack_bytes_per_s
    assert restored.operations > 0 and restored.encode_us > 0
    # Restored windows enter the very model that was trained on whole ones.
    store = TrialStore(config.out)
    systems = {o.trial.variant: store.system(o.result.system or "") for o in outcomes if o.result and o.trial.seed == 0}
    whole, other = systems[variants[0]], systems[variants[1]]
    assert whole and other and whole.model == other.model and other.task.inputs["chest"].reducer == "paa:10+q8"


@dataclass(frozen=True)
class Shipping(MeansTrainer):
    """Makes sensors of the unreduced variant send something else, as one that ships int8 models does."""

    def task(self, variant: Variant, sources: list[str]) -> Task:
        task = super().task(variant, sources)
        return with_reducers(task, dict.fromkeys(sources, "q16")) if variant == NONE else task


def test_none_sends_windows_as_they_are_whatever_would_be_shipped(config: StudyConfig, three: list[Recording]) -> None:
    _, rows = study(config, loso(config, NONE))
    ship = partial(Shipping, config.description, LENGTH, HOP, config.out.parent / "log")
    other = make_config(three, config.out.parent, make_trainer=ship, recipe="shipping")
    _, again = study(other, loso(other, NONE))
    assert [timeless(row) for row in again] == [timeless(row) for row in rows]


def test_a_second_run_fits_nothing_and_gives_the_same(config: StudyConfig) -> None:
    trials = loso(config, NONE, Variant("paa:5", Downstream.RESTORE))
    _, rows = study(config, trials)
    assert len(fits(config)) == 6
    outcomes, again = study(config, trials)
    assert all(outcome.reused for outcome in outcomes)
    assert again == rows and len(fits(config)) == 6


def test_what_was_stopped_goes_on_where_it_was(config: StudyConfig) -> None:
    trials = loso(config, NONE)
    next(run_trials(config, trials, SerialEngine(config)))
    assert len(fits(config)) == 1
    outcomes, rows = study(config, trials)
    assert sum(outcome.reused for outcome in outcomes) == 1
    assert len(fits(config)) == 3 and len(rows) == 2


def test_other_figures_of_a_stored_system_need_no_fit(config: StudyConfig, three: list[Recording]) -> None:
    trials = loso(config, NONE)
    _, before = study(config, trials)
    wider = make_config(three, config.out.parent, batches=(8,))
    _, rows = study(wider, trials)
    assert len(fits(config)) == 3 and rows[0].batch == 8 and rows[0].accuracy == before[0].accuracy


@pytest.mark.parametrize("change", ["recipe", "data", "seed", "length"])
def test_whatever_decides_a_system_makes_it_anew(
    config: StudyConfig, three: list[Recording], change: str, tmp_path: Path
) -> None:
    study(config, loso(config, NONE)[:1])
    other, seed = config, 0
    if change == "recipe":
        other = make_config(three, tmp_path, recipe="other")
    elif change == "data":
        other = make_config([three[0], *synthesize(["subject2", "subject10"], seed=1)], tmp_path)
    elif change == "seed":
        seed = 1
    else:
        short = partial(MeansTrainer, config.description, 200, HOP, tmp_path / "log")
        other = make_config(three, tmp_path, length=200, make_trainer=short)
    outcomes, _ = study(other, loso(other, NONE, seeds=(seed,))[:1])
    assert not outcomes[0].reused and len(fits(config)) == 2


def test_a_changed_test_recording_is_scored_anew_but_nothing_is_fitted(
    config: StudyConfig, three: list[Recording], tmp_path: Path
) -> None:
    study(config, loso(config, NONE)[:1])  # tested on subject1
    other = make_config([*synthesize(["subject1"], seed=1), *three[1:]], tmp_path)
    outcomes, _ = study(other, loso(other, NONE)[:1])
    assert not outcomes[0].reused and len(fits(config)) == 1


def test_a_restored_design_alone_fits_the_model_that_it_needs(config: StudyConfig) -> None:
    outcomes, rows = study(config, loso(config, Variant("paa:5", Downstream.RESTORE)))
    assert len(rows) == 2 and all(outcome.result for outcome in outcomes)
    assert len(fits(config)) == 6 and fits(config)[0].startswith("none (codes")


def test_one_failure_is_named_and_the_rest_goes_on(config: StudyConfig) -> None:
    variants = [
        NONE,
        Variant(REFUSED, Downstream.CODES),
        Variant(BROKEN, Downstream.CODES),
        Variant("paa:5", NONE.downstream),
    ]
    outcomes, rows = study(config, loso(config, *variants))
    assert {row.reducer for row in rows} == {"none", "paa:5"}
    failed = [outcome for outcome in outcomes if outcome.result is None]
    assert [str(outcome.trial) for outcome in failed[:3]] == [
        f"paa:7 (codes, location, int8), loso fold {name}, seed 0" for name in ("subject1", "subject2", "subject10")
    ]
    assert failed[0].error == "ConfigError: this trainer wants nothing of sevens"
    assert "ZeroDivisionError: a bug" in failed[3].error and "Traceback" in failed[3].error


def test_what_needs_a_failed_model_fails_without_a_try(config: StudyConfig, three: list[Recording]) -> None:
    wrong = partial(MeansTrainer, config.description, 200, HOP, config.out.parent / "log")
    other = make_config(three, config.out.parent, make_trainer=wrong)
    outcomes, rows = study(other, loso(other, NONE, Variant("paa:5", Downstream.RESTORE)))
    assert rows == [] and len(fits(config)) == 3
    assert re.search(r"the trainer made a system for windows of 200 samples every 125", outcomes[0].error)
    needing = [outcome for outcome in outcomes if outcome.trial.variant != NONE]
    assert all(outcome.error.startswith("needs what failed: none (codes, location, int8), loso") for outcome in needing)


def test_several_processes_do_the_same_and_one_that_dies_takes_only_its_own_job(
    config: StudyConfig, three: list[Recording], tmp_path: Path
) -> None:
    variants = [NONE, Variant("paa:5", Downstream.RESTORE), Variant(FATAL, Downstream.CODES)]
    outcomes, rows = study(config, loso(config, *variants), workers=2)
    (tmp_path / "alone").mkdir()
    alone = make_config(three, tmp_path / "alone")
    _, expected = study(alone, loso(alone, *variants[:2]))
    assert {row.key: timeless(row) for row in rows} == {row.key: timeless(row) for row in expected}
    dead = [outcome for outcome in outcomes if outcome.result is None]
    assert len(dead) == 3
    assert all(outcome.error == "its process ended with EXIT(9); is there enough memory?" for outcome in dead)
    assert len([line for line in fits(config) if line.startswith("none")]) == 3  # nothing was fitted twice


def timeless(row: Row) -> Row:
    return msgspec.structs.replace(row, encode_us=0.0)


def test_groupings_have_sources_of_their_own(config: StudyConfig) -> None:
    _, rows = study(config, loso(config, Variant("paa:5", Downstream.CODES, grouping="all")))
    assert rows[0].name == "paa:5 codes all" and rows[0].accuracy > 0.3
    assert rows[0].raw_bytes_per_s == 50 * 23 * 4


def test_the_random_split_scores_the_same_windows_and_flatters(config: StudyConfig, three: list[Recording]) -> None:
    folds = random_folds(three, LENGTH, HOP, 0)
    _, honest = study(config, loso(config, NONE))
    _, rows = study(config, [Trial(NONE, Protocol.RANDOM, fold, 0) for fold in folds])
    assert rows[0].windows == honest[0].windows
    assert np.array_equal(np.sum(rows[0].confusion, axis=1), np.sum(honest[0].confusion, axis=1))
    assert rows[0].accuracy > honest[0].accuracy


def test_seeds_are_averaged_within_a_subject(config: StudyConfig) -> None:
    """This trainer does not care for seeds, so two of them must change no figure but the pooled counts."""
    _, one = study(config, loso(config, NONE))
    _, two = study(config, loso(config, NONE, seeds=(0, 1)))
    assert len(fits(config)) == 6
    assert np.array_equal(two[0].confusion, 2 * np.array(one[0].confusion))
    assert timeless(two[0]) == msgspec.structs.replace(timeless(one[0]), confusion=two[0].confusion)


def test_the_baseline_is_a_row_of_its_own(config: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr("har_edge.evaluation.baseline.TREES", 20)
    _, rows = study(config, loso(config, None, NONE))
    trees, none = rows[0], rows[2]
    assert trees.name == "extra-trees on hand-made features" and trees.accuracy > 0.5
    assert (trees.wire_bytes_per_s, trees.windows) == (none.wire_bytes_per_s, none.windows)


def test_missing_sources_cost_accuracy(config: StudyConfig, three: list[Recording]) -> None:
    other = make_config(three, config.out.parent, missing=True)
    _, rows = study(other, loso(other, NONE))
    assert list(rows[0].without) == ["chest", "ankle", "arm"]
    assert all(figure < rows[0].accuracy for figure in rows[0].without.values())


def test_a_damaged_store_is_measured_again(config: StudyConfig, caplog: pytest.LogCaptureFixture) -> None:
    trials = loso(config, NONE)[:1]
    (first,), _ = study(config, trials)
    assert first.result is not None
    cell = config.out / "cells" / f"{first.result.key}.json"
    model = config.out / "systems" / str(first.result.system) / "model.tflite"
    cell.write_bytes(cell.read_bytes()[:-9])
    model.write_bytes(b"\0" + model.read_bytes())
    (second,), _ = study(config, trials)
    assert second.result is not None and not second.reused and len(fits(config)) == 2
    assert second.result.score.confusions == first.result.score.confusions
    assert "is damaged" in caplog.text and "model.tflite has another hash; fitting again" in caplog.text
    assert sorted(path.name for path in (config.out / "systems").iterdir()) == [first.result.system]


def test_a_system_with_files_that_its_task_does_not_name_is_refused(config: StudyConfig) -> None:
    made = config.make_trainer().fit(NONE, loso(config, NONE)[0].fold.training(config.recordings), 0, None)
    with pytest.raises(ModelError, match=r"a system has the files \{'pca.npz': '[0-9a-f]{64}'\}, but its task names"):
        TrialStore(config.out).put_system("key", System(made.task, made.model, {"pca.npz": b"x"}))


class OtherVersion(SerialEngine):
    """Has workers that compute other keys, as another version of har-edge does."""

    def submit(self, assignment: Assignment) -> Future[Completion]:
        done = super().submit(assignment).result()
        assert done.result is not None
        future: Future[Completion] = Future()
        future.set_result(replace(done, result=msgspec.structs.replace(done.result, key="other"), systems={}))
        return future


def test_results_of_workers_with_another_version_are_not_taken(config: StudyConfig) -> None:
    (outcome,) = run_trials(config, loso(config, NONE)[:1], OtherVersion(config))
    assert outcome.result is None
    assert outcome.error == "its worker has another version of har-edge or of the recordings"
    assert not (config.out / "cells").exists()


def test_a_store_that_cannot_be_written_is_named_and_the_rest_goes_on(config: StudyConfig) -> None:
    config.out.mkdir()
    (config.out / "cells").write_text("in the way")
    outcomes = list(run_trials(config, loso(config, NONE), SerialEngine(config)))
    assert [outcome.error.partition(":")[0] for outcome in outcomes] == ["FileExistsError"] * 3


@pytest.mark.parametrize("text", ["dask", "dask://", "ray://host:1", "tcp://host:8786", "dask://host:8786/x", ""])
def test_an_engine_that_cannot_be_is_refused(config: StudyConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"--engine {text}: expected local, or dask://HOST:PORT of a scheduler"):
        open_engine(text, config, None)


def test_a_cluster_needs_its_library(config: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_edge.extras.is_installed", lambda module: False)
    with pytest.raises(
        ConfigError, match=r"needs dask.distributed, which is not installed; pip install 'har-edge\[dask\]'"
    ):
        open_engine("dask://127.0.0.1:8786", config, None)


def test_answers_are_counted_by_subject() -> None:
    rows = [("a", 0, 1), ("a", 1, 1), ("b", None, 0), ("b", 0, 0)]
    predictions = (Prediction(stream, 0, truth, answer, np.zeros(2)) for stream, truth, answer in rows)
    assert count_answers(predictions, 2) == ({"a": [[0, 1], [0, 1]], "b": [[1, 0], [0, 0]]}, 1)


def test_outcomes_come_one_by_one(config: StudyConfig) -> None:
    outcomes: Iterator[TrialOutcome] = run_trials(config, loso(config, NONE), SerialEngine(config))
    next(outcomes)
    assert len(fits(config)) == 1
