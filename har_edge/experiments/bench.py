"""Measure models on test beds: profile, plan, cut, run, count; a bench that was stopped goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from har_edge.emulation.limits import Device, Layout, Limits
from har_edge.emulation.testbed import Testbed
from har_edge.experiments.emulation import MeasurementLimits, run_stages
from har_edge.experiments.model_under_test import ModelUnderTest, cut_model, make_windows
from har_edge.experiments.rows import MeasuredRow, append_row, read_rows
from har_edge.experiments.timing import time_on_devices
from har_edge.inference.tensor_observation import open_model
from har_edge.mqtt.address import read_address
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import open_bus
from har_edge.planner.devices import DeviceEntry, DevicesFile, SensorMessages, make_devices
from har_edge.planner.plan import Objective, Plan, make_plan, make_planning_problem
from har_edge.planner.profile import Profile, load_profile, store_profile
from har_edge.runtime.profiling import find_shorter_work, find_work, make_profile, measure_messages, time_model
from har_edge.tflite.model import Model

# TCP's part of what a link of Ethernet carries: 1448 of 1514 bytes.
TCP_SHARE = 1448 / 1514
LATENCY_S = 0.0001
_IMAGES = 8
_REPEATS = 7
_TIMING_S = 5.0
_IN_FLIGHT = 4  # windows under way for each device
_FILE = "measured.csv"


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of a whole bench: the link of each device, and how long to measure."""

    link_bits_per_s: int
    warm_s: float
    seconds: float
    windows: int


@dataclass(slots=True)
class Bench:
    """Measures in `folder`, where rows, profiles and slices stay; `tell` hears of each row as it comes."""

    folder: Path
    conditions: Conditions
    tell: Callable[[MeasuredRow], None] = lambda row: None
    rows: list[MeasuredRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows += read_rows(self.folder / _FILE)

    def profile(self, under_test: ModelUnderTest) -> Profile:
        """Return the profile of a model on this machine without limits: measured once, kept in the folder."""
        model = open_model(under_test.path)
        path = self.folder / f"{under_test.name}-{model.sha256[:12]}-{self.conditions.link_bits_per_s // 1000}kbit.json"
        if not path.exists():
            store_profile(_measure(model, self.conditions.link_bits_per_s), path)
        return load_profile(path)

    def measure(self, under_test: ModelUnderTest, profile: Profile, cpus: Sequence[float], repeat: int) -> MeasuredRow:
        """Plan for devices with these parts of a core, run the plan, and return the row; one that is there is kept."""
        limits = [Limits(cpu=cpu, link_bits_per_s=self.conditions.link_bits_per_s) for cpu in cpus]
        layout = Layout(tuple(Device(f"device-{number}", limit) for number, limit in enumerate(limits, 1)))
        wanted = (profile.model_sha256, _joined(cpus), self.conditions.link_bits_per_s, repeat)
        for row in self.rows:
            if row.key == wanted:
                return row
        nominal = {device.name: device.limits.cpu or 1.0 for device in layout.devices}
        cuts = plan_for(open_model(under_test.path), profile, layout, nominal).cuts
        row = self._run(under_test, profile, cuts, layout, repeat)
        append_row(row, self.folder / _FILE)
        self.rows.append(row)
        self.tell(row)
        return row

    def _run(
        self, under_test: ModelUnderTest, profile: Profile, cuts: tuple[int, ...], layout: Layout, repeat: int
    ) -> MeasuredRow:
        """Cut, ask every device how fast it runs the model, foresee, run.

        Which device takes which slice, and what is foreseen, rests on the speeds that the devices show just before.
        """
        asked, cpu = self.conditions, {device.name: device.limits.cpu or 1.0 for device in layout.devices}
        folder = self.folder / f"{under_test.name}-{profile.model_sha256[:12]}-{'-'.join(map(str, cuts)) or 'whole'}"
        pipeline = cut_model(under_test, cuts, folder, "bench")
        pace = MeasurementLimits(_IN_FLIGHT * (len(cuts) + 1), asked.warm_s, asked.seconds, asked.windows)
        with Testbed(layout) as testbed:
            took_s = time_on_devices(testbed, list(cpu), under_test.path, _TIMING_S)
            assert profile.whole_s is not None  # it has just run on every device
            speeds = {name: profile.whole_s / seconds for name, seconds in took_s.items()}
            plan = plan_for(open_model(under_test.path), profile, layout, speeds, cuts)
            with run_stages(testbed, pipeline, plan.devices) as stages:
                measured = stages.measure(make_windows(pipeline, _IMAGES), pace)
        used = [cpu[name] for name in plan.devices]
        return MeasuredRow(
            model=under_test.name,
            sha256=profile.model_sha256,
            cpus=_joined(cpu.values()),
            link_bits_per_s=asked.link_bits_per_s,
            repeat=repeat,
            used=_joined(used),
            cuts=" ".join(map(str, plan.cuts)),
            crossing_bytes=" ".join(str(stage.received_bytes) for stage in plan.stages[1:]),
            in_flight=pace.in_flight,
            windows=measured.windows,
            seconds=round(measured.seconds, 4),
            period_s=round(measured.period_s, 6),
            predicted_s=round(plan.bottleneck_s, 6),
            link_s=round(max(stage.link_s for stage in plan.stages), 6),
            speeds=_joined(round(speeds[name], 4) for name in plan.devices),
            busy=" ".join(f"{s / measured.seconds / c:.2f}" for s, c in zip(measured.busy_s, used, strict=True)),
            stage_ms=" ".join(f"{s / measured.windows * 1000:.2f}" for s in measured.busy_s),
            latency_s=round(measured.latency_s, 4),
        )


def plan_for(
    model: Model, profile: Profile, layout: Layout, speeds: Mapping[str, float], cuts: tuple[int, ...] | None = None
) -> Plan:
    """Return the plan of most windows a second for the devices of a test bed, without replicas, with these cuts if any.

    `speeds` are those of the devices, as factors on the profile.
    """
    entries = [
        DeviceEntry(
            device.name,
            speed=speeds[device.name],
            link_bytes_per_s=(device.limits.link_bits_per_s or 40e9) / 8 * TCP_SHARE,
            latency_s=LATENCY_S,
            duplex=True,
        )
        for device in layout.devices
    ]
    devices, _ = make_devices(DevicesFile(entries), Path("bench"), profile)
    planning = make_planning_problem(model, profile.bounds, devices, replicas=1, sensors=SensorMessages.TOGETHER)
    return make_plan(replace(planning, cuts=cuts), Objective.THROUGHPUT)


def _measure(model: Model, link_bits_per_s: int) -> Profile:
    """Profile a model, and its messages over the link of a device.

    In processor time, since others work on this machine too.
    """
    timing = time_model(model, repeats=_REPEATS, clock=time.thread_time)
    profile = make_profile(model, "bed", timing)
    device = Device("device-1", Limits(link_bits_per_s=link_bits_per_s))
    with Testbed(Layout((device,))) as testbed:
        with testbed.inside(device.name):
            bus = open_bus(read_address(testbed.emulation.broker_url), Session("bench-profile", clean_start=True))
        shorter = find_shorter_work(model)
        message, _ = measure_messages(bus, "bed", "Mosquitto on a bed", work=find_work(model), shorter=shorter)
        bus.close(forget=True)
    return msgspec.structs.replace(profile, message=message)


def _joined(cpus: Iterable[float]) -> str:
    return " ".join(f"{cpu:g}" for cpu in cpus)
