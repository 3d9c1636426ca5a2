"""Run the trials of a study in several processes at once; a process that fails or dies takes no other with it."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext

from har_edge.errors import HarEdgeError
from har_edge.evaluation.trial import Trial, TrialResult
from har_edge.evaluation.trial_runner import StudyConfig, TrialRunner
from har_edge.evaluation.trial_store import TrialStore


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """The end of a trial: its result, or the error it met. `reused`: the result was stored before."""

    trial: Trial
    result: TrialResult | None
    problem: str = ""
    reused: bool = False


def run_trials(config: StudyConfig, trials: Sequence[Trial], workers: int) -> Generator[TrialOutcome, None, None]:
    """Yield what becomes of every trial, as it is known: stored ones first, and those that others need before those.

    With one worker all is done in this process; with more, in processes of their own. A trial that fails ends as a
    TrialOutcome with a problem, and the others go on. Close the generator to end the processes.
    """
    store, missing = TrialStore(config.out), []
    for trial in trials:
        result = store.result(config.trial_key(trial))
        if result is None:
            missing.append(trial)
        else:
            yield TrialOutcome(trial, result, reused=True)
    queue = _Queue(missing)
    if workers == 1 or len(missing) < 2:
        runner = TrialRunner(config)
        while (ready := queue.take()) is not None:
            yield from queue.settle(_do(runner, ready))
        return
    yield from _share(config, queue, min(workers, len(missing)))


def _do(runner: TrialRunner, trial: Trial) -> TrialOutcome:
    try:
        return TrialOutcome(trial, runner.run(trial))
    except HarEdgeError as error:
        return TrialOutcome(trial, None, f"{type(error).__name__}: {error}")
    except Exception:  # whatever it is, it must not end the other trials, and its place must be told
        return TrialOutcome(trial, None, traceback.format_exc().rstrip())


class _Queue:
    """Trials to run. One that needs the unreduced system of its fold waits for the trial that makes it."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._waiting = list(trials)
        self._open = set(self._waiting)

    def take(self) -> Trial | None:
        """Return a trial that can be done now; None while there is none."""
        for trial in self._waiting:
            if _needed(trial) not in self._open:
                self._waiting.remove(trial)
                return trial
        return None

    def settle(self, outcome: TrialOutcome) -> Iterator[TrialOutcome]:
        """Yield an outcome, and with a failure those of the trials that needed it."""
        yield outcome
        self._open.discard(outcome.trial)
        if outcome.result is not None:
            return
        for trial in [trial for trial in self._waiting if _needed(trial) == outcome.trial]:
            self._waiting.remove(trial)
            yield from self.settle(TrialOutcome(trial, None, f"needs what failed: {outcome.trial}"))


def _needed(trial: Trial) -> Trial | None:
    if trial.variant is None or not trial.variant.needs_unreduced:
        return None
    return replace(trial, variant=trial.variant.unreduced)


def _share(config: StudyConfig, queue: _Queue, count: int) -> Iterator[TrialOutcome]:
    context = multiprocessing.get_context("spawn")
    workers = [_Worker(context, config) for _ in range(count)]
    try:
        while True:
            for worker in workers:
                if worker.trial is None and (trial := queue.take()) is not None:
                    worker.give(trial)
            busy = [worker for worker in workers if worker.trial is not None]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                yield from queue.settle(worker.finish())
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One process that does trials, started when the first one comes, and again after it died."""

    def __init__(self, context: SpawnContext, config: StudyConfig) -> None:
        self._context, self._config = context, config
        self._process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection
        self.trial: Trial | None = None

    def give(self, trial: Trial) -> None:
        """Hand over a trial."""
        if self._process is None:
            self._start()
        self.connection.send(trial)
        self.trial = trial

    def finish(self) -> TrialOutcome:
        """Return what became of the trial, once something came or the process has died."""
        trial, self.trial = self.trial, None
        assert trial is not None
        try:
            outcome: TrialOutcome = self.connection.recv()
        except (EOFError, OSError):
            assert self._process is not None
            self._process.join()
            problem = f"its process ended with exit code {self._process.exitcode}; is there enough memory?"
            self.stop()
            return TrialOutcome(trial, None, problem)
        return outcome

    def stop(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self.connection.close()
        self._process.terminate()
        self._process.join()
        self._process = None

    def _start(self) -> None:
        self.connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs, self._config), daemon=True)
        # Ctrl-C is for this process alone, which then ends the others; they inherit that it is ignored.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()


def _serve(connection: Connection, config: StudyConfig) -> None:
    """Do trials until nobody is left to give one."""
    runner = TrialRunner(config)
    while True:
        try:
            connection.send(_do(runner, connection.recv()))
        except (EOFError, OSError):
            return
