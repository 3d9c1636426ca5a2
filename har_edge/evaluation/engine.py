"""Engines that run trials: in this process, in processes of this machine (loky), or on a cluster (dask.distributed).

joblib's own pool (loky) and dask's client are used below joblib.Parallel, by their futures: Parallel gives up every
other call when one worker dies, and a study of hours must lose one trial only.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

from har_edge import __version__
from har_edge.errors import ConfigError, HarEdgeError
from har_edge.evaluation.trial_runner import Assignment, Completion, StudyConfig, TrialRunner
from har_edge.extras import require

LOCAL = "local"
SCHEME = "dask"
# Time to reach a scheduler, and for the first worker to come.
CONNECT_S = 10.0
FIRST_WORKER_S = 60.0


class WorkerDied(HarEdgeError):
    """The process that ran a trial died."""


class Engine(Protocol):
    """Runs trials; one at a time on each worker, since training seeds the whole process."""

    def capacity(self) -> int:
        """Return how many trials may run at once now."""

    def submit(self, assignment: Assignment) -> Future[Completion]:
        """Start a trial; its future raises WorkerDied where the worker died."""

    def close(self) -> None:
        """Stop everything that runs."""


def open_engine(text: str, config: StudyConfig, workers: int | None) -> Engine:
    """Return the engine that `--engine` names: `local` or `dask://HOST:PORT`.

    `workers` is how many trials may run at once: by default one a core here, and one a worker on a cluster. Raise
    ConfigError for another text, a library that is missing, or a scheduler that does not answer.
    """
    if text == LOCAL:
        count = workers or os.cpu_count() or 1
        return SerialEngine(config) if count == 1 else LocalEngine(config, count)
    parts = urlsplit(text)
    if parts.scheme != SCHEME or not parts.netloc or parts.path or parts.query:
        raise ConfigError(f"--engine {text}: expected {LOCAL}, or {SCHEME}://HOST:PORT of a scheduler")
    require(f"--engine {text}", "distributed")
    return DaskEngine(config, parts.netloc, workers)


class SerialEngine:
    """Runs trials in this process."""

    def __init__(self, config: StudyConfig) -> None:
        self._runner = TrialRunner(config)

    def capacity(self) -> int:
        """Return 1."""
        return 1

    def submit(self, assignment: Assignment) -> Future[Completion]:
        """Run a trial to its end."""
        future: Future[Completion] = Future()
        future.set_result(self._runner.run(assignment))
        return future

    def close(self) -> None:
        """Do nothing: nothing runs."""


class LocalEngine:
    """Runs trials in processes of this machine, each a pool of one, so that one that dies takes no other with it."""

    def __init__(self, config: StudyConfig, workers: int) -> None:
        require("--jobs above 1", "joblib")
        self._config, self._workers = config, workers
        self._idle: list[Executor] = []
        self._pools: set[Executor] = set()
        self._lock = threading.Lock()

    def capacity(self) -> int:
        """Return the number of processes."""
        return self._workers

    def submit(self, assignment: Assignment) -> Future[Completion]:
        """Run a trial in an idle process; start one if there is none."""
        with self._lock:
            pool = self._idle.pop() if self._idle else self._start()
        outcome: Future[Completion] = Future()
        with _ignoring_ctrl_c():  # the process starts here, and inherits it
            inner = pool.submit(_run_here, assignment)
        inner.add_done_callback(lambda done: self._settle(pool, done, outcome))
        return outcome

    def _start(self) -> Executor:
        from joblib.externals.loky import ProcessPoolExecutor

        pool: Executor = ProcessPoolExecutor(max_workers=1, initializer=_install, initargs=(self._config,))
        self._pools.add(pool)
        return pool

    def _settle(self, pool: Executor, done: Future[Completion], outcome: Future[Completion]) -> None:
        error = CancelledError() if done.cancelled() else done.exception()
        with self._lock:
            if error is None:
                self._idle.append(pool)
            else:
                self._pools.discard(pool)
        if error is None:
            outcome.set_result(done.result())
        else:
            codes = re.search(r"exit codes of the workers are \{(.*?)\}", str(error))
            how = f"with {codes[1]}" if codes else f"({type(error).__name__}: {error})"
            outcome.set_exception(WorkerDied(f"its process ended {how}; is there enough memory?"))

    def close(self) -> None:
        """Kill the processes."""
        with self._lock:
            pools, self._pools = list(self._pools), set()
        for pool in pools:
            pool.shutdown(wait=True, kill_workers=True)  # type: ignore[call-arg]


class DaskEngine:
    """Runs trials on the workers of a dask scheduler, which runs a trial again, elsewhere, when its worker dies.

    Dask sends pickled objects, so a client that reaches the scheduler can run any code on it and its workers. The
    scheduler belongs in a trusted network.
    """

    def __init__(self, config: StudyConfig, address: str, workers: int | None) -> None:
        from distributed import Client

        self._most, self._lock = workers, threading.Lock()
        self._given: Counter[str] = Counter()  # trials that wait or run, by the worker they were meant for
        try:
            self._client = Client(f"tcp://{address}", timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ConfigError(
                f"--engine {SCHEME}://{address}: no scheduler answers ({error}); start one with: dask scheduler"
            ) from error
        try:
            self._check_workers(address)
            # A task of its own, so that a worker gets the recordings once and not with each trial, and so that they can
            # be made again: what is scattered is lost, with all that needs it, when the worker that holds it dies.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
                self._config = self._client.submit(_identity, config, pure=False)
            self._environment = dict(config.environment)
        except BaseException:
            self._client.close()
            raise

    def _check_workers(self, address: str) -> None:
        """Wait for the first worker; raise ConfigError for workers with another version or several threads."""
        try:
            self._client.wait_for_workers(1, timeout=FIRST_WORKER_S)
        except TimeoutError as error:
            raise ConfigError(
                f"--engine {SCHEME}://{address}: the scheduler has no workers; start some with: dask worker "
                f"{address} --nthreads 1"
            ) from error
        versions: Mapping[str, str] = self._client.run(_version)
        others = sorted({version for version in versions.values() if version != __version__})
        if others:
            raise ConfigError(f"workers have har-edge {', '.join(others)}; expected {__version__}, as here")
        shared = sorted(name for name, threads in self._client.nthreads().items() if threads != 1)
        if shared:
            raise ConfigError(f"{', '.join(shared)}: several threads; start workers with: dask worker --nthreads 1")

    def capacity(self) -> int:
        """Return the number of workers that the scheduler has now, at least 1."""
        workers = len(self._client.nthreads())
        return max(1, workers if self._most is None else min(workers, self._most))

    def submit(self, assignment: Assignment) -> Future[Completion]:
        """Hand a trial to the scheduler, for the worker that has the fewest; any other may take it when that one dies.

        The second of two trials on one worker might kill it before the result of the first has been fetched.
        """
        outcome: Future[Completion] = Future()
        with self._lock:
            worker = min(self._client.nthreads(), key=lambda name: self._given[name], default=None)
            if worker is not None:
                self._given[worker] += 1
        inner = self._client.submit(
            _run_there,
            self._config,
            assignment,
            self._environment,
            pure=False,
            workers=worker,
            allow_other_workers=worker is not None,
        )
        inner.add_done_callback(lambda done: self._settle(worker, done, outcome))
        return outcome

    def _settle(self, worker: str | None, done: Any, outcome: Future[Completion]) -> None:
        if worker is not None:
            with self._lock:
                self._given[worker] -= 1
        try:
            outcome.set_result(done.result())
        except BaseException as error:  # KilledWorker, or what the scheduler's end makes of a future
            outcome.set_exception(WorkerDied(f"no worker could run it ({type(error).__name__}: {error})"))

    def close(self) -> None:
        """Give up what runs, and leave the scheduler."""
        self._client.close()


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C, which a terminal sends to every process: this one alone takes it, and then ends the others."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers, or is interrupted
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# The study that this process ran trials of last, and what runs them: its trainer keeps compiled graphs.
_RUNNERS: list[tuple[StudyConfig, TrialRunner]] = []
_ONE_AT_A_TIME = threading.Lock()


def _install(config: StudyConfig) -> None:
    """Make this process one that runs trials of a study."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _RUNNERS[:] = [(config, TrialRunner(config))]


def _run_here(assignment: Assignment) -> Completion:
    return _RUNNERS[0][1].run(assignment)


def _run_there(config: StudyConfig, assignment: Assignment, environment: Mapping[str, str]) -> Completion:
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    with _ONE_AT_A_TIME:
        if not _RUNNERS or _RUNNERS[0][0] is not config:
            _RUNNERS[:] = [(config, TrialRunner(config))]
        return _RUNNERS[0][1].run(assignment)


def _identity(config: StudyConfig) -> StudyConfig:
    return config


def _version() -> str:
    return __version__
