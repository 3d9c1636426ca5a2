"""Sensors, results and clusters of a program, with real processes on a broker of their own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import har_edge
from har_edge.errors import BrokerError, ConfigError, DataError, NodeError
from har_edge.monitor.leftovers import read_retained
from har_edge.mqtt.broker.embedded import start_embedded
from har_edge.mqtt.broker.launcher import Mosquitto
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.connect import open_bus

LENGTH, HOP, CHANNELS = 250, 125, 23


@pytest.fixture(scope="module")
def cluster() -> Iterator[har_edge.LocalCluster]:
    with har_edge.LocalCluster("int8", cuts=[9]) as cluster:
        yield cluster


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (count, CHANNELS)).astype(np.float32)


def test_what_a_sensor_sends_is_answered_as_the_whole_model_does(cluster: har_edge.LocalCluster) -> None:
    from har_edge.data.recording import Recording
    from har_edge.data.windows import windows
    from har_edge.evaluation.composition import load_whole
    from har_edge.evaluation.prediction import Classifier

    samples, task = rows(LENGTH + 4 * HOP), cluster.pipeline.task
    with cluster.watch(limit=5, timeout_s=30) as results, cluster.sensor("one") as sensor:
        split = np.split(samples, np.cumsum(list(sensor.channels.values()))[:-1], axis=1)
        by_source = dict(zip(sensor.channels, split, strict=True))
        assert sensor.send(samples[:300]) == 1
        assert sensor.send({source: values[300:] for source, values in by_source.items()}) == 4
        came = list(results)
    assert (sensor.sent, sensor.lost, sensor.unanswered) == (5, 0, 0)
    recording = Recording("one", 50.0, by_source, np.full(len(samples), -1, np.int16), (0,), False)
    whole = load_whole(har_edge.load_model("int8").path, task)
    predict = Classifier(whole.run, whole.inputs, task).predict
    cut = windows(recording, LENGTH, HOP, within_activity=False)
    wanted = {window.seq: task.labels[predict(window).answer] for window in cut}
    assert {result.seq: result.label for result in came} == wanted


def test_times_of_windows_are_those_of_their_last_samples(cluster: har_edge.LocalCluster) -> None:
    at = time.time()
    with cluster.watch(limit=3, timeout_s=30) as results, cluster.sensor("times") as sensor:
        sensor.send(rows(LENGTH + 2 * HOP + 50), captured=at)
        came = {result.seq: result.captured for result in results}
    # 50 samples at 50 Hz came after the last window, and windows are 125 samples apart.
    assert came == pytest.approx({0: at - 6.0, 1: at - 3.5, 2: at - 1.0}, abs=1e-6)


def test_sensors_of_some_sources_complete_each_others_windows(cluster: har_edge.LocalCluster) -> None:
    with (
        cluster.watch(limit=2, timeout_s=30) as results,
        cluster.sensor("two", sources=["chest"]) as chest,
        cluster.sensor("two", sources=["ankle", "arm"]) as limbs,
    ):
        assert (chest.channels, limbs.channels) == ({"chest": 5}, {"ankle": 9, "arm": 9})
        chest.send(rows(LENGTH + HOP)[:, :5])
        limbs.send(rows(LENGTH + HOP)[:, 5:])
        assert sorted(result.seq for result in results) == [0, 1]


def test_samples_of_another_shape_are_refused_and_lose_nothing(cluster: har_edge.LocalCluster) -> None:
    with cluster.watch(limit=1, timeout_s=30) as results, cluster.sensor("odd") as sensor:
        sensor.send(rows(100))
        with pytest.raises(DataError, match=r"samples of chest \+ .* have the shape \[3, 4\]; expected \[n, 23\]"):
            sensor.send(np.zeros((3, 4)))
        with pytest.raises(DataError, match="not finite"):
            sensor.send(np.full((3, CHANNELS), np.nan))
        with pytest.raises(DataError, match="samples of chest came; expected chest, ankle, arm"):
            sensor.send({"chest": np.zeros((3, 5))})
        with pytest.raises(DataError, match="are no numbers"):
            sensor.send("text")
        assert sensor.send_each(iter(rows(150))) == 1
        assert [(result.stream, result.seq) for result in results] == [("odd", 0)]


def test_results_come_to_an_asyncio_program_while_others_run(cluster: har_edge.LocalCluster) -> None:
    async def count(ticks: list[float]) -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def program() -> tuple[list[int], int]:
        ticks: list[float] = []
        other = asyncio.create_task(count(ticks))
        async with cluster.watch(limit=3, timeout_s=30) as results:
            sending = asyncio.create_task(asyncio.to_thread(feed))
            waiting = asyncio.create_task(results.__anext__())
            await asyncio.sleep(0.05)
            waiting.cancel()  # what comes is not lost by that
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            seqs = [result.seq async for result in results]
            await sending
        other.cancel()
        return seqs, len(ticks)

    def feed() -> None:
        with cluster.sensor("async") as sensor:
            for start in range(0, LENGTH + 2 * HOP, HOP):
                sensor.send(rows(HOP, start))
                time.sleep(0.1)

    seqs, ticks = asyncio.run(program())
    assert sorted(seqs) == [0, 1, 2] and ticks > 10


def test_an_iterator_ends_cleanly_when_it_is_left(cluster: har_edge.LocalCluster) -> None:
    results = cluster.watch()
    with cluster.sensor("left") as sensor:
        sensor.send(rows(LENGTH))
        assert next(iter(results)).stream == "left"
    results.close()
    results.close()
    assert list(results) == []


def test_silence_is_an_error_where_it_was_asked_for(cluster: har_edge.LocalCluster) -> None:
    with cluster.watch(timeout_s=0.3) as results, pytest.raises(NodeError, match=r"no result of .* for 0.3 s, after 0"):
        next(results)


def test_results_are_those_of_the_last_replay(cluster: har_edge.LocalCluster) -> None:
    with cluster.sensor("beside") as sensor:
        sensor.send(rows(LENGTH + 4 * HOP))
    for stream in ("subject7", "subject8"):
        cluster.replay(stream, windows=3)
        assert [(result.stream, result.seq) for result in cluster.results()] == [(stream, seq) for seq in range(3)]
        assert cluster.answered == cluster.windows_in == 3  # more would hide as many that are lost


def test_replayed_windows_that_are_lost_are_an_error() -> None:
    with har_edge.LocalCluster("int8", cuts=[9]) as cluster:
        cluster.replay("subject7", windows=500, speed=200)
        results = cluster.results()
        next(results)
        cluster.kill("stage-1")
        with pytest.raises(NodeError, match=r"stage-1 ended with exit code -9; its log ends:\n--- stage-1"):
            list(results)
        assert "stage 0 connected" in cluster.logs("stage-0")
    for use in (cluster.replay, cluster.sensor, cluster.watch, lambda: next(cluster.results())):
        with pytest.raises(NodeError, match="the cluster has ended; make a new one"):
            use()


@pytest.mark.slow
def test_nothing_stays_at_the_broker_of_somebody_else(mosquitto: Mosquitto) -> None:
    def look(session: Session) -> Bus:
        return open_bus(mosquitto.address, session)

    for nodes in (None, 1):
        with har_edge.LocalCluster("int8", stages=1, nodes=nodes, broker=mosquitto.address.url) as cluster:
            assert cluster.broker == mosquitto.address.url
            kept = read_retained(look, cluster.topics)
            assert kept.statuses and (kept.plan is None) == (nodes is None)
        kept = read_retained(look, cluster.topics)
        assert (dict(kept.statuses), kept.plan, kept.headers) == ({}, None, ())


def test_windows_that_nobody_answers_are_an_error(cluster: har_edge.LocalCluster) -> None:
    with har_edge.LocalCluster("int8", cuts=[9]) as lonely:
        lonely.kill("stage-0")
        lonely.kill("stage-1")
        sensor = lonely.sensor("nobody", in_flight=1)
        sensor.send(rows(LENGTH))
        with pytest.raises(NodeError, match=r"1 windows of nobody are unanswered after 0 s"):
            sensor.send(rows(HOP), timeout_s=0.2)
        with pytest.raises(NodeError, match=r"1 of \d windows of nobody were given up without an answer"):
            sensor.close(0.5)


def test_a_window_counts_as_unanswered_while_it_is_handed_on(
    cluster: har_edge.LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.sensor("handed") as sensor:
        counted = list[int]()
        send = sensor._publisher.send
        monkeypatch.setattr(sensor._publisher, "send", lambda *given: (counted.append(sensor.unanswered), send(*given)))
        sensor.send(rows(LENGTH))
    assert counted == [1]


def test_a_stage_that_has_ended_is_named_soon_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_edge.api.sensor.DEAD_S", 1.0)
    with har_edge.LocalCluster("int8", cuts=[9]) as cluster:
        cluster.kill("stage-1")
        began = time.monotonic()
        sensor = cluster.sensor("waiting", in_flight=1)
        sensor.send(rows(LENGTH))
        with pytest.raises(NodeError, match=r"1 windows of waiting are unanswered after [1-9]") as blocked:
            sensor.send(rows(HOP))
        with pytest.raises(NodeError, match=r"1 of 1 windows of waiting were given up without an answer") as closed:
            sensor.close()
        assert time.monotonic() - began < 60  # not the 120 s of give_up_s
        for error in (blocked, closed):
            assert "this one has ended" in str(error.value) and "--- stage-1 (exit code -9)" in str(error.value)
            assert f"`har-edge status --broker {cluster.broker} --base har --pipeline" in str(error.value)
            assert "stage-0" not in str(error.value)


def test_a_stage_may_be_started_again_while_windows_wait() -> None:
    with har_edge.LocalCluster("int8", cuts=[9]) as cluster:
        cluster.kill("stage-1")
        with cluster.sensor("patient") as sensor:
            sensor.send(rows(LENGTH))
            cluster.restart("stage-1")
        assert (sensor.sent, sensor.lost) == (1, 0)


def test_one_sensor_of_a_program_sends_a_source_of_a_stream(cluster: har_edge.LocalCluster) -> None:
    with cluster.sensor("twin") as sensor:
        with pytest.raises(NodeError, match="sends ankle, arm, chest of stream 'twin' already"):
            cluster.sensor("twin", name="other")
        with pytest.raises(NodeError, match="sends arm of stream 'twin' already; expected one sensor for each source"):
            cluster.sensor("twin", sources=["arm"])
        with cluster.sensor("other"), cluster.sensor("third"):
            pass
        assert sensor.send(rows(LENGTH)) == 1
    with cluster.sensor("twin") as sensor:  # it is free again
        assert sensor.send(rows(LENGTH)) == 1


def test_windows_that_cannot_be_sent_are_an_error(tmp_path: Path) -> None:
    pipeline = har_edge.split("int8", tmp_path, cuts=[9])
    broker = start_embedded()
    sensor = har_edge.Sensor(pipeline, stream="cut-off", broker=broker.address)
    broker.stop()
    deadline = time.monotonic() + 20
    while sensor._publisher.connected:
        assert time.monotonic() < deadline, "it does not see that the broker has gone"
        time.sleep(0.01)
    assert sensor.send(rows(LENGTH + HOP)) == 2
    with pytest.raises(NodeError, match="2 of 2 windows of cut-off were given up without an answer, 2 of them unsent"):
        sensor.close(0.5)


def test_an_error_of_the_block_is_the_one_to_be_seen(
    cluster: har_edge.LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError), cluster.sensor("error") as sensor:
        sensor.send(rows(10))
        raise ZeroDivisionError
    with pytest.raises(NodeError, match="has ended"):
        sensor.send(rows(10))


@pytest.mark.slow
def test_a_coordinated_cluster_grows_shrinks_and_heals() -> None:
    with har_edge.LocalCluster("int8", stages=2, nodes=2) as cluster:
        assert cluster.names == ["coordinator", "node-1", "node-2"]
        cluster.scale(3)
        cluster.kill("node-1")
        cluster.wait_deployed()
        assert cluster.names == ["coordinator", "node-2", "node-3"]
        with cluster.watch(limit=2, timeout_s=30) as results, cluster.sensor("healed") as sensor:
            sensor.send(rows(LENGTH + HOP))
            assert sorted(result.seq for result in results) == [0, 1]
        cluster.restart("node-1")
        cluster.scale(1)
        assert len(cluster.names) == 2
        with pytest.raises(ConfigError, match=r"scale\(0\) came; expected at least 1 node"):
            cluster.scale(0)


def test_what_cannot_be_is_said(tmp_path: Path, cluster: har_edge.LocalCluster) -> None:
    with pytest.raises(ConfigError, match="neither a folder nor pipeline=NAME came"):
        har_edge.watch()
    with pytest.raises(ConfigError, match="a folder and pipeline='har' came"):
        har_edge.Sensor(tmp_path, pipeline="har")
    with pytest.raises(ConfigError, match="sources wrist came; expected some of chest, ankle, arm"):
        cluster.sensor("odd", sources=["wrist"])
    with pytest.raises(BrokerError):
        har_edge.watch(cluster.pipeline, broker="mqtt://127.0.0.1:1")
    with pytest.raises(ConfigError, match="the stages of this cluster are fixed"):
        cluster.scale(2)
    with pytest.raises(ConfigError, match="the stages of this cluster are fixed"):
        cluster.wait_deployed()
    with pytest.raises(ConfigError, match="windows=0 came; expected at least 1"):
        cluster.replay(windows=0)
    with pytest.raises(ConfigError, match="speed=-1 came; expected a positive number"):
        cluster.replay(speed=-1)
    with pytest.raises(ConfigError, match="in_flight=0 came; expected at least 1"):
        cluster.sensor("odd", in_flight=0)
    with pytest.raises(ConfigError, match=r"no process 'stage-7'; expected one of stage-0, stage-1"):
        cluster.kill("stage-7")
    with pytest.raises(ConfigError, match="nodes=0 came"):
        har_edge.LocalCluster("int8", nodes=0)
    with pytest.raises(NodeError, match="no plan of pipeline 'nothing' came for 0 s"):
        har_edge.Sensor(pipeline="nothing", broker=cluster.broker, give_up_s=0.2)


def test_a_cluster_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import har_edge, sys, time\n"
        f"cluster = har_edge.LocalCluster('int8', cuts=[9], directory={str(tmp_path / 'c')!r})\n"
        "print(*(one.process.pid for one in cluster.processes.running.values()), flush=True)\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "c").mkdir()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
