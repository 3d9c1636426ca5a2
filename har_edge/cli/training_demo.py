"""`har-edge demo --train`: LeNet-5 is deployed, trained by the nodes that run it, one of which dies, and deployed."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from har_edge.cli.console import say
from har_edge.errors import ConfigError, DataError, NodeError
from har_edge.protocol.text import origin_word
from har_edge.units import plural

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from har_edge.api.sensor import Sensor
    from har_edge.cluster.cluster import Arrival
    from har_edge.cluster.local_cluster import LocalCluster
    from har_edge.learning.data.datasets import Dataset
    from har_edge.protocol.training import TrainingProgress

NODES, STAGES, BATCH = 3, 2, 32
# Passes over MNIST, and over the digits, which are far fewer.
EPOCHS, DIGIT_EPOCHS = 3, 15
# A subset of MNIST is learned in some seconds on a small machine, and shows the same.
SAMPLES, HELD_OUT, PICTURES = 12_000, 1_000, 100
OPTIMIZER = "adam:lr=0.002"
RUN, LIVE = "lenet5", "live"
# Between two pictures of the stream that goes on meanwhile; so many may be unanswered; so many come after the rollout.
LIVE_S, MOST_UNANSWERED, LAST = 0.1, 32, 20
# The node that is killed, and the share of all samples after which it is.
VICTIM, KILLED_AFTER = "node-2", 0.4
LIMIT_S = 300.0
_NOT_FOR_TRAINING = (
    "split", "subjects", "reducer", "windows", "json", "stream", "labels", "input", "hop", "username", "password_file",
    "ca_file", "cert_file", "key_file",
)  # fmt: skip
WIDTH = 9


@dataclass(frozen=True, slots=True)
class DemoSamples:
    """Samples to train on and to test with, pictures [n, 28, 28], their origin in words, and the passes over them."""

    train: Dataset
    test: Dataset
    origin: str
    epochs: int


def run_training_demo(args: argparse.Namespace) -> int:
    """Run it, print what happens; return 1 where windows are lost, or more than 2 of 10 answers are wrong."""
    from har_edge.api.model import load_model
    from har_edge.cluster.local_cluster import LocalCluster
    from har_edge.files import write_atomic
    from har_edge.learning.lenet import write_lenet5

    refused = [name for name in _NOT_FOR_TRAINING if getattr(args, name) is not None]
    if refused:
        raise ConfigError(f"--{refused[0].replace('_', '-')} came with --train; expected --data and --broker alone")
    began = time.monotonic()
    samples = choose_samples(args.data)
    say(f"data     {samples.origin}", WIDTH)
    with contextlib.ExitStack() as stack:
        # Else SIGTERM ends this process alone, and leaves broker and nodes behind.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _on_terminate))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-")))
        path, data = folder / "untrained.tflite", folder / "samples.npz"
        write_atomic(path, write_lenet5(len(samples.train.classes)))
        write_samples(samples, data)
        model = load_model(path, labels=samples.train.classes, pictures=True, normalize=(0, 255))
        cluster = LocalCluster(model, stages=STAGES, nodes=NODES, broker=args.broker, directory=folder)
        stack.enter_context(cluster)
        say(f"broker   {cluster.described}", WIDTH)
        say(f"model    LeNet-5, 61,706 random weights, cut into {STAGES} slices, on {NODES} nodes", WIDTH)
        before = classify(cluster, samples.test, "before")
        say(f"before   {before} of {PICTURES} pictures are answered rightly", WIDTH)
        with cluster.sensor("live") as sensor:
            live = LiveWindows(sensor, to_bytes(samples.test))
            train(cluster, path, data, samples.epochs, live)
            lost = live.end(cluster)
        say(f"windows  {live.describe()}", WIDTH)
        after = classify(cluster, samples.test, "after")
        alive = ", ".join(name for name in cluster.names if name.startswith("node-"))
        say(f"after    {after} of {PICTURES} pictures are answered rightly, by {alive}", WIDTH)
    say(f"time     {time.monotonic() - began:.0f} s", WIDTH)
    return 0 if after >= 0.8 * PICTURES and not lost else 1


def choose_samples(where: Path | None) -> DemoSamples:
    """Return MNIST from a folder, else from where `data fetch mnist` puts it, else scikit-learn's digits."""
    import numpy as np

    from har_edge.data.mnist import find_mnist
    from har_edge.learning.data.dataset_files import read_data
    from har_edge.learning.data.digits import load_digits

    found = where if where is not None else find_mnist()
    if found is None:
        train, test = load_digits()
        origin = (
            f"no MNIST here, so scikit-learn's digits instead (real, small: {len(train)} samples to train on, "
            f"{len(test)} to test with); get MNIST with: har-edge data fetch mnist"
        )
        return DemoSamples(train, test, origin, DIGIT_EPOCHS)
    data = read_data(found)
    if data.train.shape not in ((28, 28), (28, 28, 1)):
        raise DataError(
            f"{found} holds samples of {list(data.train.shape)}; expected pictures of 28 x 28 grey pixels, as MNIST's "
            "files have them; other data trains another model: har-edge train --on-devices --model FILE --data PATH"
        )
    generator = np.random.default_rng(0)
    train, test = (
        part.reshaped((28, 28)).take(generator.permutation(len(part))[:count])
        for part, count in ((data.train, SAMPLES), (data.test, HELD_OUT))
    )
    kind = origin_word(train.name, real=train.real)
    origin = (
        f"{train.name} from {found} ({kind}): {len(train)} of {len(data.train)} samples to train on, {len(test)} of "
        f"{len(data.test)} to test with"
    )
    return DemoSamples(train, test, origin, EPOCHS)


def write_samples(samples: DemoSamples, path: Path) -> None:
    """Write the samples as bytes from 0 to 255, for `train --data`."""
    import numpy as np

    np.savez(
        path,
        x_train=to_bytes(samples.train),
        y_train=samples.train.y,
        x_test=to_bytes(samples.test),
        y_test=samples.test.y,
        classes=np.array(samples.train.classes),
        real=samples.train.real,
    )


def to_bytes(data: Dataset) -> npt.NDArray[np.uint8]:
    """Return pictures with 255 for the value 1."""
    return (data.values() * 255 + 0.5).astype("uint8")


def classify(cluster: LocalCluster, test: Dataset, stream: str) -> int:
    """Send the first pictures through the pipeline; return how many are answered rightly."""
    pictures = to_bytes(test.take(slice(0, PICTURES)))
    answered: dict[int, int] = {}
    with cluster.sensor(stream) as sensor:
        for picture in pictures:
            sensor.send(picture)
        deadline = time.monotonic() + LIMIT_S
        while len(answered) < len(pictures):
            if time.monotonic() > deadline:
                raise NodeError(f"{len(pictures) - len(answered)} of {len(pictures)} pictures were not answered")
            for arrival in cluster.poll():
                if arrival.result.stream == stream:
                    answered[arrival.result.seq] = arrival.result.label_id
    return sum(answered[number] == int(test.y[number]) for number in range(len(pictures)))


@dataclass(slots=True)
class LiveWindows:
    """A stream of pictures that goes on while the nodes train and the model changes; every window is counted."""

    sensor: Sensor
    pictures: npt.NDArray[np.uint8]
    sent: int = 0
    epochs: dict[int, int] = field(default_factory=dict)  # the generation that answered, by the number of the window
    due: float = 0.0

    def step(self, arrivals: Sequence[Arrival]) -> None:
        """Take answers, and send the next picture where one is due."""
        for one in arrivals:
            if one.result.stream == LIVE:
                self.epochs.setdefault(one.result.seq, one.result.epoch)
        now = time.monotonic()
        if now >= self.due and self.sent - len(self.epochs) < MOST_UNANSWERED:
            self.sensor.send(self.pictures[self.sent % len(self.pictures)])
            self.sent += 1
            self.due = now + LIVE_S

    def end(self, cluster: LocalCluster) -> int:
        """Send some more, for the model that is deployed now, and wait for all answers; return how many are lost."""
        wanted = self.sent + LAST
        until = time.monotonic() + LIMIT_S
        while self.sent < wanted and time.monotonic() < until:
            self.step(cluster.poll(0.02))
        self.due = float("inf")
        while len(self.epochs) < self.sent and time.monotonic() < until:
            self.step(cluster.poll())
        return self.sent - len(self.epochs)

    def describe(self) -> str:
        """Return the counts in words."""
        newest = max(self.epochs.values(), default=0)
        trained = sum(epoch == newest for epoch in self.epochs.values())
        return (
            f"{self.sent} sent while it trained and the result was rolled out, {len(self.epochs)} answered "
            f"({len(self.epochs) - trained} by the untrained model, {trained} by the trained one), "
            f"{self.sent - len(self.epochs)} lost"
        )


def train(cluster: LocalCluster, model: Path, data: Path, epochs: int, live: LiveWindows) -> None:
    """Train on the cluster's nodes, kill one in the middle, and let the result be rolled out."""
    out = model.parent / "trained"
    words = ["--on-devices", "--model", str(model), "--data", str(data), "--out", str(out), "--run-name", RUN]
    words += [
        "--deploy",
        "--epochs",
        str(epochs),
        "--workers",
        str(NODES),
        "--batch",
        str(BATCH),
        "--optimizer",
        OPTIMIZER,
    ]
    process = cluster.start("train", *words, "--cache", str(model.parent / "blocks"), name="train")
    for progress in follow(cluster, live):
        line = describe(progress)
        if line:
            say(f"train    {line}", WIDTH)
        share = (progress.epoch - 1) * progress.samples + progress.counted
        if VICTIM in cluster.names and progress.samples and share >= KILLED_AFTER * epochs * progress.samples:
            cluster.kill(VICTIM)
            say(f"killed   {VICTIM}, in epoch {progress.epoch}; the others go on", WIDTH)
    if process.process.wait(LIMIT_S):
        raise NodeError(f"the training ended with code {process.process.returncode}\n{process.last_lines()}")
    cluster.wait_deployed(LIMIT_S)
    say("deployed the trained model, by the coordinator, while pictures came", WIDTH)


def follow(cluster: LocalCluster, live: LiveWindows) -> Iterator[TrainingProgress]:
    """Yield what the training says of itself, about once a second, until it has ended; pictures go on meanwhile."""
    from har_edge.mqtt.bus import Session
    from har_edge.mqtt.connect import open_bus
    from har_edge.protocol.events import TrainingEvent, decode
    from har_edge.protocol.training import TrainingProgress

    bus = open_bus(cluster.address, Session(f"{cluster.topics.pipeline}-demo-train", clean_start=True))
    process, deadline = cluster.processes.running["train"], time.monotonic() + LIMIT_S
    try:
        bus.subscribe([cluster.topics.training(RUN, "progress")])
        while process.alive:
            if time.monotonic() > deadline:
                raise NodeError(f"the training did not end within {LIMIT_S:.0f} s\n{process.last_lines()}")
            live.step(cluster.poll(0.0))
            for delivery in bus.poll(LIVE_S / 2):
                bus.acknowledge(delivery)
                event = decode(delivery, cluster.topics)
                if isinstance(event, TrainingEvent) and isinstance(event.message, TrainingProgress):
                    yield event.message
    finally:
        bus.close(forget=True)


def describe(progress: TrainingProgress) -> str:
    """Return one line of figures; empty before the first round."""
    if progress.loss is None:
        return ""
    parts = [f"epoch {progress.epoch}/{progress.epochs}, round {progress.round}: loss {progress.loss:.3f}"]
    if progress.accuracy is not None:
        parts.append(f"accuracy {progress.accuracy:.3f} after epoch {progress.accuracy_epoch}")
    elif progress.train_accuracy is not None:
        parts.append(f"accuracy {progress.train_accuracy:.3f} in training")
    active = sum(one.active for one in progress.workers)
    return ", ".join([*parts, plural(active, "worker")])


def _on_terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
