"""A study on a cluster: a real dask scheduler and two workers on this machine, reached as those of others would be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from har_edge.cli import study
from har_edge.cli.main import main
from har_edge.data.description import load_description
from har_edge.data.recording import Recording
from har_edge.data.synthetic import synthesize
from har_edge.errors import ConfigError
from har_edge.evaluation.engine import open_engine
from har_edge.evaluation.executor import TrialOutcome, run_trials
from har_edge.evaluation.results import load_results
from har_edge.evaluation.rows import ResultAggregator, Row
from har_edge.evaluation.study import Downstream, System, Training, Variant
from har_edge.evaluation.trial import Trial
from har_edge.evaluation.trial_runner import StudyConfig
from tests.evaluation.test_study import HOP, LENGTH, NONE, fits, loso, make_config, timeless
from tests.evaluation.trainer import FATAL, MeansTrainer

pytest.importorskip("distributed")
pytestmark = pytest.mark.slow

WORKERS = 2
VARIANTS = [NONE, Variant("paa:5", Downstream.RESTORE), Variant("paa:10+q8", Downstream.CODES)]
# Dask gives a trial up when so many workers have died of it, and one more.
ALLOWED_FAILURES = 1


@dataclass(frozen=True)
class HeldTrainer(MeansTrainer):
    """Waits in its first fit, where a file `hold` says so, and writes down which process that is."""

    def fit(self, variant: Variant, training: Training, seed: int, unreduced: System | None) -> System:
        hold = self.log.with_name("hold")
        if hold.exists():
            hold.unlink()
            self.log.with_name("held").write_text(f"{os.getpid()} {variant} on {training.recordings[0].stream}")
            time.sleep(120)
        with self.log.with_name("pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().fit(variant, training, seed, unreduced)


class Cluster:
    """A scheduler and workers, as processes of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "scheduler.json"
        self._environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(ALLOWED_FAILURES),
        }
        self._running: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        until(lambda: self._file.exists() and self._file.read_text().endswith("}"), "the scheduler", folder)
        self.engine = "dask://" + json.loads(self._file.read_text())["address"].removeprefix("tcp://")

    def add_worker(self, threads: int = 1) -> subprocess.Popen[bytes]:
        return self._start("worker", "--nthreads", str(threads), "--host", "127.0.0.1")

    def _start(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(self._file)]
        with (self._folder / f"{kind}-{len(self._running)}.log").open("wb") as log:
            started = subprocess.Popen(
                [*command, "--no-dashboard", *options],
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._folder,
                start_new_session=True,  # a worker is a process of its nanny, and both end together
            )
        self._running.append(started)
        return started

    def stop(self) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(condition: object, what: str, folder: Path) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 60
    while not condition():
        logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"{what} never came:\n{logs}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        for _ in range(WORKERS):
            made.add_worker()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def three() -> list[Recording]:
    return synthesize(["subject1", "subject2", "subject10"], seconds_per_activity=12.0)


@pytest.fixture
def config(three: list[Recording], tmp_path: Path) -> StudyConfig:
    return held_config(three, tmp_path)


def held_config(recordings: list[Recording], folder: Path) -> StudyConfig:
    trainer = partial(HeldTrainer, load_description("mhealth"), LENGTH, HOP, folder / "log")
    return make_config(recordings, folder, make_trainer=trainer)


def run(config: StudyConfig, trials: list[Trial], engine: str) -> tuple[list[TrialOutcome], dict[object, Row]]:
    aggregator, outcomes, rows = ResultAggregator(config, trials, "here"), [], []
    with closing(open_engine(engine, config, None)) as opened:
        for outcome in run_trials(config, trials, opened):
            outcomes.append(outcome)
            rows += aggregator.add(outcome)
    return outcomes, {row.key: timeless(row) for row in rows}


def expected(three: list[Recording], folder: Path) -> dict[object, Row]:
    """Return the rows that the engine of this process gives, in a folder of its own."""
    (folder / "alone").mkdir()
    alone = held_config(three, folder / "alone")
    with closing(open_engine("local", alone, 1)) as engine:
        aggregator, rows = ResultAggregator(alone, loso(alone, *VARIANTS), "here"), []
        for outcome in run_trials(alone, loso(alone, *VARIANTS), engine):
            rows += aggregator.add(outcome)
    return {row.key: timeless(row) for row in rows}


def test_a_cluster_gives_the_rows_of_one_process(
    cluster: Cluster, config: StudyConfig, three: list[Recording], tmp_path: Path
) -> None:
    outcomes, rows = run(config, loso(config, *VARIANTS), cluster.engine)
    assert [outcome.error for outcome in outcomes] == [""] * 9
    assert len(rows) == 6 and rows == expected(three, tmp_path)
    assert len(fits(config)) == 9  # the unreduced systems were sent to the trials that restore windows
    pids = {int(line) for line in (tmp_path / "pids").read_text().split()}
    assert len(pids) == WORKERS and os.getpid() not in pids


def test_a_stopped_study_goes_on_where_it_was(
    cluster: Cluster, config: StudyConfig, three: list[Recording], tmp_path: Path
) -> None:
    trials = loso(config, *VARIANTS)
    with closing(open_engine(cluster.engine, config, 1)) as engine:
        first = next(run_trials(config, trials, engine))
    assert first.result is not None and not first.reused
    outcomes, rows = run(config, trials, cluster.engine)
    assert [outcome.trial for outcome in outcomes if outcome.reused] == [first.trial]
    assert rows == expected(three, tmp_path)
    assert len(fits(config)) == 9


def test_a_killed_worker_costs_its_trial_one_more_run_and_the_others_nothing(
    cluster: Cluster, config: StudyConfig, three: list[Recording], tmp_path: Path
) -> None:
    (tmp_path / "hold").touch()
    trials = loso(config, *VARIANTS)
    aggregator, outcomes, rows = ResultAggregator(config, trials, "here"), [], []
    with closing(open_engine(cluster.engine, config, None)) as engine:
        for outcome in run_trials(config, trials, engine):
            outcomes.append(outcome)
            rows += aggregator.add(outcome)
            if len(outcomes) == 1:
                until((tmp_path / "held").exists, "the first fit", tmp_path)
                os.kill(int((tmp_path / "held").read_text().split()[0]), signal.SIGKILL)
    assert [outcome.error for outcome in outcomes] == [""] * 9
    assert {row.key: timeless(row) for row in rows} == expected(three, tmp_path)
    assert len(fits(config)) == len(set(fits(config))) == 9  # the killed fit had not written its line yet


def test_a_trial_that_kills_its_workers_fails_alone(cluster: Cluster, config: StudyConfig) -> None:
    fatal = Variant(FATAL, Downstream.CODES)
    outcomes, rows = run(config, [*loso(config, NONE), *loso(config, fatal)[:1]], cluster.engine)
    failed = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.trial.variant for outcome in failed] == [fatal]
    assert failed[0].error.startswith("no worker could run it (KilledWorker: ")
    assert len(rows) == 2
    assert len([line for line in fits(config) if line.startswith(FATAL)]) == ALLOWED_FAILURES + 1
    # Dask tries it again on a worker that may just have ended another trial: if the result of that one is not fetched
    # yet, it is made again.
    assert 3 <= len([line for line in fits(config) if line.startswith("none")]) <= 3 + ALLOWED_FAILURES + 1


def test_the_command_names_a_scheduler_and_nothing_else_changes(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    trainer = partial(MeansTrainer, load_description("mhealth"), LENGTH, HOP, tmp_path / "log")
    monkeypatch.setattr(study, "trainer_of", lambda described, epochs: (trainer, "class means"))
    command = ["evaluate", "--protocol", "loso", "--subjects", "1,2", "--reducer", "paa:5+q8"]
    assert main([*command, "--engine", cluster.engine, "--out", "there"]) == 0
    assert main([*command, "--jobs", "1", "--out", "here"]) == 0
    there, here = load_results(Path("there")), load_results(Path("here"))
    assert there is not None and here is not None
    assert there.conditions == here.conditions and there.commands == here.commands
    assert [timeless(row) for row in there.rows] == [timeless(row) for row in here.rows]


def test_workers_with_several_threads_are_refused(config: StudyConfig, tmp_path: Path) -> None:
    """TensorFlow's seeds are the process's, so two trials in one process would disturb each other."""
    other = Cluster(tmp_path)
    try:
        other.add_worker(threads=2)
        with pytest.raises(ConfigError, match="several threads; start workers with: dask worker --nthreads 1"):
            open_engine(other.engine, config, None)
    finally:
        other.stop()


def test_a_scheduler_that_does_not_answer_is_named(config: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_edge.evaluation.engine.CONNECT_S", 1.0)
    with pytest.raises(ConfigError, match=r"--engine dask://127.0.0.1:9: no scheduler answers \(.*dask scheduler"):
        open_engine("dask://127.0.0.1:9", config, None)
