"""A run on this machine ends when every window is answered by the sensors' last word, and not before."""

import pytest

from har_edge.cluster import cluster as cluster_module
from har_edge.cluster.cluster import QUIET_S, Cluster
from har_edge.cluster.processes import Command, Running
from har_edge.cluster.summary import summarize
from har_edge.errors import NodeError
from har_edge.monitor.window_account import WindowAccount
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import NodeStatus, State, StreamCount, encode_status
from har_edge.protocol.topics import Topics
from har_edge.runtime.build import topics_of
from tests.runtime.rig import Clock
from tests.runtime.test_loop import ScriptedBus


class Process:
    """A process that has ended with a code, or runs while it is None."""

    pid = -1

    def __init__(self, code=None):
        self.code = code

    def poll(self):
        return self.code


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(50.0)
    monkeypatch.setattr(cluster_module.time, "monotonic", clock)
    return clock


def run_of(pipeline, bus, **processes):
    run = Cluster(pipeline, Address("127.0.0.1", 1), bus=bus)
    for name, process in processes.items():
        known = name.replace("_", "-")
        run.processes.running[known] = Running(known, Command([]), process)
    return run


def status(topics: Topics, node, state, windows, role="sensor"):
    text = encode_status(NodeStatus(node, role, state, "1", 1.0, counters={"windows": windows, "raw_bytes": 7}))
    return Delivery(topics.status(node), text, (1, 1))


def answer(topics: Topics, seq):
    return Delivery(topics.result("s"), encode_results([Result("s", seq, "still", 1, 0.5, 1.0, 2.0, 1, 1)]), (1, 1))


def test_a_late_farewell_of_a_sensor_is_waited_for(cut, clock):
    """A short run: the only status so far was its birth, with no window counted."""
    pipeline = cut("int8", 9)
    topics, sensor = topics_of(pipeline), Process()
    bus = ScriptedBus(clock=clock)

    def end():
        sensor.code = 0

    bus.script.extend([[status(topics, "sensor-chest", State.READY, 0)], end, (), ()])
    bus.script.extend(
        [[status(topics, "sensor-chest", State.STOPPED, 2)], (), [answer(topics, 0)], [answer(topics, 1)]]
    )
    run = run_of(pipeline, bus, sensor_chest=sensor)
    arrivals = [arrival for arrival in run.arrivals() if arrival is not None]
    assert [arrival.result.seq for arrival in arrivals] == [0, 1] and run.windows_in == 2
    assert not bus.script, "it must not end before the last result"
    summary = summarize(run, arrivals, 1.0)
    assert (summary.windows_in, summary.windows_out, summary.lost, summary.duplicated) == (2, 2, 0, 0)


def test_what_never_comes_counts_as_lost_after_a_quiet_while_that_starts_with_the_last_sign_of_life(cut, clock):
    pipeline = cut("int8", 9)
    topics, sensor = topics_of(pipeline), Process()
    bus = ScriptedBus(clock=clock)

    def end():
        clock.now += 10 * QUIET_S  # a slow model: long without a result while the sensor still runs
        sensor.code = 0
        return [status(topics, "sensor-chest", State.STOPPED, 3)]

    bus.script.extend([[answer(topics, 0)], end, (), [answer(topics, 1)]])
    run = run_of(pipeline, bus, sensor_chest=sensor)
    arrivals = [arrival for arrival in run.arrivals() if arrival is not None]
    assert len(arrivals) == 2 and not bus.script
    assert 10 * QUIET_S + QUIET_S <= clock.now - 50.0 < 10 * QUIET_S + 2 * QUIET_S
    assert summarize(run, arrivals, 1.0).lost == 1


@pytest.mark.parametrize(("name", "code"), [("sensor_chest", 2), ("stage_0", 3), ("stage_0", 0), ("sensor_chest", -9)])
def test_a_process_that_ends_by_itself_is_named(cut, clock, name, code):
    run = run_of(cut("int8", 9), ScriptedBus(clock=clock), **{name: Process(code)})
    with pytest.raises(NodeError, match=f"{name.replace('_', '-')} ended with exit code {code}; its own message"):
        list(run.arrivals())


def test_a_sensor_that_gave_windows_up_ends_no_run_and_the_summary_names_them(cut, clock):
    pipeline = cut("int8", 9)
    topics, bus = topics_of(pipeline), ScriptedBus(clock=clock)
    streams = {"s": StreamCount(1, 1.0, 3, 1, 2)}
    last = NodeStatus("sensor-chest", "sensor", State.STOPPED, "1", 1.0, counters={"windows": 3}, streams=streams)
    bus.script.extend([[answer(topics, 0), Delivery(topics.status("sensor-chest"), encode_status(last), (1, 1))]])
    run = run_of(pipeline, bus, sensor_chest=Process(1))
    run.account = WindowAccount(0.0)
    arrivals = [arrival for arrival in run.arrivals() if arrival is not None]
    summary = summarize(run, arrivals, 1.0)
    assert (summary.lost, summary.losses) == (2, "lost windows: 2 of 3 of s")


def test_statuses_of_strangers_and_garbage_are_left_alone(cut, clock, caplog):
    pipeline = cut("int8", 9)
    topics = topics_of(pipeline)
    bus = ScriptedBus(clock=clock)
    bus.script.append([
        status(topics, "sensor-else", State.STOPPED, 99),
        Delivery(topics.status("sensor-chest"), b"{", (1, 1)),
        Delivery(topics.status("sensor-chest"), b"", (1, 1)),
        status(topics, "sensor-chest", State.STOPPED, 1),
        answer(topics, 0),
        answer(topics, 0),
    ])  # fmt: skip
    run = run_of(pipeline, bus, sensor_chest=Process(0))
    assert len([arrival for arrival in run.arrivals() if arrival is not None]) == 1
    assert run.windows_in == 1 and run.view.sink.counters.duplicates == 1 and "dropped a message" in caplog.text
