"""`har-edge train --on-devices` with processes on Mosquitto: nodes learn digits, and a killed one costs no sample."""

from __future__ import annotations

import argparse
import csv
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge import extras
from har_edge.cli.main import main
from har_edge.cli.training_inputs import load_samples
from har_edge.cluster.processes import Processes, Running
from har_edge.inference.interpreter import Interpreter
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.data.digits import load_digits
from har_edge.learning.lenet import write_lenet5
from har_edge.learning.preparation import prepare_model
from har_edge.learning.server.checkpoints import Checkpoint
from har_edge.mqtt.broker.launcher import Mosquitto
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import open_bus
from har_edge.protocol.events import TrainingEvent, decode
from har_edge.protocol.masks import MaskPart
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import Update
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.model import read_model
from tests.learning.extras import needs
from tests.learning.made_data import write_mnist

EPOCHS = 8
TIMEOUT_S = 120.0


class Training:
    """A folder with digits as idx files, nodes, and the command; `base` keeps tests on one broker apart."""

    def __init__(self, folder: Path, url: str, base: str) -> None:
        self.folder, self.connection = folder, ["--broker", url, "--base", base]
        self.processes = Processes(patience_s=0.0, folder=folder)
        train, self.test = (_as_mnist(one) for one in load_digits(28))
        self.samples = len(train)
        self.data = write_mnist(folder / "digits", train, self.test)

    def node(self, name: str) -> Running:
        words = ["node", "--name", name, "--cache", str(self.folder / f"cache-{name}"), *self.connection]
        return self.processes.start(name, words, log=self.folder / f"{name}.log")

    def nodes(self, *names: str) -> None:
        started = [self.node(name) for name in names]
        self.until(lambda: all("connected" in one.output for one in started))

    def train(self, name: str = "train", *options: str, epochs: int = EPOCHS) -> Running:
        words = [
            "train",
            "--on-devices",
            "--model",
            "lenet5",
            "--data",
            str(self.data),
            "--out",
            str(self.folder / "out"),
        ]
        words += ["--cache", str(self.folder / "cache"), "--epochs", str(epochs), "--mode", "local:3", *self.connection]
        return self.processes.start(name, [*words, *options], log=self.folder / f"{name}.log")

    def until(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + TIMEOUT_S
        while not done():
            assert time.monotonic() < until, self.processes.last_lines()
            time.sleep(0.05)


def _as_mnist(data: Dataset) -> Dataset:
    """Return digits with values from 0 to 255, as MNIST's files have them."""
    return Dataset(data.x * np.uint8(15), data.y, data.classes, data.name, data.real)


@pytest.fixture
def training(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Training]:
    made = Training(tmp_path, mosquitto.address.url, f"t{time.time_ns()}")
    try:
        yield made
    finally:
        made.processes.stop()


def test_nodes_learn_digits_and_a_killed_one_costs_no_sample(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    training.nodes("a", "b", "c")
    command = training.train("train", "--workers", "3")
    training.until(lambda: "epoch 1: accuracy" in command.output)
    training.processes.kill("b")
    assert command.wait(TIMEOUT_S) == 0, training.processes.last_lines()
    said = command.output
    assert "goes on without b: lost: its connection broke" in said
    assert f"{EPOCHS * training.samples} samples counted in" in said
    found = re.search(r"accuracy ([\d.]+) on 359 held-out samples of .* after epoch 8; broker mqtt://", said)
    assert found is not None and float(found[1]) > 0.9, said
    rows = list(csv.DictReader((training.folder / "out" / "lenet5.csv").open()))
    assert sum(int(row["samples"]) for row in rows) == EPOCHS * training.samples
    assert float(rows[-1]["accuracy"]) == pytest.approx(float(found[1]), abs=1e-4)
    assert (training.folder / "out" / "lenet5.png").read_bytes()[:4] == b"\x89PNG"
    assert accuracy_of(training.folder / "out" / "lenet5.tflite", training.test) == pytest.approx(
        float(found[1]), abs=1e-4
    )
    main(["status", "--no-probe", "--json", *training.connection])
    (seen,) = json.loads(capsys.readouterr().out)["trainings"]
    assert (seen["state"], seen["epoch"], seen["run"]) == ("finished", EPOCHS, "lenet5")
    assert {one["name"]: one["active"] for one in seen["workers"]} == {"a": True, "b": False, "c": True}


def accuracy_of(model: Path, data: Dataset) -> float:
    interpreter = Interpreter(model)
    (port,) = interpreter.inputs
    x = data.reshaped((28, 28, 1)).values() / np.float32(255)
    found = next(iter(interpreter.run({port.name: x}).values()))
    return float((found.argmax(axis=1) == data.y).mean())


def test_a_stopped_run_goes_on_and_a_second_one_of_its_name_is_refused(training: Training) -> None:
    training.nodes("a", "b")
    first = training.train("first", "--workers", "2", "--checkpoint-every", "1", epochs=40)
    training.until(lambda: "epoch 1: accuracy" in first.output)
    second = training.train("second", "--workers", "2")
    assert second.wait(TIMEOUT_S) == 2
    assert "a training 'lenet5' is running already" in second.output and "choose another --run-name" in second.output
    assert first.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert "not finished: stopped by a signal; the same command goes on from" in first.output
    kept = msgspec.msgpack.decode((training.folder / "out" / "lenet5.checkpoint").read_bytes(), type=Checkpoint)
    other = training.train("other", "--optimizer", "sgd:lr=0.1")
    assert other.wait(TIMEOUT_S) == 2 and "was made with another model, data, batch, optimizer" in other.output
    epochs = kept.epoch + 1
    third = training.train("third", "--workers", "2", epochs=epochs)
    assert third.wait(TIMEOUT_S) == 0, training.processes.last_lines()
    assert f"goes on from {training.folder / 'out' / 'lenet5.checkpoint'}: epoch {kept.epoch}" in third.output
    assert f"{epochs * training.samples} samples counted in" in third.output
    again = training.train("again", "--workers", "2", epochs=epochs)
    assert again.wait(TIMEOUT_S) == 2 and f"has finished {epochs} epochs" in again.output
    model = training.folder / "out" / "lenet5.tflite"
    trained = model.read_bytes()
    model.unlink()  # as where the disk was full at the end
    written = training.train("written", "--workers", "2", epochs=epochs)
    assert written.wait(TIMEOUT_S) == 0 and f"{epochs} epochs were finished before" in written.output
    assert model.read_bytes() == trained


@pytest.mark.parametrize("options", [(), ("--fresh",)])
def test_a_killed_trainer_is_followed_by_the_same_command(training: Training, options: tuple[str, ...]) -> None:
    training.nodes("a", "b")
    first = training.train("first", "--workers", "2", "--checkpoint-every", "1", epochs=400)
    training.until(lambda: "epoch 1: accuracy" in first.output and (training.folder / "out/lenet5.checkpoint").exists())
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    kept = msgspec.msgpack.decode((training.folder / "out" / "lenet5.checkpoint").read_bytes(), type=Checkpoint)
    epochs = 2 if options else kept.epoch + 1
    second = training.train("second", "--workers", "2", *options, epochs=epochs)
    assert second.wait(TIMEOUT_S) == 0, training.processes.last_lines()
    assert ("goes on from" in second.output) == (not options)
    assert f"{epochs * training.samples} samples counted in" in second.output


def test_with_own_data_all_of_data_is_for_the_test(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", x=np.zeros((40, 28, 28), np.uint8), y=np.arange(40) % 10)
    trainable = prepare_model(read_model(bytes(write_lenet5())), 8, Loss.CROSS_ENTROPY)
    words = argparse.Namespace(data=tmp_path / "test.npz", seed=0, own_data=True)
    assert len(load_samples(words, trainable).test) == 40
    words.own_data = False
    assert len(load_samples(words, trainable).test) == 10


def test_a_quantised_model_is_refused_before_anything_is_sent(
    training: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tflite.models import quantised

    model = tmp_path / "int8.tflite"
    model.write_bytes(quantised())
    words = ["train", "--on-devices", "--model", str(model), "--data", str(training.data), "--out", str(tmp_path)]
    assert main([*words, *training.connection]) == 2
    assert "float" in capsys.readouterr().err


@needs("cryptography")
def test_masked_updates_teach_the_same_and_a_killed_node_is_survived(
    training: Training, mosquitto: Mosquitto, capsys: pytest.CaptureFixture[str]
) -> None:
    topics = Topics(training.connection[-1], "har")
    spy = open_bus(mosquitto.address, Session("spy", clean_start=True, receive_max=1000))
    spy.subscribe([topics.training("+", level) for level in ("update/+", "mask/+", "relay/#")])
    updates, parts = [], Counter[str]()

    def listen() -> None:
        for one in spy.poll(0.0):
            spy.acknowledge(one)
            event = decode(one, topics)
            assert isinstance(event, TrainingEvent), event
            if isinstance(event.message, Update):
                updates.append(event.message)
            elif isinstance(event.message, MaskPart):
                parts["keys" if event.message.keys else "shares" if event.message.shares else "told"] += 1

    training.nodes("a", "b", "c", "d")
    command = training.train("train", "--workers", "4", "--secure")
    training.until(lambda: listen() or "epoch 1: accuracy" in command.output)
    training.processes.kill("b")
    training.until(lambda: listen() or command.process.poll() is not None)
    spy.close(forget=True)
    assert command.wait(TIMEOUT_S) == 0, training.processes.last_lines()
    said = command.output
    assert "updates masked" in said and "goes on without b: lost: its connection broke" in said
    assert f"{EPOCHS * training.samples} samples counted in" in said
    assert "updates are masked: server and broker see their sums alone" in said
    found = re.search(r"accuracy ([\d.]+) on 359 held-out samples of .* after epoch 8; broker mqtt://", said)
    assert found is not None and float(found[1]) > 0.9, said
    assert {(one.vector.kind, one.loss, one.correct) for one in updates} == {("u4", 0.0, 0)}
    assert min(parts["keys"], parts["shares"], parts["told"]) >= 3 * EPOCHS
    # Each byte of a masked vector is as likely as any other, to six deviations; those of floats are not.
    for one in updates[:: max(1, len(updates) // 20)]:
        counts = np.bincount(np.frombuffer(one.vector.data, np.uint8), minlength=256)
        expected = len(one.vector.data) / 256
        assert np.abs(counts - expected).max() < 6 * expected**0.5
    main(["status", "--no-probe", "--json", *training.connection])
    (seen,) = json.loads(capsys.readouterr().out)["trainings"]
    assert (seen["state"], seen["privacy"]) == (
        "finished",
        "updates are masked: server and broker see their sums alone",
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--mode", "stale:2"), "--secure with --mode stale: each update stands alone, so no sum hides it"),
        (("--compress", "topk:0.01"), "--secure with --compress topk:0.01: masked values look random"),
        (("--workers", "2"), "--secure with --workers 2: each of two workers would know the other's update; ask for 3"),
        (("--workers", "1000"), "ask for 3 to 512 with --workers"),
        (("--int8",), "--int8: "),
    ],
)
def test_masks_that_would_hide_nothing_are_refused_before_data_are_read(
    options: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--on-devices", "--model", "lenet5", "--data", str(tmp_path / "nowhere"), "--workers", "4"]
    assert main([*words, "--out", str(tmp_path), "--secure", *options]) == 2
    assert says in capsys.readouterr().err


def test_masks_need_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda module: module != "cryptography")
    words = ["train", "--on-devices", "--model", "lenet5", "--data", str(tmp_path / "nowhere"), "--workers", "3"]
    assert main([*words, "--out", str(tmp_path), "--secure"]) == 2
    assert "masked sums (--secure) needs cryptography, which is not installed; pip install" in capsys.readouterr().err
