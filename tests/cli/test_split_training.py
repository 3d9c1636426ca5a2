"""`har-edge train --on-devices --split` with processes on Mosquitto: three nodes train one network in stages."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.cli.reports.training_files import say_unfinished
from har_edge.cluster.processes import Running
from har_edge.learning.data.dataset_files import ReadOptions, read_data
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.lenet import write_lenet5
from har_edge.learning.optimizers.rates import with_steps
from har_edge.learning.split.batches import BatchOrder
from har_edge.learning.split.record import SplitRecord
from har_edge.mqtt.broker.launcher import Mosquitto
from har_edge.planner.training_profile import store_training_profile
from har_edge.tflite.gradient.stage_graphs import training_cuts
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import read_model
from tests.cli.test_device_training import TIMEOUT_S, Training
from tests.learning.split.rig import train_alone
from tests.planner.training_cases import profile, segment

OPTIMIZER = "momentum:lr=0.05,schedule=cosine"
EPOCHS = 3


@pytest.fixture
def training(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Training]:
    made = Training(tmp_path, mosquitto.address.url, f"s{time.time_ns()}")
    model = read_model(bytes(write_lenet5()))
    bounds = [0, *training_cuts(model), len(model.main.operators)]
    pieces = [segment(start, 0.001, 0.002, last=start == bounds[-2]) for start in bounds[:-1]]
    times = msgspec.structs.replace(profile(pieces), model=model.name, model_sha256=model.sha256)
    store_training_profile(times, tmp_path / "profile.json")
    try:
        yield made
    finally:
        made.processes.stop()


def start(training: Training, name: str, *options: str, epochs: int = EPOCHS) -> Running:
    words = ["train", "--on-devices", "--split", "--model", "lenet5", "--data", str(training.data)]
    words += ["--out", str(training.folder / "out"), "--cache", str(training.folder / "cache")]
    words += ["--profile", str(training.folder / "profile.json"), "--stages", "3", "--micro-batches", "4"]
    words += ["--epochs", str(epochs), "--workers", "3", *training.connection]
    return training.processes.start(name, [*words, *options], log=training.folder / f"{name}.log")


def test_three_nodes_train_in_stages_and_a_killed_one_costs_some_steps(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    training.nodes("a", "b", "c")
    command = start(training, "train")
    training.until(lambda: "epoch 1: accuracy" in command.output)
    training.processes.kill("b")
    assert command.wait(TIMEOUT_S) == 0, training.processes.last_lines()
    said = command.output
    assert re.search(r"b is lost; back from step \d+ to \d+: \d+ steps? computed again", said), said
    assert f"{EPOCHS * training.samples} samples counted in" in said
    found = re.search(r"accuracy ([\d.]+) on 359 held-out samples of .* after epoch 3; broker mqtt://", said)
    assert found is not None and float(found[1]) > 0.9, said
    record = msgspec.json.decode((training.folder / "out" / "lenet5.record.json").read_bytes(), type=SplitRecord)
    check_against_one_device(training, record)
    main(["status", "--no-probe", "--json", *training.connection])
    (seen,) = json.loads(capsys.readouterr().out)["trainings"]
    assert (seen["state"], seen["epoch"], seen["run"]) == ("finished", EPOCHS, "lenet5")


def check_against_one_device(training: Training, record: SplitRecord) -> None:
    """Check that the losses and the weights are those of one device."""
    model = read_model(bytes(write_lenet5()))
    data: Dataset = read_data(training.data, ReadOptions(shape=(28, 28), seed=0)).train.reshaped((28, 28, 1))
    order = BatchOrder(len(data), 32, 0)
    steps = EPOCHS * order.steps_an_epoch
    weights, losses = train_alone(model, data, order, steps, with_steps(OPTIMIZER, steps))
    assert [row.step for row in record.steps] == list(range(steps)) and len(record.recoveries) == 1
    np.testing.assert_allclose([row.loss for row in record.steps[:100]], losses[:100], atol=1e-4)
    trained = read_weights(read_model((training.folder / "out" / "lenet5.tflite").read_bytes()))
    for name, values in weights.items():
        np.testing.assert_allclose(trained[name], values, rtol=0, atol=1e-3)


def test_a_stopped_run_goes_on(training: Training) -> None:
    training.nodes("a", "b", "c")
    first = start(training, "first", epochs=40)
    training.until(lambda: "epoch 1: accuracy" in first.output)
    first.send_signal(signal.SIGINT)
    assert first.wait(TIMEOUT_S) == 130, training.processes.last_lines()
    assert "the same command goes on from" in first.output
    (training.folder / "out" / "lenet5.split.checkpoint").unlink()  # the broker has it, too
    step = int(re.findall(r"after (\d+) steps", first.output)[-1])
    second = start(training, "second", epochs=40)
    training.until(lambda: f"goes on from the broker: step {step}" in second.output)
    training.until(lambda: "epoch 2: accuracy" in second.output)
    second.send_signal(signal.SIGINT)
    assert second.wait(TIMEOUT_S) == 130


def test_options_of_data_parallel_training_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--on-devices", "--split", "--model", "lenet5", "--data", str(tmp_path), "--out", str(tmp_path)]
    assert main([*words, "--own-data", "--mode", "sync"]) == 2
    assert "--split came with --own-data, --mode, which" in capsys.readouterr().err


def test_the_words_of_a_node_that_ended_a_run_do_not_reach_the_terminal_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say_unfinished("b: no\x1b[31m", tmp_path / "r.checkpoint")
    assert capsys.readouterr().out.strip() == "not finished: b: no\\x1b[31m"
