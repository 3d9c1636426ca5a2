"""Profiles of models, as far as this machine can measure them."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from har_edge.config.catalog import find_model
from har_edge.errors import ModelError
from har_edge.inference.interpreter import Delegate, Interpreter
from har_edge.inference.segment_timing import segment_bounds
from har_edge.mqtt.bus import Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.planner.profile import MemoryCost, MessageCost
from har_edge.runtime import profiling, resident_memory
from har_edge.runtime.profiling import (
    Timing,
    estimate,
    find_shorter_work,
    find_work,
    make_profile,
    measure_memory,
    measure_messages,
    measure_weight_rate,
    time_model,
    typical_overhead,
)
from har_edge.tflite.model import read_model
from tests.tflite import models


def test_every_segment_is_timed_and_the_profile_says_what_it_holds() -> None:
    model = read_model(models.skip())
    seen: list[int] = []

    def watch(segments, total):  # type: ignore[no-untyped-def]
        for segment in segments:
            seen.append(total)
            yield segment

    timing = time_model(model, repeats=2, watch=watch)
    assert seen == [15] * 15 and timing.remarks == () and timing.whole_s is not None
    profile = make_profile(model, "here", timing, threads=1)
    assert [(s.start, s.stop, s.measured) for s in profile.segments] == [(i, i + 1, True) for i in range(5)]
    assert profile.model_sha256 == model.sha256 and profile.fit is None and profile.bounds == (0, 1, 2, 3, 4, 5)
    assert all(segment.seconds > 0 and segment.work for segment in profile.segments)


def test_what_cannot_run_here_is_estimated_and_told() -> None:
    model = read_model(models.custom())
    timing = time_model(model, repeats=2)
    assert list(timing.seconds) == [0] and timing.whole_s is None
    assert timing.remarks[0].startswith("estimated from operation counts from there on: ")
    assert "cannot time operators 1 to 1 here" in timing.remarks[0]
    profile = make_profile(model, "here", timing)
    assert [segment.measured for segment in profile.segments] == [True, False, False, False]
    assert profile.fit is not None and profile.fit.samples == 1
    assert timing.overhead_s == timing.seconds[0]
    assert all(segment.seconds >= timing.overhead_s for segment in profile.segments)


def test_a_model_never_run_here_is_estimated_from_others() -> None:
    chain, skip = read_model(models.chain()), read_model(models.skip())
    timing = Timing((0, 1, 2, 3, 4), {i: 5e-6 + i * 1e-6 for i in range(4)}, 1e-5, 3e-6, ())
    known = msgspec.structs.replace(
        make_profile(chain, "here", timing),
        memory=MemoryCost(1, 2, 3, 4),
        message=MessageCost(1e-4, 0.0, "Mosquitto"),
    )
    profile = estimate(skip, "here", [known])
    assert not any(segment.measured for segment in profile.segments) and len(profile.segments) == 5
    assert profile.overhead_s == 3e-6 and profile.memory == known.memory and profile.message == known.message
    with pytest.raises(ModelError, match="nothing was measured"):
        estimate(skip, "here", [])


def test_what_a_run_costs_comes_from_others_where_there_are_some() -> None:
    assert typical_overhead([3.0, 2.0], []) == 2.0
    assert typical_overhead([], []) == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_a_process_with_the_model() -> None:
    model = read_model(models.shared_weights(1024))
    bounds = segment_bounds(model)
    memory = measure_memory(model, bounds)
    assert memory is not None
    assert memory.base_bytes > 10_000_000 and memory.peak_bytes >= memory.base_bytes + memory.growth_bytes
    assert memory.tensor_bytes > 4 * 1024 * 1024
    assert measure_memory(read_model(models.custom()), [0, 1, 2, 3, 4]) is None


@pytest.mark.slow
def test_messages_are_timed_on_the_bus_and_in_a_stage() -> None:
    bus = MemoryBroker().connect(Session("profile"))
    parts = [lambda: None, lambda: sum(range(20_000))]
    message, link = measure_messages(bus, "here", "in memory", work=lambda: sum(range(200_000)), shorter=parts)
    assert message.seconds > 0 and message.seconds_per_byte >= 0 and message.broker == "in memory"
    assert isinstance(message.shorter, tuple)
    none, part = message.shorter
    assert none.work_s < part.work_s and none.seconds <= part.seconds <= message.seconds
    assert none.seconds_per_byte <= part.seconds_per_byte <= message.seconds_per_byte
    assert link.round_trip_s > 0 and link.bytes_per_s > 0


@pytest.mark.slow
def test_weights_are_read_at_a_rate_that_memory_has() -> None:
    rate = measure_weight_rate()
    assert rate is None or 1e8 < rate < 1e12


def test_messages_are_timed_beside_nothing_and_parts_of_the_model() -> None:
    nothing, *parts = find_shorter_work(read_model(find_model("float").path))
    assert nothing() is None and len(parts) == 3
    assert all(part() for part in parts)  # each gives its tensors


@pytest.mark.parametrize("delegate", [None, "xnnpack", "none"])
def test_memory_and_work_are_those_of_the_delegate(
    delegate: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, ran = Delegate(delegate or "xnnpack"), list[Delegate]()
    path = find_model("float").path
    assert resident_memory.run(path, chosen).delegate is chosen
    model = read_model(path)
    work = find_work(model, delegate)
    assert work is not None
    runs = Interpreter.run

    def run(self: Interpreter, values: object) -> object:
        ran.append(self.delegate)
        return runs(self, values)  # type: ignore[arg-type]

    monkeypatch.setattr(Interpreter, "run", run)
    assert find_work(model, delegate) is not None and ran == [chosen]
    if sys.platform == "linux":
        commands: list[list[str]] = []

        def end(command: list[str], **options: object) -> None:
            commands.append(command)
            raise profiling.subprocess.TimeoutExpired(command, 1.0)

        monkeypatch.setattr(profiling.subprocess, "run", end)
        assert measure_memory(model, segment_bounds(model), delegate) is None
        assert [command[-1] for command in commands] == [chosen.value]


def test_a_profile_says_who_computed_it_where_that_was_not_xnnpack() -> None:
    model = read_model(models.skip())
    for delegate, kept in ((None, False), ("xnnpack", False), ("none", True)):
        profile = make_profile(model, "here", time_model(model, repeats=1, delegate=delegate), delegate=delegate)
        assert profile.computed_by == (delegate or "xnnpack")
        assert (b'"delegate":"none"' in msgspec.json.encode(profile)) is kept  # older versions read the others
