"""Shards as processes on a broker: one that is killed in mid-stream costs no window and changes no bit of an answer."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import har_edge
from har_edge.config.catalog import find_model
from har_edge.inference.tensor_observation import open_model
from har_edge.runtime.slicing import prepare
from har_edge.tflite.split.coded_plan import code_layers, spell

LENGTH, HOP, CHANNELS, WINDOWS = 250, 125, 23, 40
SPLIT = "rows:0-3@2 rows:3-6@2 rows:6-11@3,2 whole:11-17@2"


def answers(cluster: har_edge.LocalCluster, stream: str, kill: str = "") -> dict[int, tuple[str, float]]:
    """Send the same windows, a part of them while a stage is dead; return the label and score of each."""
    samples = np.random.default_rng(0).normal(0, 3, (LENGTH + (WINDOWS - 1) * HOP, CHANNELS)).astype(np.float32)
    with cluster.watch(limit=WINDOWS, timeout_s=60) as results, cluster.sensor(stream) as sensor:
        parts = np.array_split(samples, 8)
        for number, part in enumerate(parts):
            if kill and number == 3:
                cluster.kill(kill)
            if kill and number == 6:
                cluster.restart(kill)
            sensor.send(part)
            time.sleep(0.05)
        came = [result for result in results if result.stream == stream]
    assert len(came) == len({result.seq for result in came}) == WINDOWS
    assert (sensor.lost, sensor.unanswered) == (0, 0)
    return {result.seq: (result.label, result.confidence) for result in came}


@pytest.mark.slow
def test_a_shard_that_is_killed_in_mid_stream_costs_no_window_and_no_bit(tmp_path: Path) -> None:
    found = find_model("int8")
    assert found.entry is not None
    prepare(found.path, found.entry.task, tmp_path / "slices", stages=1, split=SPLIT, name="shards")
    with har_edge.LocalCluster(tmp_path / "slices") as cluster:
        undisturbed = answers(cluster, "calm")
        assert len({score for _, score in undisturbed.values()}) > 1
        for index in (0, 1):
            assert answers(cluster, f"kill-{index}", f"stage-{index}") == undisturbed


def answers_without(cluster: har_edge.LocalCluster, stream: str, dead: str) -> dict[int, tuple[str, float]]:
    """Send the windows, kill a stage after a quarter of them, and take all answers before it is started again."""
    samples = np.random.default_rng(0).normal(0, 3, (LENGTH + (WINDOWS - 1) * HOP, CHANNELS)).astype(np.float32)
    with cluster.watch(limit=WINDOWS, timeout_s=60) as results, cluster.sensor(stream) as sensor:
        for number, part in enumerate(np.array_split(samples, 8)):
            if number == 2:
                cluster.kill(dead)
            sensor.send(part)
            time.sleep(0.05)
        came = [result for result in results if result.stream == stream]
        assert dead not in cluster.names
    assert len(came) == len({result.seq for result in came}) == WINDOWS
    assert (sensor.lost, sensor.unanswered) == (0, 0)
    return {result.seq: (result.label, result.confidence) for result in came}


@pytest.mark.slow
def test_no_window_waits_for_a_shard_that_a_parity_stands_for(tmp_path: Path) -> None:
    found = find_model("int8")
    assert found.entry is not None
    split = spell(code_layers(open_model(found.path), [1.0] * 3))
    prepare(found.path, found.entry.task, tmp_path / "slices", stages=1, split=split, name="parity")
    with har_edge.LocalCluster(tmp_path / "slices") as cluster:
        undisturbed = answers(cluster, "calm")
        assert len({score for _, score in undisturbed.values()}) > 1
        for index in range(3):
            assert answers_without(cluster, f"kill-{index}", f"stage-{index}") == undisturbed
            cluster.restart(f"stage-{index}")
            cluster.wait_ready([f"stage-{index}"])
        assert answers(cluster, "again", "stage-3") == undisturbed, "the one that answers is waited for"
