"""The cells of a study by several processes at once; a process that fails or dies takes no other with it."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext

from har_edge.errors import HarEdgeError
from har_edge.evaluation.cell import Cell, Job
from har_edge.evaluation.store import Store
from har_edge.evaluation.work import Bench, Setting


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: its cell, or the problem that it met. `reused` says that the cell was stored already."""

    job: Job
    cell: Cell | None
    problem: str = ""
    reused: bool = False


def do_jobs(setting: Setting, jobs: Sequence[Job], workers: int) -> Generator[Outcome, None, None]:
    """Yield what becomes of every job, as it is known: stored ones first, and those that others need before those.

    With one worker all is done in this process; with more, in processes of their own. A job that fails ends as an
    Outcome with a problem, and the others go on. Close the generator to end the processes.
    """
    store, missing = Store(setting.out), []
    for job in jobs:
        cell = store.cell(setting.cell_key(job))
        if cell is None:
            missing.append(job)
        else:
            yield Outcome(job, cell, reused=True)
    queue = _Queue(missing)
    if workers == 1 or len(missing) < 2:
        bench = Bench(setting)
        while (job_or_none := queue.take()) is not None:
            yield from queue.settle(_do(bench, job_or_none))
        return
    yield from _share(setting, queue, min(workers, len(missing)))


def _do(bench: Bench, job: Job) -> Outcome:
    try:
        return Outcome(job, bench.do(job))
    except HarEdgeError as error:
        return Outcome(job, None, f"{type(error).__name__}: {error}")
    except Exception:  # whatever it is, it must not end the other jobs, and its place must be told
        return Outcome(job, None, traceback.format_exc().rstrip())


class _Queue:
    """Jobs to do; one that needs the unreduced system of its fold waits for the job that makes it."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._waiting = list(jobs)
        self._open = set(self._waiting)

    def take(self) -> Job | None:
        """Return a job that can be done now; None while there is none."""
        for job in self._waiting:
            if _needed(job) not in self._open:
                self._waiting.remove(job)
                return job
        return None

    def settle(self, outcome: Outcome) -> Iterator[Outcome]:
        """Yield an outcome, and with a failure those of the jobs that needed it."""
        yield outcome
        self._open.discard(outcome.job)
        if outcome.cell is not None:
            return
        for job in [job for job in self._waiting if _needed(job) == outcome.job]:
            self._waiting.remove(job)
            yield from self.settle(Outcome(job, None, f"needs what failed: {outcome.job}"))


def _needed(job: Job) -> Job | None:
    if job.design is None or not job.design.needs_unreduced:
        return None
    return replace(job, design=job.design.unreduced)


def _share(setting: Setting, queue: _Queue, count: int) -> Iterator[Outcome]:
    context = multiprocessing.get_context("spawn")
    workers = [_Worker(context, setting) for _ in range(count)]
    try:
        while True:
            for worker in workers:
                if worker.job is None and (job := queue.take()) is not None:
                    worker.give(job)
            busy = [worker for worker in workers if worker.job is not None]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                yield from queue.settle(worker.finish())
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One process that does jobs, started when the first one comes, and again after it died."""

    def __init__(self, context: SpawnContext, setting: Setting) -> None:
        self._context, self._setting = context, setting
        self._process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection
        self.job: Job | None = None

    def give(self, job: Job) -> None:
        """Hand over a job."""
        if self._process is None:
            self._start()
        self.connection.send(job)
        self.job = job

    def finish(self) -> Outcome:
        """Return what became of the job, once something came or the process has died."""
        job, self.job = self.job, None
        assert job is not None
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, OSError):
            assert self._process is not None
            self._process.join()
            problem = f"its process ended with exit code {self._process.exitcode}; is there enough memory?"
            self.stop()
            return Outcome(job, None, problem)
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
        self._process = self._context.Process(target=_serve, args=(theirs, self._setting), daemon=True)
        # Ctrl-C is for this process alone, which then ends the others; they inherit that it is ignored.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()


def _serve(connection: Connection, setting: Setting) -> None:
    """Do jobs until nobody is left to give one."""
    bench = Bench(setting)
    while True:
        try:
            connection.send(_do(bench, connection.recv()))
        except (EOFError, OSError):
            return
