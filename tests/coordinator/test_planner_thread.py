"""Plans for real models on nodes by their cards, and the thread that makes them."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from har_edge.config.catalog import find_model
from har_edge.coordinator import planner_thread
from har_edge.coordinator.planner_thread import Planner, PlannerThread, reference_profile
from har_edge.coordinator.replan import PlacementSpec, PlanRequest, PlanResponse, cuts_of
from har_edge.errors import BrokerError
from har_edge.inference.segment_timing import segment_bounds
from har_edge.inference.tensor_observation import open_model
from har_edge.planner.devices import DeviceEntry, DevicesFile
from har_edge.planner.plan import Objective
from har_edge.planner.profile import VERSION, MemoryCost, MessageCost, Profile, SegmentCost, cached_profiles
from har_edge.planner.relocation import Candidate
from har_edge.planner.slice_graph import HEAD_BYTES, make_slice_graph
from har_edge.protocol.deployment import Generation
from har_edge.runtime import profiling
from har_edge.tflite.folder import make_manifest, write_folder
from har_edge.tflite.manifest import SliceManifest
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.slices import slice_model
from tests.tflite import models

WORK_S = 1e-3


def even(model: Model) -> Profile:
    """A profile in which every operator takes a millisecond."""
    bounds = segment_bounds(model)
    segments = tuple(SegmentCost(a, b, (b - a) * WORK_S, True, ()) for a, b in pairwise(bounds))
    memory = MemoryCost(50_000_000, 1_000_000, 51_000_000, 1_000_000)
    return Profile(VERSION, "here", "", model.name, model.sha256, 1, segments, 0.0, memory=memory)


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(find_model("int8").path)


def planner(model: Model, spec: PlacementSpec, **more: object) -> Planner:
    return Planner(model, spec, even, speed=lambda: 100.0, **more)  # type: ignore[arg-type]


def nodes(*names: str, **more: object) -> tuple[Candidate, ...]:
    return tuple(replace(Candidate(name, 100.0, 1, 10**9, 1e9, 0.0), **more) for name in names)  # type: ignore[arg-type]


def deployed(response: PlanResponse, epoch: int = 7) -> Generation:
    assert response.manifest is not None
    return Generation(epoch, response.manifest, response.placements)


def test_so_many_slices_on_as_many_nodes_the_same_that_har_edge_slice_makes(model: Model, tmp_path: Path) -> None:
    response = planner(model, PlacementSpec(stages=3)).plan(PlanRequest(1, nodes("a", "b", "c"), (), 0))
    assert not response.problem and response.manifest is not None and response.forecast is not None
    assert sorted(one.node for one in response.placements) == ["a", "b", "c"]
    assert response.manifest == write_folder(model, slice_model(model, cuts_of(response.manifest)), tmp_path)
    assert {hashlib.sha256(one).hexdigest() for one in response.contents.values()} == response.contents.keys()
    assert response.contents.keys() == {entry.sha256 for entry in response.manifest.slices}
    total = sum(work.seconds for work in response.stage_costs[0])
    assert total >= 17 * WORK_S and response.forecast.period_s < 0.6 * total and response.current is None


def test_fewer_nodes_than_slices_keep_the_cuts_and_share(model: Model) -> None:
    asked = planner(model, PlacementSpec(stages=3))
    first = asked.plan(PlanRequest(1, nodes("a", "b", "c"), (), 0))
    then = asked.plan(PlanRequest(2, nodes("a", "b"), (deployed(first),), 7))
    assert then.manifest == first.manifest and {one.node for one in then.placements} == {"a", "b"}
    assert then.current is None  # c is not there
    alone = asked.plan(PlanRequest(3, nodes("a"), (), 0))
    assert alone.manifest is not None and len(alone.manifest.slices) == 3
    assert alone.forecast is not None and first.forecast is not None
    assert alone.forecast.period_s > 2 * first.forecast.period_s


def test_what_carries_no_batch_is_planned_with_its_true_size_and_said_in_the_manifest() -> None:
    odd = open_model(models.dilated())
    response = planner(odd, PlacementSpec(cuts=(2,))).plan(PlanRequest(1, nodes("a", "b"), (), 0))
    assert not response.problem and response.manifest is not None
    assert [one.batched for one in response.manifest.slices[0].outputs] == [False] and response.manifest.version == 2
    assert response.manifest == outline_of(odd, 2, response)
    costs = make_slice_graph(odd, segment_bounds(odd))
    edge = costs.walk([2])[0]  # type: ignore[index]
    assert costs.sent_bytes[edge] == 2 * 4 * 5 * 4 + HEAD_BYTES  # two blocks; the file plans one
    asked = planner(odd, PlacementSpec(stages=5)).plan(PlanRequest(2, nodes("a", "b", "c", "d", "e"), (), 0))
    assert not asked.problem and asked.manifest is not None and len(asked.manifest.slices) == 5


def outline_of(model: Model, cut: int, response: PlanResponse) -> SliceManifest:
    made = make_manifest(model, slice_model(model, [cut]))
    assert response.manifest is not None
    hashes = [entry.sha256 for entry in response.manifest.slices]
    entries = (msgspec.structs.replace(e, sha256=h) for e, h in zip(made.slices, hashes, strict=True))
    return msgspec.structs.replace(made, slices=tuple(entries))


def test_slices_that_the_memory_of_a_node_does_not_hold_are_no_plan(model: Model) -> None:
    response = planner(model, PlacementSpec(stages=3)).plan(PlanRequest(1, nodes("a", memory_bytes=50_000_001), (), 0))
    assert response.problem == (
        "the memory of a does not hold har-int8.tflite in 3 slices; start more nodes, or ask for other cuts"
    )


def test_cuts_that_are_given_stay_and_the_fastest_node_gets_most(model: Model) -> None:
    candidates = nodes("slow", "fast", speed=100.0)
    candidates = (candidates[0], replace(candidates[1], speed=400.0))
    response = planner(model, PlacementSpec(cuts=(4,))).plan(PlanRequest(1, candidates, (), 0))
    assert response.manifest is not None and cuts_of(response.manifest) == (4,)
    assert [one.node for one in response.placements] == ["slow", "fast"]


def test_what_is_deployed_is_compared_on_the_same_nodes(model: Model) -> None:
    asked = planner(model, PlacementSpec())
    first = asked.plan(PlanRequest(1, nodes("a"), (), 0))
    then = asked.plan(PlanRequest(2, nodes("a", "b"), (deployed(first),), 7))
    assert then.current == first.forecast and then.forecast is not None and first.forecast is not None
    assert then.forecast.period_s < 0.7 * first.forecast.period_s
    assert then.stage_costs.keys() == {0, 7} and then.stage_costs[7] == first.stage_costs[0]
    slow = asked.plan(PlanRequest(3, nodes("a", slow=4.0), (deployed(first),), 7))
    assert slow.current is not None and slow.current.period_s == pytest.approx(4 * first.forecast.period_s, rel=0.2)


def test_latency_and_a_devices_file_are_heeded(model: Model) -> None:
    file = DevicesFile([DeviceEntry("b", speed=50.0)])
    response = planner(model, PlacementSpec(Objective.LATENCY), devices=file).plan(
        PlanRequest(1, nodes("a", "b"), (), 0)
    )
    assert [one.node for one in response.placements] == ["b"]


@pytest.mark.parametrize(
    ("spec", "candidates", "text"),
    [
        (PlacementSpec(stages=99), nodes("a"), "99 stages were asked for, but the model can be cut into 17 at most"),
        (PlacementSpec(cuts=(999,)), nodes("a", "b"), "cuts 999 came; expected operators among 1, 2"),
        (PlacementSpec(), nodes("a", "b", memory_bytes=1000), "too large for all devices together"),
    ],
)
def test_what_cannot_be_planned_is_said(
    model: Model, spec: PlacementSpec, candidates: tuple[Candidate, ...], text: str
) -> None:
    response = planner(model, spec).plan(PlanRequest(1, candidates, (), 0))
    assert text in response.problem and response.manifest is None


@pytest.mark.parametrize("start", [999, 0], ids=["out of range", "repeated"])
def test_cuts_that_cannot_be_do_not_stop_the_planner(model: Model, start: int) -> None:
    asked = planner(model, PlacementSpec(stages=3))
    good = asked.plan(PlanRequest(1, nodes("a", "b", "c"), (), 0))
    assert good.manifest is not None
    *slices, last = good.manifest.slices
    bad = msgspec.structs.replace(last, start=start or slices[1].start)
    forged = Generation(8, msgspec.structs.replace(good.manifest, slices=(*slices, bad)), good.placements)
    response = asked.plan(PlanRequest(2, nodes("a", "b", "c"), (deployed(good), forged), 8))
    assert not response.problem and response.current is None and response.stage_costs.keys() == {0, 7}


def test_slices_of_what_is_deployed_need_neither_nodes_nor_figures(model: Model) -> None:
    good = planner(model, PlacementSpec(stages=3)).plan(PlanRequest(1, nodes("a", "b", "c"), (), 0))

    def unmeasured(model: Model) -> Profile:
        raise AssertionError("measured")

    response = Planner(model, PlacementSpec(), unmeasured).plan(PlanRequest(0, (), (deployed(good),), 7))
    assert response.contents == good.contents and response.manifest is None and not response.problem


@pytest.mark.slow
def test_a_model_is_measured_once_on_this_device(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[MessageCost] = []

    def messages() -> MessageCost:
        asked.append(MessageCost(1e-4, 1e-9, "a broker"))
        return asked[0]

    first = reference_profile(model, "here", messages)
    assert first.model_sha256 == model.sha256 and all(segment.measured for segment in first.segments)
    assert reference_profile(model, "here", messages) == first and first.message == asked[0] and len(asked) == 1
    (file,) = (tmp_path / "har-edge" / "profiles").iterdir()
    file.write_text("{")
    assert reference_profile(model, "here", messages).bounds == first.bounds and len(asked) == 2


@pytest.mark.slow
def test_a_plan_without_xnnpack_has_prices_of_its_own(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cost, timed = MessageCost(1e-4, 1e-9, "a broker"), []

    def time_model(model: Model, *, watch: object, delegate: str | None) -> object:
        timed.append(delegate)
        return profiling.time_model(model, repeats=1, delegate=delegate)

    monkeypatch.setattr(planner_thread, "time_model", time_model)
    for delegate in (None, "none", None, "none", "xnnpack"):
        reference_profile(model, "here", lambda: cost, delegate=delegate)
    assert timed == [None, "none"]
    assert len(cached_profiles("here")) == 1  # those without XNNPACK teach the others nothing


def test_the_thread_answers_orders_and_a_fault_is_an_answer_too() -> None:
    swept: list[str] = []
    faults = [BrokerError("out of reach"), OSError("no certificate")]

    def plan(request: PlanRequest) -> PlanResponse:
        if request.number == 2:
            raise ZeroDivisionError("a fault")
        return PlanResponse(request.number, problem="none")

    def delete_session(client_id: str, url: str) -> None:
        if client_id == "bad":
            raise faults.pop(0)
        swept.append(client_id)

    shop, found = PlannerThread(plan, delete_session), list[PlanResponse]()
    for number in (1, 2):
        shop.request(PlanRequest(number, (), (), 0))
        shop.delete_session("bad")
    shop.delete_session("good")
    deadline = time.monotonic() + 10
    while (len(found) < 2 or not swept) and time.monotonic() < deadline:
        found += shop.poll()
    shop.close()
    assert [(one.number, one.problem) for one in found] == [
        (1, "none"),
        (2, "planning failed: ZeroDivisionError('a fault')"),
    ]
    assert swept == ["good"] and not faults
