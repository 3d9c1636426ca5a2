"""Run the trials of a study by an engine, and store what comes of them, so that a stopped study goes on later."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace

from har_edge.errors import HarEdgeError
from har_edge.evaluation.engine import Engine, WorkerDied
from har_edge.evaluation.trial import Trial, TrialResult
from har_edge.evaluation.trial_runner import Assignment, Completion, StudyConfig
from har_edge.evaluation.trial_store import TrialStore

# How often the number of workers is asked for while nothing ends: a cluster may get more.
POLL_S = 2.0


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """The end of a trial: its result, or the error it met. `reused`: the result was stored before."""

    trial: Trial
    result: TrialResult | None
    error: str = ""
    reused: bool = False


def run_trials(config: StudyConfig, trials: Sequence[Trial], engine: Engine) -> Generator[TrialOutcome, None, None]:
    """Yield the outcome of every trial as it is known: stored ones first, and unreduced variants before those in need.

    A trial that fails, or whose worker dies, ends as an outcome with an error, and the others go on. The process that
    calls stores results and systems, so workers need no folder in common. To stop early, close the engine.
    """
    store, missing = TrialStore(config.out), []
    for trial in trials:
        result = store.result(config.trial_key(trial))
        if result is None:
            missing.append(trial)
        else:
            yield TrialOutcome(trial, result, reused=True)
    queue = _Queue(missing)
    running: dict[Future[Completion], Trial] = {}
    while True:
        while len(running) < engine.capacity() and (ready := queue.take()) is not None:
            running[engine.submit(_assign(config, store, ready))] = ready
        if not running:
            return
        ended, _ = wait(running, POLL_S, FIRST_COMPLETED)
        for future in ended:
            yield from queue.settle(_finish(config, store, running.pop(future), future))


def _assign(config: StudyConfig, store: TrialStore, trial: Trial) -> Assignment:
    """Return a trial with the stored systems that spare its worker a fit."""
    if trial.variant is None:
        return Assignment(trial)
    system = store.system(config.system_key(trial))
    needed = _needed(trial)
    if system is not None or needed is None:
        return Assignment(trial, system)
    return Assignment(trial, unreduced=store.system(config.system_key(needed)))


def _finish(config: StudyConfig, store: TrialStore, trial: Trial, future: Future[Completion]) -> TrialOutcome:
    """Store what a worker made, and return the outcome."""
    try:
        done = future.result()
        for key, system in done.systems.items():
            store.put_system(key, system)
        if done.result is None:
            return TrialOutcome(trial, None, done.error)
        if done.result.key != config.trial_key(trial):
            return TrialOutcome(trial, None, "its worker has another version of har-edge or of the recordings")
        store.put_result(done.result)
    except WorkerDied as died:
        return TrialOutcome(trial, None, str(died))
    except (HarEdgeError, OSError) as error:
        return TrialOutcome(trial, None, f"{type(error).__name__}: {error}")
    return TrialOutcome(trial, done.result)


class _Queue:
    """Trials to run. One that needs the unreduced system of its fold waits for the trial that makes it."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._waiting = list(trials)
        self._open = set(self._waiting)

    def take(self) -> Trial | None:
        """Return a trial that can be run now; None while there is none."""
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
