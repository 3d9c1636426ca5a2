"""A study from designs to rows, with a trainer that takes milliseconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.config.task import Task, with_reducers
from har_edge.data.description import load_description
from har_edge.data.recording import Recording
from har_edge.data.synthetic import synthesize
from har_edge.errors import ModelError
from har_edge.evaluation.cell import Job, count_answers
from har_edge.evaluation.crew import Outcome, do_jobs
from har_edge.evaluation.metrics import accuracy, macro_f1
from har_edge.evaluation.prediction import Prediction
from har_edge.evaluation.protocol import Protocol, loso_folds, random_folds
from har_edge.evaluation.rows import Row, Tally
from har_edge.evaluation.store import Store, fingerprint
from har_edge.evaluation.study import Design, Downstream, System
from har_edge.evaluation.work import Setting
from tests.evaluation.trainer import BROKEN, FATAL, REFUSED, MeansTrainer

LENGTH, HOP = 250, 125
NONE = Design("none", Downstream.CODES)


@pytest.fixture(scope="module")
def three() -> list[Recording]:
    return synthesize(["subject1", "subject2", "subject10"], seconds_per_activity=12.0)


@pytest.fixture
def setting(three: list[Recording], tmp_path: Path) -> Setting:
    return make_setting(three, tmp_path)


def make_setting(recordings: list[Recording], folder: Path, **changes: object) -> Setting:
    description = load_description("mhealth")
    values = {
        "recordings": recordings,
        "prints": {recording.stream: fingerprint(recording) for recording in recordings},
        "description": description,
        "length": LENGTH,
        "hop": HOP,
        "batches": (1, 4),
        "missing": False,
        "recipe": "means",
        "out": folder / "out",
        "make_trainer": partial(MeansTrainer, description, LENGTH, HOP, folder / "log"),
    }
    return Setting(**(values | changes))  # type: ignore[arg-type]


def loso(setting: Setting, *designs: Design | None, seeds: tuple[int, ...] = (0,)) -> list[Job]:
    folds = loso_folds([recording.stream for recording in setting.recordings])
    return [Job(design, Protocol.LOSO, fold, seed) for design in designs for seed in seeds for fold in folds]


def study(setting: Setting, jobs: list[Job], workers: int = 1) -> tuple[list[Outcome], list[Row]]:
    tally, outcomes, rows = Tally(setting, jobs, "here"), [], []
    for outcome in do_jobs(setting, jobs, workers):
        outcomes.append(outcome)
        rows += tally.add(outcome)
    return outcomes, rows


def fits(setting: Setting) -> list[str]:
    log = setting.out.parent / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_rows_say_what_was_measured(setting: Setting, three: list[Recording]) -> None:
    designs = [NONE, Design("paa:10+q8", Downstream.RESTORE), Design("paa:10+q8", Downstream.CODES)]
    outcomes, rows = study(setting, loso(setting, *designs))
    assert all(outcome.cell and not outcome.reused for outcome in outcomes)
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
    store = Store(setting.out)
    systems = {o.job.design: store.system(o.cell.system or "") for o in outcomes if o.cell and o.job.seed == 0}
    whole, other = systems[designs[0]], systems[designs[1]]
    assert whole and other and whole.model == other.model and other.task.inputs["chest"].reducer == "paa:10+q8"


@dataclass(frozen=True)
class Shipping(MeansTrainer):
    """Makes sensors of the unreduced design send something else, as one that ships int8 models does."""

    def task(self, design: Design, sources: list[str]) -> Task:
        task = super().task(design, sources)
        return with_reducers(task, dict.fromkeys(sources, "q16")) if design == NONE else task


def test_none_sends_windows_as_they_are_whatever_would_be_shipped(setting: Setting, three: list[Recording]) -> None:
    _, rows = study(setting, loso(setting, NONE))
    ship = partial(Shipping, setting.description, LENGTH, HOP, setting.out.parent / "log")
    other = make_setting(three, setting.out.parent, make_trainer=ship, recipe="shipping")
    _, again = study(other, loso(other, NONE))
    assert [timeless(row) for row in again] == [timeless(row) for row in rows]


def test_a_second_run_fits_nothing_and_gives_the_same(setting: Setting) -> None:
    jobs = loso(setting, NONE, Design("paa:5", Downstream.RESTORE))
    _, rows = study(setting, jobs)
    assert len(fits(setting)) == 6
    outcomes, again = study(setting, jobs)
    assert all(outcome.reused for outcome in outcomes)
    assert again == rows and len(fits(setting)) == 6


def test_what_was_stopped_goes_on_where_it_was(setting: Setting) -> None:
    jobs = loso(setting, NONE)
    with closing(do_jobs(setting, jobs, 1)) as begun:
        next(begun)
    assert len(fits(setting)) == 1
    outcomes, rows = study(setting, jobs)
    assert sum(outcome.reused for outcome in outcomes) == 1
    assert len(fits(setting)) == 3 and len(rows) == 2


def test_other_figures_of_a_stored_system_need_no_fit(setting: Setting, three: list[Recording]) -> None:
    jobs = loso(setting, NONE)
    _, before = study(setting, jobs)
    wider = make_setting(three, setting.out.parent, batches=(8,))
    _, rows = study(wider, jobs)
    assert len(fits(setting)) == 3 and rows[0].batch == 8 and rows[0].accuracy == before[0].accuracy


@pytest.mark.parametrize("change", ["recipe", "data", "seed", "length"])
def test_whatever_decides_a_system_makes_it_anew(
    setting: Setting, three: list[Recording], change: str, tmp_path: Path
) -> None:
    study(setting, loso(setting, NONE)[:1])
    other, seed = setting, 0
    if change == "recipe":
        other = make_setting(three, tmp_path, recipe="other")
    elif change == "data":
        other = make_setting([three[0], *synthesize(["subject2", "subject10"], seed=1)], tmp_path)
    elif change == "seed":
        seed = 1
    else:
        short = partial(MeansTrainer, setting.description, 200, HOP, tmp_path / "log")
        other = make_setting(three, tmp_path, length=200, make_trainer=short)
    outcomes, _ = study(other, loso(other, NONE, seeds=(seed,))[:1])
    assert not outcomes[0].reused and len(fits(setting)) == 2


def test_a_changed_test_recording_is_scored_anew_but_nothing_is_fitted(
    setting: Setting, three: list[Recording], tmp_path: Path
) -> None:
    study(setting, loso(setting, NONE)[:1])  # tested on subject1
    other = make_setting([*synthesize(["subject1"], seed=1), *three[1:]], tmp_path)
    outcomes, _ = study(other, loso(other, NONE)[:1])
    assert not outcomes[0].reused and len(fits(setting)) == 1


def test_a_restored_design_alone_fits_the_model_that_it_needs(setting: Setting) -> None:
    outcomes, rows = study(setting, loso(setting, Design("paa:5", Downstream.RESTORE)))
    assert len(rows) == 2 and all(outcome.cell for outcome in outcomes)
    assert len(fits(setting)) == 6 and fits(setting)[0].startswith("none (codes")


def test_one_failure_is_named_and_the_rest_goes_on(setting: Setting) -> None:
    designs = [
        NONE,
        Design(REFUSED, Downstream.CODES),
        Design(BROKEN, Downstream.CODES),
        Design("paa:5", NONE.downstream),
    ]
    outcomes, rows = study(setting, loso(setting, *designs))
    assert {row.reducer for row in rows} == {"none", "paa:5"}
    failed = [outcome for outcome in outcomes if outcome.cell is None]
    assert [str(outcome.job) for outcome in failed[:3]] == [
        f"paa:7 (codes, location, int8), loso fold {name}, seed 0" for name in ("subject1", "subject2", "subject10")
    ]
    assert failed[0].problem == "ConfigError: this trainer wants nothing of sevens"
    assert "ZeroDivisionError: a bug" in failed[3].problem and "Traceback" in failed[3].problem


def test_what_needs_a_failed_model_fails_without_a_try(setting: Setting, three: list[Recording]) -> None:
    wrong = partial(MeansTrainer, setting.description, 200, HOP, setting.out.parent / "log")
    other = make_setting(three, setting.out.parent, make_trainer=wrong)
    outcomes, rows = study(other, loso(other, NONE, Design("paa:5", Downstream.RESTORE)))
    assert rows == [] and len(fits(setting)) == 3
    assert re.search(r"the trainer made a system for windows of 200 samples every 125", outcomes[0].problem)
    needing = [outcome for outcome in outcomes if outcome.job.design != NONE]
    assert all(
        outcome.problem.startswith("needs what failed: none (codes, location, int8), loso") for outcome in needing
    )


def test_several_processes_do_the_same_and_one_that_dies_takes_only_its_own_job(
    setting: Setting, three: list[Recording], tmp_path: Path
) -> None:
    designs = [NONE, Design("paa:5", Downstream.RESTORE), Design(FATAL, Downstream.CODES)]
    outcomes, rows = study(setting, loso(setting, *designs), workers=2)
    (tmp_path / "alone").mkdir()
    alone = make_setting(three, tmp_path / "alone")
    _, expected = study(alone, loso(alone, *designs[:2]))
    assert {row.key: timeless(row) for row in rows} == {row.key: timeless(row) for row in expected}
    dead = [outcome for outcome in outcomes if outcome.cell is None]
    assert len(dead) == 3
    assert all(outcome.problem == "its process ended with exit code 9; is there enough memory?" for outcome in dead)
    assert len([line for line in fits(setting) if line.startswith("none")]) == 3  # nothing was fitted twice


def timeless(row: Row) -> Row:
    return msgspec.structs.replace(row, encode_us=0.0)


def test_groupings_have_sources_of_their_own(setting: Setting) -> None:
    _, rows = study(setting, loso(setting, Design("paa:5", Downstream.CODES, grouping="all")))
    assert rows[0].name == "paa:5 codes all" and rows[0].accuracy > 0.3
    assert rows[0].raw_bytes_per_s == 50 * 23 * 4


def test_the_random_split_scores_the_same_windows_and_flatters(setting: Setting, three: list[Recording]) -> None:
    folds = random_folds(three, LENGTH, HOP, 0)
    _, honest = study(setting, loso(setting, NONE))
    _, rows = study(setting, [Job(NONE, Protocol.RANDOM, fold, 0) for fold in folds])
    assert rows[0].windows == honest[0].windows
    assert np.array_equal(np.sum(rows[0].confusion, axis=1), np.sum(honest[0].confusion, axis=1))
    assert rows[0].accuracy > honest[0].accuracy


def test_seeds_are_averaged_within_a_subject(setting: Setting) -> None:
    """This trainer does not care for seeds, so two of them must change no figure but the pooled counts."""
    _, one = study(setting, loso(setting, NONE))
    _, two = study(setting, loso(setting, NONE, seeds=(0, 1)))
    assert len(fits(setting)) == 6
    assert np.array_equal(two[0].confusion, 2 * np.array(one[0].confusion))
    assert timeless(two[0]) == msgspec.structs.replace(timeless(one[0]), confusion=two[0].confusion)


def test_the_baseline_is_a_row_of_its_own(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr("har_edge.evaluation.baseline.TREES", 20)
    _, rows = study(setting, loso(setting, None, NONE))
    trees, none = rows[0], rows[2]
    assert trees.name == "extra-trees on hand-made features" and trees.accuracy > 0.5
    assert (trees.wire_bytes_per_s, trees.windows) == (none.wire_bytes_per_s, none.windows)


def test_missing_sources_cost_accuracy(setting: Setting, three: list[Recording]) -> None:
    other = make_setting(three, setting.out.parent, missing=True)
    _, rows = study(other, loso(other, NONE))
    assert list(rows[0].without) == ["chest", "ankle", "arm"]
    assert all(figure < rows[0].accuracy for figure in rows[0].without.values())


def test_a_damaged_store_is_measured_again(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    jobs = loso(setting, NONE)[:1]
    (first,), _ = study(setting, jobs)
    assert first.cell is not None
    cell = setting.out / "cells" / f"{first.cell.key}.json"
    model = setting.out / "systems" / str(first.cell.system) / "model.tflite"
    cell.write_bytes(cell.read_bytes()[:-9])
    model.write_bytes(b"\0" + model.read_bytes())
    (second,), _ = study(setting, jobs)
    assert second.cell is not None and not second.reused and len(fits(setting)) == 2
    assert second.cell.score.confusions == first.cell.score.confusions
    assert "is damaged" in caplog.text and "model.tflite has another hash; fitting again" in caplog.text
    assert sorted(path.name for path in (setting.out / "systems").iterdir()) == [first.cell.system]


def test_a_system_with_files_that_its_task_does_not_name_is_refused(setting: Setting) -> None:
    made = setting.make_trainer().fit(NONE, loso(setting, NONE)[0].fold.training(setting.recordings), 0, None)
    with pytest.raises(ModelError, match=r"a system has the files \{'pca.npz': '[0-9a-f]{64}'\}, but its task names"):
        Store(setting.out).put_system("key", System(made.task, made.model, {"pca.npz": b"x"}))


def test_answers_are_counted_by_subject() -> None:
    rows = [("a", 0, 1), ("a", 1, 1), ("b", None, 0), ("b", 0, 0)]
    predictions = (Prediction(stream, 0, truth, answer, np.zeros(2)) for stream, truth, answer in rows)
    assert count_answers(predictions, 2) == ({"a": [[0, 1], [0, 1]], "b": [[1, 0], [0, 0]]}, 1)


def test_outcomes_come_one_by_one(setting: Setting) -> None:
    outcomes: Iterator[Outcome] = do_jobs(setting, loso(setting, NONE), 1)
    next(outcomes)
    assert len(fits(setting)) == 1
