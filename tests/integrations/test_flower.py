"""The Flower app: its configuration, its samples, and a real SuperLink with SuperNodes that train with it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from har_edge.errors import ConfigError
from har_edge.integrations.flower import FlowerSettings, make_client_app, read_node_data, read_settings
from har_edge.learning.data.dataset_files import read_data
from har_edge.learning.local_training import LocalTraining
from har_edge.learning.updates.vectors import flatten
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.training_graph import write_training_graph
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import read_model
from tests.integrations.flower_environment import federation, make_environment
from tests.tflite import models

EXAMPLE = Path(__file__).parents[2] / "examples/flower"
WIDTH, CLASSES = 20, 3


def write_samples(path: Path, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, 300)
    x = (random.standard_normal((300, WIDTH)) + 3 * np.eye(CLASSES, WIDTH)[y]).astype(np.float32)
    np.savez(path, x=x, y=y)
    return path


def test_settings_have_the_names_of_the_configuration() -> None:
    assert read_settings({"model": "m.tflite", "local-epochs": 2, "strategy": "FedAvg"}) == FlowerSettings(
        model="m.tflite", local_epochs=2
    )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "[tool.flwr.app.config]: Object missing required field `model`"),
        ({"model": "m", "batch": 0}, "batch is 0, expected at least 1"),
        ({"model": "m", "rounds": "ten"}, "Expected `int`, got `str` - at `$.rounds`"),
    ],
)
def test_settings_that_are_wrong(config: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_settings(config)


def test_nodes_share_one_data_set_by_turns(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "samples.npz")
    whole = read_data(path)
    parts = [read_node_data({"data": str(path), "partition-id": number, "num-partitions": 3}) for number in range(3)]
    assert sum(len(part.train) for part in parts) == len(whole.train)
    np.testing.assert_array_equal(parts[1].train.x, whole.train.x[1::3])
    np.testing.assert_array_equal(parts[2].test.y, whole.test.y[2::3])
    np.testing.assert_array_equal(read_node_data({"data": str(path)}).train.x, whole.train.x)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "this SuperNode has no samples; start it with --node-config 'data=\"PATH\"'"),
        ({"partition-id": 2, "num-partitions": 2}, "partition-id=2 of num-partitions=2, expected whole numbers"),
        ({"partition-id": "a"}, "partition-id=a of num-partitions=1"),
    ],
)
def test_nodes_without_samples(tmp_path: Path, config: dict[str, object], says: str) -> None:
    if config:
        config = {"data": str(write_samples(tmp_path / "samples.npz")), **config}
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_node_data(config)


def test_without_flower_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"a Flower app needs Flower, .*har-edge\[flower\]"):
        make_client_app()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_strategies_train_on_a_superlink_with_supernodes(tmp_path: Path) -> None:
    """Two strategies with the app of examples/flower; then a node whose samples have other classes."""
    programs = make_environment(tmp_path / "environment")
    before, samples = tmp_path / "model.tflite", write_samples(tmp_path / "samples.npz")
    before.write_bytes(models.averaging({"x": (WIDTH,)}, classes=CLASSES))
    np.savez(tmp_path / "other.npz", x=np.zeros((40, WIDTH), np.float32), y=np.arange(40) % 5)
    nodes = [f'data="{samples}" partition-id={number} num-partitions=2' for number in range(2)]
    common = {"model": str(before), "rounds": 2, "batch": 16, "local-epochs": 8, "optimizer": "sgd:lr=0.1"}
    start = accuracy(before, samples)
    with federation(programs, tmp_path / "good", nodes) as here:
        for strategy in ("FedAvg", "FedProx"):
            out = tmp_path / f"{strategy}.tflite"
            log = here.run(EXAMPLE, {**common, "out": str(out), "strategy": strategy})
            assert f"har_edge: {out} written, 2 of 2 rounds trained" in log, log[-3000:]
            assert log.count("aggregate_train: Received 2 results and 0 failures") == 2, log[-3000:]
            assert log.count("aggregate_evaluate: Received 2 results and 0 failures") == 2, log[-3000:]
            assert accuracy(out, samples) >= 0.9 > start
    with federation(programs, tmp_path / "bad", [f'data="{tmp_path / "other.npz"}"']) as here:
        log = here.run(EXAMPLE, {**common, "out": str(tmp_path / "none.tflite"), "rounds": 1, "nodes": 1})
        assert "no node trained in any round, so nothing is written" in log, log[-3000:]
        assert "other: 5 classes, and the model tells 3 apart" in here.log("node0"), here.log("node0")[-3000:]
    assert not (tmp_path / "none.tflite").exists()


def accuracy(path: Path, samples: Path) -> float:
    """Return the share of right answers of a model on the test samples."""
    model = read_model(path)
    graph = write_training_graph(model, batch=16, loss=Loss.CROSS_ENTROPY)
    weights = flatten(read_weights(model), graph.spec.weights)
    return LocalTraining(graph.data, graph.spec).evaluate(weights, read_data(samples).test).accuracy
