"""When a plan is asked for, and when its answer is worth a change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from har_edge.coordinator.replan import (
    BACKOFF_S,
    FIRST_S,
    MOST_BACKOFF_S,
    PlacementSpec,
    PlanRequest,
    PlanResponse,
    Replan,
)
from har_edge.planner.plan import Objective
from har_edge.planner.relocation import Candidate, Forecast
from har_edge.protocol.deployment import Generation
from tests.runtime.deployed import CHAIN, generation, manifest

A, B, C = (Candidate(name, 100.0) for name in "abc")
CURRENT = generation("a", "b", "c", epoch=5)
SHORT = manifest((("x",), ("y",)))
MODEL = "a" * 64


def ask(
    plan: Replan, *nodes: Candidate, now: float = 100.0, changed_at: float = 0.0, unmet: str = ""
) -> PlanRequest | None:
    return plan.due(nodes, (CURRENT,), 5, unmet, changed_at, now)


def response(
    request: PlanRequest | None, period_s: float, was_s: float | None = 1.0, latency_s: float = 1.0
) -> PlanResponse:
    assert request is not None
    was = None if was_s is None else Forecast(was_s, 1.0, ())
    placed = Generation(0, SHORT, generation("a").placements)
    return PlanResponse(
        request.number,
        manifest=SHORT,
        placements=placed.placements,
        forecast=Forecast(period_s, latency_s, (1.0,)),
        current=was,
    )


def test_the_first_plan_waits_a_moment_or_until_all_are_there() -> None:
    plan = Replan(PlacementSpec(stages=2), 0.15, 10.0)
    assert plan.due([A], (), 0, "", 50.0, 50.0 + FIRST_S - 0.1) is None
    assert plan.due([A], (), 0, "", 50.0, 50.0 + FIRST_S) is not None
    assert Replan(PlacementSpec(stages=2), 0.15, 10.0).due([A, B], (), 0, "", 50.0, 50.0) is not None
    assert Replan(PlacementSpec(cuts=(5,)), 0.15, 10.0).due([A, B], (), 0, "", 50.0, 50.0) is not None
    assert Replan(PlacementSpec(), 0.15, 10.0).due([], (), 0, "", 0.0, 99.0) is None


def test_the_first_plan_with_replicas_waits_for_nodes_for_them() -> None:
    assert Replan(PlacementSpec(stages=2, replicas=2), 0.15, 10.0).due([A, B, C], (), 0, "", 50.0, 51.0) is None
    assert Replan(PlacementSpec(stages=1, replicas=2), 0.15, 10.0).due([A, B], (), 0, "", 50.0, 50.0) is not None


def test_nothing_is_asked_before_all_is_settled_twice_at_once_or_for_nothing_new() -> None:
    plan = Replan(PlacementSpec(), 0.15, 10.0)
    assert ask(plan, A, B, changed_at=91.0) is None
    request = ask(plan, A, B, changed_at=90.0)
    assert request is not None and ask(plan, A, B) is None
    assert plan.judge(response(request, 0.9), CURRENT, "", 100.0) is not None
    assert ask(plan, A, B, now=200.0) is None
    assert ask(plan, A, replace(B, speed=103.0), now=200.0) is None  # too little to tell
    assert ask(plan, A, B, C, now=200.0) is not None


@pytest.mark.parametrize(
    ("objective", "period_s", "latency_s", "go"),
    [
        (Objective.THROUGHPUT, 0.84, 1.0, True),
        (Objective.THROUGHPUT, 0.86, 0.1, False),
        (Objective.LATENCY, 9.0, 0.84, True),
        (Objective.LATENCY, 0.1, 0.86, False),
    ],
)
def test_a_gain_above_the_margin_is_worth_it(objective: Objective, period_s: float, latency_s: float, go: bool) -> None:
    plan = Replan(PlacementSpec(objective), 0.15, 10.0)
    decision = plan.judge(response(ask(plan, A, B), period_s, latency_s=latency_s), CURRENT, "", 100.0)
    assert decision is not None and decision.go is go
    assert ("gains 16%" if go else "that gains 14%, and 15% is the margin") in decision.text


def test_what_does_not_keep_up_at_all_is_replaced() -> None:
    plan = Replan(PlacementSpec(), 0.15, 10.0)
    decision = plan.judge(response(ask(plan, A), 5.0, was_s=None), CURRENT, "", 100.0)
    assert decision is not None and decision.go and "instead of never" in decision.text


def test_speeds_alone_must_speak_for_it_twice() -> None:
    plan = Replan(PlacementSpec(), 0.15, 10.0)
    plan.judge(response(ask(plan, A, B), 1.0), CURRENT, "", 100.0)
    slow = replace(B, slow=4.0)
    first = plan.judge(response(ask(plan, A, slow, now=120.0), 0.5), CURRENT, "", 120.0)
    assert first is not None and not first.go and "looking once more" in first.text
    assert ask(plan, A, slow, now=129.0) is None
    second = plan.judge(response(ask(plan, A, slow, now=130.0), 0.5), CURRENT, "", 130.0)
    assert second is not None and second.go


def test_a_second_look_that_disagrees_begins_anew() -> None:
    plan = Replan(PlacementSpec(), 0.15, 10.0)
    plan.judge(response(ask(plan, A, B), 1.0), CURRENT, "", 100.0)
    for now, slow, period_s in ((120.0, 4.0, 0.5), (130.0, 2.0, 0.9), (140.0, 4.0, 0.5)):
        found = plan.judge(response(ask(plan, A, replace(B, slow=slow), now=now), period_s), CURRENT, "", now)
        assert found is not None and not found.go


def test_what_was_asked_for_counts_whatever_it_gains_unless_it_is_there() -> None:
    plan = Replan(PlacementSpec(), 0.15, 10.0)
    found = plan.judge(
        response(ask(plan, A, unmet="it is of another model"), 9.0), CURRENT, "it is of another model", 1.0
    )
    assert found is not None and found.go and found.text == "it is of another model"
    plan = Replan(PlacementSpec(), 0.15, 10.0)
    same = replace(response(ask(plan, A, B, C), 0.1), manifest=CHAIN, placements=CURRENT.placements)
    found = plan.judge(same, CURRENT, "something", 1.0)
    assert found is not None and not found.go


def test_a_plan_that_leaves_the_same_unmet_must_gain_as_any_other() -> None:
    """A node has no memory for a stage, so that two are on one again."""
    said, crowded = "3 stages were asked for, and there are nodes for each", generation("a", "b", "a", epoch=5)
    for nodes, period_s, go, why in (
        ("abb", 0.9, False, "that gains 10%"),
        ("abb", 0.5, True, "which gains 50%"),
        ("abc", 9.0, True, said),
    ):
        plan = Replan(PlacementSpec(stages=3), 0.15, 10.0)
        placed = {"manifest": CHAIN, "placements": generation(*nodes).placements}
        found = plan.judge(replace(response(ask(plan, A, B, C), period_s), **placed), crowded, said, 1.0)
        assert found is not None and found.go == go and why in found.text


def test_failures_wait_longer_and_longer_and_are_forgotten() -> None:
    plan = Replan(PlacementSpec(), 0.15, 0.0)
    waits = [plan.failed(0.0) for _ in range(8)]
    assert waits[:3] == [BACKOFF_S, 2 * BACKOFF_S, 4 * BACKOFF_S] and waits[-1] == MOST_BACKOFF_S
    assert ask(plan, A, now=MOST_BACKOFF_S - 1) is None and ask(plan, A, now=MOST_BACKOFF_S) is not None
    plan.succeeded()
    assert plan.failed(0.0) == BACKOFF_S


def test_answers_that_nobody_waits_for_are_nothing() -> None:
    plan = Replan(PlacementSpec(), 0.15, 0.0)
    request = ask(plan, A)
    assert request is not None
    assert plan.judge(replace(response(request, 1.0), number=99), CURRENT, "", 1.0) is None
    problem = plan.judge(PlanResponse(request.number, problem="too large"), CURRENT, "", 1.0)
    assert problem is not None and (problem.go, problem.text) == (False, "no plan: too large")
    assert plan.judge(response(request, 1.0), CURRENT, "", 1.0) is None and ask(plan, A) is None


def test_wishes() -> None:
    assert PlacementSpec().unmet(CURRENT, MODEL, "abcdefghi") == ""
    assert PlacementSpec().unmet(CURRENT, "b" * 64, "abcdefghi") == "it is of another model"
    assert PlacementSpec(stages=2).unmet(CURRENT, MODEL, "abcdefghi") == "2 stages were asked for"
    assert PlacementSpec(cuts=(1, 3)).unmet(CURRENT, MODEL, "abcdefghi") == "other cuts were asked for: 1, 3"
    assert PlacementSpec(cuts=(1, 2)).unmet(CURRENT, MODEL, "abcdefghi") == ""
    crowded = generation("a", "b", "a", epoch=5)
    assert PlacementSpec(stages=3).unmet(crowded, MODEL, "ab") == ""
    assert (
        PlacementSpec(stages=3).unmet(crowded, MODEL, "abc") == "3 stages were asked for, and there are nodes for each"
    )
    assert PlacementSpec().unmet(crowded, MODEL, "abc") == ""


def test_a_plan_that_no_probe_came_through_is_not_tried_again_for_a_while() -> None:
    plan = Replan(PlacementSpec(), 0.15, 10.0)
    found = response(ask(plan, A, B), 0.5)
    assert found.manifest is not None
    for count, begin in enumerate((100.0, 1000.0, 2000.0)):
        decision = plan.judge(found, CURRENT, "", begin)
        assert decision is not None and decision.go
        plan.started(found.manifest, found.placements)
        plan.refuse(begin)
        plan.failed(begin)
        wait_s = MOST_BACKOFF_S * 2.0**count
        assert ask(plan, A, B, now=begin + 61.0) is not None
        found = replace(found, number=plan.outstanding.number)  # type: ignore[union-attr]
        decision = plan.judge(found, CURRENT, "", begin + wait_s - 1.0)
        assert decision is not None and not decision.go and decision.text.endswith("not tried again for 1 s")
        assert ask(plan, A, B, now=begin + wait_s - 0.5) is None
        assert ask(plan, A, B, now=begin + wait_s + 60.0) is not None
        found = replace(found, number=plan.outstanding.number)  # type: ignore[union-attr]
