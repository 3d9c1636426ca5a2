"""Flower and har_edge's own engine side by side: LeNet-5 on MNIST, four workers, federated averaging, the same rounds.

    HAR_EDGE_DATA=... python bench/flower.py --samples 8000 --rounds 3

Each worker has samples of its own in a file, makes one pass over them in a round with the same optimizer, and sends
weights; the server takes their mean. A worker of har_edge has all the time that it needs (--budget), so that both make
as many rounds of as many steps. Counted are the bytes between all workers and SuperLink or broker, both ways,
over the whole run (with the training graph, without the samples), the time of a pass over all samples, and the
memory of all processes of a worker together (proportional set size, the most that was seen). Flower is installed by
pip from locks/flower.txt, or comes from the environment that HAR_EDGE_FLOWER names.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from har_edge.data.mnist import find_mnist
from har_edge.inference.interpreter import RUNTIME
from har_edge.learning.data.dataset_files import read_data
from har_edge.learning.lenet import write_lenet5
from har_edge.learning.local_training import LocalTraining
from har_edge.learning.updates.vectors import flatten
from har_edge.mqtt.broker.embedded import start_embedded
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.training_graph import write_training_graph
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import read_model

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the tests' own means
from tests.integrations.flower_environment import federation, free_ports, make_environment  # noqa: E402

BATCH, OPTIMIZER = 32, "sgd:lr=0.1"
SERVER = """
from flwr.serverapp.strategy import FedAvg
from har_edge.integrations.flower import make_server_app
app = make_server_app(lambda context: FedAvg(fraction_evaluate=0.0, min_train_nodes=N, min_available_nodes=N))
"""


@dataclass
class Measured:
    """The figures of one engine."""

    name: str
    rounds: int = 0
    round_s: float = 0.0
    total_s: float = 0.0
    bytes: int = 0
    memory: list[float] = field(default_factory=list)
    accuracy: float = 0.0


class CountingProxy:
    """Forwards connections to a port, and counts the bytes of both directions."""

    def __init__(self, target: int) -> None:
        self.bytes, self._target = 0, target
        (self.port,) = free_ports(1)
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._ready.wait(10)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self._ready.set()
        await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                self.bytes += len(data)
                sink.write(data)
                await sink.drain()
        sink.close()


class MemoryWatch:
    """Notes the most memory that each process has together with those that it started."""

    def __init__(self, pids: list[int]) -> None:
        self.most = dict.fromkeys(pids, 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            for pid in self.most:
                self.most[pid] = max(self.most[pid], tree_bytes(pid))

    def close(self) -> list[float]:
        """Return the megabytes of each."""
        self._stop.set()
        self._thread.join()
        return [most / 1e6 for most in self.most.values()]


def tree_bytes(pid: int) -> float:
    """Return the proportional set size of a process and all below it."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_full_info().pss
    return total


def main() -> int:
    """Run both, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=find_mnist(), metavar="PATH")
    parser.add_argument("--samples", type=int, default=8000, metavar="N", help="of all workers together")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--workers", type=int, default=4, metavar="N")
    args = parser.parse_args()
    if args.data is None:
        parser.error("no MNIST here: har-edge data fetch mnist")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, args)
        steps = -(-args.samples // args.workers // BATCH)
        print(
            f"{platform.machine()}, {os.cpu_count()} CPUs, {RUNTIME}; MNIST (real), {args.samples} samples", flush=True
        )
        print(f"{args.workers} workers, {args.rounds} rounds of {steps} steps of {BATCH}, {OPTIMIZER}", flush=True)
        rows = [run_own(folder, args, steps), run_flower(folder, args)]
    print(f"{'engine':9} {'rounds':>6} {'s a pass':>9} {'s in all':>9} {'worker, MB':>11} {'MB a pass':>10} accuracy")
    for row in rows:
        sent = row.bytes / 1e6 / args.rounds / args.workers
        memory = f"{min(row.memory):.0f}-{max(row.memory):.0f}"
        times = f"{row.round_s:9.2f} {row.total_s:9.1f}"
        print(f"{row.name:9} {row.rounds:6} {times} {memory:>11} {sent:10.2f} {row.accuracy:8.4f}")
    print("MB a pass: sent both ways by one worker, in one pass over its samples")
    return 0


def write_files(folder: Path, args: argparse.Namespace) -> None:
    """Write the model, and the samples of each worker with the same ones to test with."""
    data = read_data(args.data)
    (folder / "lenet5.tflite").write_bytes(write_lenet5())
    test = {"x_test": data.test.values(slice(2000))[..., None], "y_test": data.test.y[:2000]}
    for worker in range(args.workers):
        chosen = np.arange(worker, args.samples, args.workers)
        np.savez(
            folder / f"{worker}.npz", x_train=data.train.values(chosen)[..., None], y_train=data.train.y[chosen], **test
        )


def run_own(folder: Path, args: argparse.Namespace, steps: int) -> Measured:
    """Train with nodes and a broker."""
    made, program, broker = Measured("har_edge"), [str(Path(sys.executable).with_name("har-edge"))], start_embedded()
    proxy = CountingProxy(broker.address.port)
    nodes = []
    try:
        for worker in range(args.workers):
            command = [*program, "node", "--name", f"w{worker}", "--broker", f"mqtt://127.0.0.1:{proxy.port}"]
            with (folder / f"w{worker}.log").open("wb") as log:
                nodes.append(
                    subprocess.Popen([*command, "--data", str(folder / f"{worker}.npz")], stdout=log, stderr=log)
                )
        before = settled(proxy)  # nodes measure their link first
        watch, begun = MemoryWatch([node.pid for node in nodes]), time.monotonic()
        command = [*program, "train", "--on-devices", "--model", str(folder / "lenet5.tflite"), "--own-data"]
        command += ["--data", str(folder / "0.npz"), "--workers", str(args.workers), "--wait", "60", "--fresh"]
        command += ["--mode", f"local:{steps}", "--epochs", str(args.rounds), "--optimizer", OPTIMIZER]
        command += [
            "--broker",
            f"mqtt://127.0.0.1:{broker.address.port}",
            "--out",
            str(folder / "own"),
            "--shares",
            "equal",
            "--budget",
            "600",
        ]
        subprocess.run([*command, "--batch", str(BATCH)], check=True)
        made.total_s, made.memory, made.bytes = time.monotonic() - begun, watch.close(), proxy.bytes - before
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait(30)
        broker.stop()
    with (folder / "own/lenet5.csv").open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(line for line in file if not line.startswith("#"))]
    made.rounds, made.round_s = len(seconds), seconds[-1] / args.rounds
    if made.rounds != args.rounds:
        raise SystemExit(f"{made.rounds} rounds of har_edge stand beside {args.rounds} of Flower; expected as many")
    made.accuracy = accuracy(folder / "own/lenet5.tflite", folder / "0.npz")
    return made


def run_flower(folder: Path, args: argparse.Namespace) -> Measured:
    """Train with a SuperLink and SuperNodes."""
    made, programs, app = Measured("Flower"), make_environment(folder / "environment"), folder / "app"
    app.mkdir()
    example = ROOT / "examples/flower"
    for name in ("pyproject.toml", "client.py"):
        (app / name).write_text((example / name).read_text())
    (app / "server.py").write_text(SERVER.replace("N)", f"{args.workers})").replace("=N,", f"={args.workers},"))
    out = folder / "flower.tflite"
    config = {"model": str(folder / "lenet5.tflite"), "out": str(out), "rounds": args.rounds, "batch": BATCH}
    samples = [f'data="{folder / f"{worker}.npz"}"' for worker in range(args.workers)]
    with counted_federation(programs, folder / "flower", samples) as (here, proxy):
        before, watch, begun = settled(proxy), MemoryWatch(here.nodes), time.monotonic()
        log = here.run(app, {**config, "optimizer": OPTIMIZER})
        made.total_s, made.memory, made.bytes = time.monotonic() - begun, watch.close(), proxy.bytes - before
    found = re.search(r"Strategy execution finished in ([0-9.]+)s", log)
    if found is None or f"{args.rounds} of {args.rounds} rounds trained" not in log:
        raise SystemExit(log[-3000:])
    made.rounds, made.round_s = args.rounds, float(found[1]) / args.rounds
    made.accuracy = accuracy(out, folder / "0.npz")
    return made


def settled(proxy: CountingProxy) -> int:
    """Wait until little goes through for three seconds; return the bytes so far."""
    while True:
        before = proxy.bytes
        time.sleep(3)
        if before and proxy.bytes - before < 50_000:
            return proxy.bytes


@contextlib.contextmanager
def counted_federation(programs: Path, folder: Path, samples: list[str]) -> Iterator[tuple]:
    """Start a federation whose SuperNodes reach the SuperLink through a proxy."""
    proxies: list[CountingProxy] = []

    def through(port: int) -> int:
        proxies.append(CountingProxy(port))
        return proxies[0].port

    with federation(programs, folder, samples, through) as here:
        yield here, proxies[0]


def accuracy(path: Path, samples: Path) -> float:
    """Return the share of right answers of a model on the test samples."""
    model = read_model(path)
    graph = write_training_graph(model, batch=BATCH, loss=Loss.CROSS_ENTROPY)
    weights = flatten(read_weights(model), graph.spec.weights)
    return LocalTraining(graph.data, graph.spec).evaluate(weights, read_data(samples).test).accuracy


if __name__ == "__main__":
    sys.exit(main())
