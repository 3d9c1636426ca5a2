"""What a device says of itself: limits of control groups of both versions, a speed in which a quota bites."""

import os

import pytest

from har_edge.errors import BrokerError, NodeError
from har_edge.mqtt.bus import Session
from har_edge.mqtt.measure.link_benchmark import LinkEstimate, estimate_link
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.deployment import PROTOCOL
from har_edge.resources import find_folder
from har_edge.runtime.node import capabilities as card_module
from har_edge.runtime.node.capabilities import (
    REFERENCE,
    count_runs,
    make_card,
    measure_speed,
    open_reference,
    read_cores,
    read_machine,
    read_memory,
    read_runtime,
    read_system,
)
from har_edge.tflite.model import read_model
from tests.runtime.rig import Clock

MEMINFO = "MemTotal:        1000000 kB\nMemFree:          500000 kB\n"
UNLIMITED = str(2**63 - 4096)


def machine(root, **files):
    """Lay files out as /proc and /sys have them; `/` is `__`."""
    for name, text in {"proc__meminfo": MEMINFO, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def second(root, own, limits):
    """A machine with control groups of version 2, their files by path."""
    machine(root, **{"proc__self__cgroup": f"0::{own}\n"})
    for path, text in limits.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_memory_is_that_of_the_device_where_nothing_limits_it(tmp_path):
    assert read_memory(machine(tmp_path)) == 1000000 * 1024
    assert read_memory(second(tmp_path, "/a", {"a/memory.max": "max\n"})) == 1000000 * 1024


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("/a/b", {"a/b/memory.max": "300000000\n", "a/memory.max": "max\n"}, 300000000),
        ("/a/b", {"a/b/memory.max": "max\n", "a/memory.max": "200000000\n"}, 200000000),
        ("/a/b", {"a/b/memory.max": "300000000\n", "a/memory.max": "200000000\n"}, 200000000),
        ("/elsewhere/b", {"memory.max": "100000000\n"}, 100000000),  # a container sees its own group as the root
        ("/a", {"a/memory.max": "99999999999999\n"}, 1000000 * 1024),
    ],
)
def test_the_least_memory_limit_from_the_own_group_up_counts(tmp_path, own, limits, expected):
    assert read_memory(second(tmp_path, own, limits)) == expected


def test_version_1_groups_limit_memory_and_cores_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    root = machine(
        tmp_path,
        proc__self__cgroup="4:memory:/a\n1:cpu,cpuacct:/a\n0::/\n",
        sys__fs__cgroup__memory__memory__limit_in_bytes="x",
    )
    for name, text in {
        "memory/a/memory.limit_in_bytes": "400000000",
        "memory/memory.limit_in_bytes": UNLIMITED,
        "cpu/a/cpu.cfs_quota_us": "150000",
        "cpu/a/cpu.cfs_period_us": "100000",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
    }.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert read_memory(root) == 400000000 and read_cores(root) == 2


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 4), ("20000 100000", 1), ("150000 100000", 2), ("900000 100000", 4), ("nonsense", 4)],
)
def test_cores_are_those_that_may_be_used(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
    assert read_cores(second(tmp_path, "/a", {"a/cpu.max": quota + "\n"})) == expected


def test_a_device_without_those_files_has_memory_and_cores_all_the_same(tmp_path, monkeypatch):
    assert read_memory(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert read_cores(tmp_path) == os.cpu_count()


def test_a_machine_has_one_number_and_another_after_its_next_start(tmp_path):
    first = read_machine(machine(tmp_path, proc__sys__kernel__random__boot_id="aaaa-bbbb\n"))
    again = read_machine(machine(tmp_path, proc__sys__kernel__random__boot_id="aaaa-cccc\n"))
    assert (first, again) == ("aaaabbbb", "aaaacccc")
    assert read_machine(tmp_path / "none") == read_machine(tmp_path / "none") != ""


def test_the_runtime_has_a_name_and_a_version(monkeypatch):
    assert read_runtime().split()[0] in ("ai-edge-litert", "tflite-runtime")
    monkeypatch.setattr(card_module, "installed", lambda: None)
    with pytest.raises(NodeError, match=r"there is no runtime for slices here .*; for this interpreter: pip install"):
        read_runtime()


def test_the_delegate_on_the_card_is_the_one_that_the_runtime_applied(monkeypatch):
    assert open_reference("none").delegate.value == "none"
    assert open_reference().delegate.value == "xnnpack"
    assert make_card(1.0, None, "none").delegate == "none"
    assert make_card(1.0, None).packings == ("f2", "q8", "zstd")
    monkeypatch.setattr("har_edge.protocol.compression.is_available", lambda: False)
    assert make_card(1.0, None).packings == ("f2", "q8")
    assert make_card(1.0, None).system == read_system()


def test_runs_are_counted_in_a_fixed_time():
    clock = Clock()
    assert count_runs(lambda: setattr(clock, "now", clock.now + 0.01), clock, 0.1, 0.5) == pytest.approx(100.0)
    assert count_runs(lambda: setattr(clock, "now", clock.now + 2.0), clock, 0.1, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("phase", range(10))
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_quota_counts_wherever_its_period_begins(phase, share):
    """A run takes 1 ms of processor time; the group runs `share` of each 100 ms and then stands still."""
    clock = Clock(phase * 0.01)

    def run():
        clock.now += 0.001
        if clock.now % 0.1 > share * 0.1:
            clock.now += 0.1 - clock.now % 0.1

    assert count_runs(run, clock, 0.1, 0.5) == pytest.approx(1000 * share, rel=0.03)


def test_the_reference_is_a_small_convolutional_network_in_float32():
    model = read_model(find_folder("models") / REFERENCE)
    assert len(model.data) < 500_000 and any("CONV" in operator.name for operator in model.main.operators)


def test_a_card_says_all(monkeypatch):
    card = make_card(measure_speed(warm_up_s=0.0, measure_s=0.05), LinkEstimate(0.01, 5e6))
    assert card.protocol == PROTOCOL and card.speed > 10 and card.memory_bytes > 10**7 and card.cores >= 1
    assert (card.round_trip_s, card.link_bytes_per_s) == (0.01, 5e6) and card.machine == read_machine()
    assert make_card(1.0, None).link_bytes_per_s is None


class SlowBus:
    """A link with a delay and a rate, by a clock that only moves with it."""

    def __init__(self, clock, round_trip_s, bytes_per_s):
        self.bus, self.clock = MemoryBroker().connect(Session("x")), clock
        self.round_trip_s, self.bytes_per_s = round_trip_s, bytes_per_s
        self.subscribe, self.acknowledge = self.bus.subscribe, self.bus.acknowledge
        self.sent = 0

    def publish(self, topic, payload):
        self.sent += len(payload)
        self.bus.publish(topic, payload)

    def poll(self, timeout_s):
        came = self.bus.poll(0)
        self.clock.now += self.round_trip_s + sum(2 * len(one.payload) for one in came) / self.bytes_per_s
        return came


@pytest.mark.parametrize(("round_trip_s", "bytes_per_s"), [(0.0005, 50e6), (0.002, 2e6), (0.05, 1e6), (0.1, 50e3)])
def test_a_link_is_estimated_quickly_even_where_it_is_slow(round_trip_s, bytes_per_s):
    clock = Clock()
    bus = SlowBus(clock, round_trip_s, bytes_per_s)
    link = estimate_link(bus, "har/v1/har/act/0/link/pi-1", clock=clock)
    small_s = round_trip_s + 128 / bytes_per_s
    assert link.round_trip_s == pytest.approx(small_s, rel=0.01)
    assert 0.5 * bytes_per_s < link.bytes_per_s <= bytes_per_s
    assert clock.now < (1.25 if bytes_per_s > 1e5 else 2.5)


def test_a_link_on_which_nothing_comes_back_is_given_up():
    clock = Clock()
    bus = SlowBus(clock, 1.0, 1e6)
    bus.subscribe = lambda filters: None
    with pytest.raises(BrokerError, match="0 of 1 messages came back from the broker in 6 s; look at its permissions"):
        estimate_link(bus, "har/v1/har/act/0/link/pi-1", clock=clock)
