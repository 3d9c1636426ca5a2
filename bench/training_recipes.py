"""Compare recipes of `har-edge train --on-devices`: LeNet-5 on MNIST by several numbers of workers, in one process.

    HAR_EDGE_DATA=... python bench/training_recipes.py --workers 1 11 --recipes auto local:40/momentum:lr=0.1

A recipe is MODE[/OPTIMIZER[/SERVER_OPTIMIZER]], each as the command takes it. Server, workers, training graph, blocks,
packing and the choice of a mode are those of the command. Different are: the broker is in memory, and time is a clock
that this script moves by --step-s for a step. So no worker is late or lost, shares are equal, and a seed gives the same
numbers again. Samples a second are a forecast: steps, and the bytes that were sent over a link of --link.

Accuracy is that on the last --held-out samples of the training set, which are not trained on: recipes are chosen by
it. With --test, all are trained on, and accuracy is that on the test samples: for a recipe that was chosen before.
`--keep` holds finished runs, so that a stopped script goes on.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import mean

import msgspec
import numpy as np

from har_edge.data.mnist import find_mnist
from har_edge.inference.interpreter import RUNTIME
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.data.dataset_files import read_data
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.lenet import write_lenet5
from har_edge.learning.optimizers.rates import AUTO
from har_edge.learning.preparation import TrainableModel, initialise, prepare_model, store_blocks, store_files
from har_edge.learning.server.held_out import HeldOutSamples
from har_edge.learning.server.modes import ROUND_S, parse_mode
from har_edge.learning.server.server import TrainingServer
from har_edge.learning.server.settings import ServerSettings
from har_edge.learning.worker.graph_learner import GraphLearner
from har_edge.learning.worker.worker import TrainingWorker, WorkerProfile
from har_edge.mqtt.bus import Outgoing, Session
from har_edge.mqtt.memory import MemoryBroker, MemoryBus
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import RunState, TrainingJob, WorkerState
from har_edge.runtime.artifact_store import Store
from har_edge.tflite.model import read_model

TOPICS, RUN = Topics("har", "har"), "recipes"


class Case(msgspec.Struct, frozen=True):
    """One run, with all that its numbers depend on."""

    recipe: str
    workers: int
    seed: int
    epochs: int
    batch: int
    step_s: float
    link: float
    compress: str
    held_out: int  # 0: the test samples
    samples: int  # of the training set, 0: all


class Outcome(msgspec.Struct, frozen=True):
    """What came of it: accuracies and losses after each epoch, what was chosen, and the forecast."""

    case: Case
    chosen: str
    rounds: int
    accuracy: list[float]
    loss: list[float]
    samples_per_s: float
    took_s: float
    train_loss: float = 0.0  # of the last round, before its steps


@dataclass
class Simulation:
    """A server and its workers on a broker in memory; `steps_s` is the time of all steps so far."""

    server: TrainingServer
    workers: list[TrainingWorker]
    step_s: float
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    steps_s: float = 0.0

    def __post_init__(self) -> None:
        self._server_bus = self.broker.connect(Session("server", clean_start=True))
        self._server_bus.subscribe(self.server.filters)
        self._buses = [self.broker.connect(Session(one.name, clean_start=True)) for one in self.workers]
        for worker, bus in zip(self.workers, self._buses, strict=True):
            bus.subscribe(worker.filters)
            send(bus, [worker.report(WorkerState.READY)])

    def turn(self) -> None:
        """Let each worker that has a task make a step, and the server do what follows of it."""
        stepped = False
        for worker, bus in zip(self.workers, self._buses, strict=True):
            for delivery in bus.poll(0):
                bus.acknowledge(delivery)
                worker.handle(delivery)
            if worker.reasons:
                raise SystemExit(f"{worker.name} dropped a message: {worker.reasons}")
            if worker.busy:
                stepped = True
                times = iter((self.steps_s, self.steps_s + self.step_s))
                send(bus, worker.step(lambda times=times: next(times)))  # type: ignore[misc]
        self.steps_s += self.step_s if stepped else 0.0
        for delivery in self._server_bus.poll(0):
            self._server_bus.acknowledge(delivery)
            send(self._server_bus, self.server.handle(delivery, self.steps_s))
        send(self._server_bus, self.server.tick(self.steps_s))


def send(bus: MemoryBus, messages: list[Outgoing]) -> None:
    """Publish messages: they leave with the next `poll`."""
    for one in messages:
        bus.publish(one.topic, one.payload, retain=one.retain)


def main() -> int:
    """Run what has not been run, and print a row for each run, then means."""
    args = arguments()
    if args.data is None:
        sys.exit("no MNIST here: har-edge data fetch mnist")
    measured = "the test samples" if args.test else f"the last {args.held_out} training samples, not trained on"
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {RUNTIME}; MNIST (real); accuracy on {measured}")
    print(
        f"no broker, no devices: {args.step_s * 1e3:g} ms a step and {args.link / 1e6:g} MB/s are assumed", flush=True
    )
    known = read_runs(args.keep)
    cases = list(cases_of(args))
    outcomes = {one.case: one for one in known if one.case in cases}
    missing = [one for one in cases if one not in outcomes]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        futures = [pool.submit(run, case, args.data) for case in missing]
        for future in concurrent.futures.as_completed(futures):
            found = future.result()
            outcomes[found.case] = found
            keep_run(args.keep, found)
            show_run(found)
    show_means([outcomes[case] for case in cases])
    return 0


def cases_of(args: argparse.Namespace) -> list[Case]:
    """Return the runs, seeds outermost."""
    held_out = 0 if args.test else args.held_out
    return [
        Case(
            recipe,
            workers,
            seed,
            args.epochs,
            args.batch,
            args.step_s,
            args.link,
            args.compress,
            held_out,
            args.samples,
        )
        for seed in args.seeds
        for recipe in args.recipes
        for workers in args.workers
    ]


def run(case: Case, path: Path) -> Outcome:
    """Train once."""
    begun = time.monotonic()
    trainable = prepare_model(read_model(bytes(write_lenet5())), case.batch)
    train, test = read_samples(path, case.held_out, trainable)
    train = train.take(slice(case.samples or None))
    with tempfile.TemporaryDirectory(prefix="har-edge-recipes-") as folder:
        store = Store(Path(folder))
        job = make_job(case, trainable, train, store)
        ticks = count()
        learner = GraphLearner(
            TrainingStep(trainable.graph, trainable.spec), job, store, clock=lambda: float(next(ticks))
        )
        learner.step_s = case.step_s
        server = TrainingServer(settings_of(case, job), initialise(trainable.weights, trainable.spec, case.seed), 0.0)
        profile = WorkerProfile(job.shape, job.classes)
        names = [f"worker-{number:02}" for number in range(case.workers)]
        # They take turns, so that one learner is enough for all.
        workers = [TrainingWorker(job, name, "1", learner, TOPICS, profile) for name in names]
        simulation = Simulation(server, workers, case.step_s)
        held_out = HeldOutSamples(trainable.model, trainable.spec.weights, test, classes=True)
        scores = []
        while not server.ended:
            simulation.turn()
            scores += [held_out.score(one.weights) for one in server.evaluations]
            server.evaluations.clear()
            server.checkpoints.clear()
    if server.state is not RunState.FINISHED:
        raise SystemExit(f"{case}: {server.problem}")
    record = server.record
    exchanged_s = len(record.rounds) * ROUND_S
    exchanged_s += (case.workers * record.sent_bytes + record.received_bytes) / case.link
    chosen = next(line for line in server.lines if "; updates " in line)
    speed = record.total / (simulation.steps_s + exchanged_s)
    accuracies, losses = map(list, zip(*scores, strict=True))
    return Outcome(
        case, chosen, len(record.rounds), accuracies, losses, speed, time.monotonic() - begun, record.loss or 0.0
    )


def read_samples(path: Path, held_out: int, trainable: TrainableModel) -> tuple[Dataset, Dataset]:
    """Return the samples to train on, and those to measure on."""
    data = read_data(path)
    train, test = data.train.reshaped(trainable.shape), data.test.reshaped(trainable.shape)
    if not held_out:
        return train, test
    return train.take(np.arange(len(train) - held_out)), train.take(np.arange(len(train) - held_out, len(train)))


def make_job(case: Case, trainable: TrainableModel, train: Dataset, store: Store) -> TrainingJob:
    """Return the job as the command makes it, its files in the store."""
    graph, spec = store_files(store, [trainable.graph, trainable.spec.encode()])
    return TrainingJob(
        run=RUN,
        author="bench",
        started=1.0,
        graph=graph,
        spec=spec,
        batch=case.batch,
        parameters=trainable.spec.elements,
        shape=trainable.shape,
        classes=train.classes,
        blocks=store_blocks(store, train, case.seed),
        compress=case.compress,
        seed=case.seed,
    )


def settings_of(case: Case, job: TrainingJob) -> ServerSettings:
    """Return the settings of the server, as the command makes them."""
    mode_text, _, rest = case.recipe.partition("/")
    optimizer, _, server_optimizer = rest.partition("/")
    mode, number = parse_mode(mode_text)
    return ServerSettings(
        TOPICS,
        job,
        epochs=case.epochs,
        optimizer=optimizer or AUTO,
        mode=mode,
        server_optimizer=server_optimizer,
        local_steps=number,
        workers=case.workers,
        checkpoint_s=1e9,
        link_bytes_per_s=case.link,
    )


def read_runs(path: Path | None) -> list[Outcome]:
    """Return the finished runs in a file."""
    if path is None or not path.exists():
        return []
    return [msgspec.json.decode(line, type=Outcome) for line in path.read_bytes().splitlines()]


def keep_run(path: Path | None, outcome: Outcome) -> None:
    """Add a run to a file."""
    if path is not None:
        with path.open("ab") as file:
            file.write(msgspec.json.encode(outcome) + b"\n")


def show_run(found: Outcome) -> None:
    """Print one run."""
    case, reached = found.case, found.accuracy
    head = f"{case.workers:>2} workers, seed {case.seed}, {case.recipe}: accuracy {reached[-1]:.4f}"
    print(f"{head}, loss {found.loss[-1]:.4f} ({found.train_loss:.4f} in training)")
    print(f"    accuracy after 1 epoch {reached[0]:.4f}; {found.rounds} rounds")
    print(f"    {found.samples_per_s:.0f} samples/s; {found.took_s:.0f} s; {found.chosen}", flush=True)


def show_means(outcomes: list[Outcome]) -> None:
    """Print means over seeds, beside one worker of the same recipe where there is one."""
    print(f"\n{'accuracy':>8} {'of one':>7} {'lowest':>7} {'loss':>7} {'rounds':>6} {'gain':>5} workers, recipe")
    for recipe, workers in dict.fromkeys((one.case.recipe, one.case.workers) for one in outcomes):
        some = [one for one in outcomes if (one.case.recipe, one.case.workers) == (recipe, workers)]
        alone = [one for one in outcomes if (one.case.recipe, one.case.workers) == (recipe, 1)]
        last = [one.accuracy[-1] for one in some]
        speed = mean(one.samples_per_s for one in some)
        lost = f"{100 * (mean(last) - mean(one.accuracy[-1] for one in alone)):+.2f}" if alone else "-"
        gain = f"{speed / mean(one.samples_per_s for one in alone):.2f}" if alone else "-"
        loss, rounds = mean(one.loss[-1] for one in some), mean(one.rounds for one in some)
        print(
            f"{mean(last):>8.4f} {lost:>7} {min(last):>7.4f} {loss:>7.4f} {rounds:>6.0f} {gain:>5} {workers}, {recipe}"
        )


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=find_mnist(), metavar="PATH")
    parser.add_argument("--recipes", nargs="+", default=["auto"], metavar="RECIPE")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8, 11], metavar="N")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--epochs", type=int, default=10, metavar="N")
    parser.add_argument("--batch", type=int, default=32, metavar="N")
    parser.add_argument("--compress", default="auto", metavar="SPEC")
    parser.add_argument("--step-s", type=float, default=0.06, metavar="S", help="a step on a tenth of a core (0.06)")
    parser.add_argument("--link", type=float, default=11.75e6, metavar="B/S", help="of the broker (default: 94 Mbit/s)")
    parser.add_argument(
        "--samples", type=int, default=0, metavar="N", help="train on the first N only, for a quick look"
    )
    parser.add_argument("--held-out", type=int, default=10_000, metavar="N")
    parser.add_argument("--test", action="store_true", help="train on all, and measure on the test samples")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="JSON lines of finished runs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
