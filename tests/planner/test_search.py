"""The planner against trying everything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.planner.problem import SearchProblem, StageAssignment
from har_edge.planner.search import SearchLimit, Solution, minimize_bottleneck, minimize_latency


def chain(
    period: list[list[float]], counts: tuple[int, ...], *, latency: list[list[float]] | None = None, replicas: int = 1
) -> SearchProblem:
    """A problem over all slices of a chain; `period` has a row a class and a column a slice, ordered as in `slices`."""
    edges = len(period[0])
    operators = round((math.sqrt(8 * edges + 1) - 1) / 2)
    ends = slices(operators)
    return SearchProblem(
        nodes=operators + 1,
        tails=np.array([tail for tail, _ in ends]),
        heads=np.array([head for _, head in ends]),
        period_s=np.array(period, float),
        latency_s=np.array(latency or period, float),
        shareable=np.ones(edges, np.bool_),
        counts=counts,
        replicas=replicas,
    )


def slices(operators: int) -> list[tuple[int, int]]:
    return [(start, stop) for start in range(operators) for stop in range(start + 1, operators + 1)]


def every_plan(
    problem: SearchProblem, node: int = 0, left: tuple[int, ...] | None = None
) -> Iterator[tuple[StageAssignment, ...]]:
    """Yield every path with every choice of devices."""
    left = problem.counts if left is None else left
    if node == problem.nodes - 1:
        yield ()
        return
    for edge in np.flatnonzero(problem.tails == node).tolist():
        for devices in product(*(range(count + 1) for count in left)):
            step = StageAssignment(edge, devices)
            allowed = problem.replicas if problem.shareable[edge] else 1
            if not 1 <= step.replicas <= allowed or not math.isfinite(problem.period_of(step)):
                continue
            rest = tuple(a - b for a, b in zip(left, devices, strict=True))
            for plan in every_plan(problem, int(problem.heads[edge]), rest):
                yield (step, *plan)


def best(problem: SearchProblem) -> tuple[float, float, float] | None:
    """Return the smallest bottleneck, the least latency of plans that have it, and the least latency of all."""
    values = [
        (max(map(problem.period_of, plan)), sum(map(problem.latency_of, plan)))
        for plan in every_plan(problem)
        if problem.least <= sum(step.replicas for step in plan) <= problem.most
    ]
    return (*min(values), min(latency for _, latency in values)) if values else None


@st.composite
def problems(draw: st.DrawFn) -> SearchProblem:
    """Small problems of any kind: not only what a cost model would give."""
    operators, classes = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    edges = len(slices(operators))
    counts = tuple(draw(st.lists(st.integers(1, 2), min_size=classes, max_size=classes)))
    while sum(counts) > 4:
        counts = counts[:-1]
    # Small whole numbers make ties common; inf stands for a slice that does not fit.
    number = st.one_of(st.integers(1, 9).map(float), st.just(math.inf))
    table = st.lists(st.lists(number, min_size=edges, max_size=edges), min_size=len(counts), max_size=len(counts))
    period = draw(table)
    latency = [[math.inf if math.isinf(p) else draw(st.integers(0, 9)) for p in row] for row in period]
    problem = chain(period, counts, latency=latency, replicas=draw(st.integers(1, 4)))
    shareable = np.array(draw(st.lists(st.booleans(), min_size=edges, max_size=edges)))
    devices = sum(counts)
    least = draw(st.one_of(st.just(1), st.integers(1, devices)))
    most = draw(st.one_of(st.just(devices), st.integers(least, devices)))
    return replace(problem, shareable=shareable, least=least, most=most)


def check(problem: SearchProblem, solution: Solution) -> None:
    """The steps are a path, use no device twice, and have the figures that the solution claims."""
    node = 0
    for step in solution.steps:
        assert problem.tails[step.edge] == node
        node = int(problem.heads[step.edge])
        assert 1 <= step.replicas <= (problem.replicas if problem.shareable[step.edge] else 1)
    assert node == problem.nodes - 1
    used = np.sum([step.devices for step in solution.steps], axis=0)
    assert (used <= problem.counts).all() and problem.least <= used.sum() <= problem.most
    assert solution.period_s == max(map(problem.period_of, solution.steps))
    assert solution.latency_s == sum(map(problem.latency_of, solution.steps))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_plan_that_must_use_all_devices_of_one_kind_is_found() -> None:
    periods = [[float(head - tail) for tail, head in slices(5)]]
    for devices in range(1, 6):
        problem = replace(chain(periods, (devices,)), least=devices)
        solution = minimize_bottleneck(problem)
        assert solution is not None and len(solution.steps) == devices
        assert solution.period_s == math.ceil(5 / devices)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(problems())
def test_both_objectives_are_what_trying_every_plan_finds(problem: SearchProblem) -> None:
    wanted = best(problem)
    if wanted is None:
        assert minimize_bottleneck(problem) is None and minimize_latency(problem) is None
        return
    bottleneck, its_latency, latency = wanted
    found = minimize_bottleneck(problem)
    assert found is not None
    check(problem, found)
    assert (found.period_s, found.latency_s) == (bottleneck, its_latency)
    assert found.proven and found.bound_s == bottleneck
    found = minimize_latency(problem)
    assert found is not None
    check(problem, found)
    assert found.latency_s == latency and found.proven


@settings(max_examples=100, deadline=None)
@given(problems())
def test_a_narrow_search_says_what_it_could_not_prove(problem: SearchProblem) -> None:
    wanted = best(problem)
    if wanted is None:
        return
    try:
        found, quick = minimize_bottleneck(problem, 1), minimize_latency(problem, 1)
    except SearchLimit:
        return
    for solution, value, least in ((found, "period_s", wanted[0]), (quick, "latency_s", wanted[2])):
        assert solution is not None
        check(problem, solution)
        assert solution.bound_s <= least + 1e-9
        assert getattr(solution, value) == least or not solution.proven
        assert getattr(solution, value) >= least


@settings(max_examples=100, deadline=None)
@given(problems(), st.sampled_from([1, 48]), st.data())
def test_what_stages_share_limits_a_plan_as_the_slowest_one_does(
    problem: SearchProblem, width: int, data: st.DataObject
) -> None:
    edges = len(problem.tails)
    shared = np.array(data.draw(st.lists(st.integers(0, 9), min_size=edges, max_size=edges)), float) / 2
    shared_problem = replace(problem, shared_s=shared)
    limits = [
        max(sum(shared[step.edge] for step in plan), *map(problem.period_of, plan))
        for plan in every_plan(problem)
        if problem.least <= sum(step.replicas for step in plan) <= problem.most
    ]
    if not limits:
        return
    try:
        found = minimize_bottleneck(shared_problem, width)
    except SearchLimit:
        assert width == 1
        return
    assert found is not None
    check(problem, replace(found, period_s=max(map(problem.period_of, found.steps))))
    assert found.period_s == max(sum(shared[s.edge] for s in found.steps), *map(problem.period_of, found.steps))
    assert found.bound_s <= min(limits) + 1e-9
    if width == 48:
        assert found.period_s == min(limits) and found.proven
    else:
        assert found.period_s == min(limits) or not found.proven


def test_a_plan_that_a_narrow_search_finds_late_has_its_own_bottleneck() -> None:
    """The search for the latency came upon steps with half the bottleneck, which the one before had left out."""
    checked = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        period = rng.choice([1.0, 2.0, math.inf], (2, 10)).tolist()
        latency = np.where(np.isinf(period), math.inf, rng.choice([0.0, 1.0], (2, 10))).tolist()
        problem = replace(chain(period, (1, 2), latency=latency), least=2)
        try:
            found = minimize_bottleneck(problem, 1)
        except SearchLimit:
            continue
        if found is not None:
            check(problem, found)
            checked += 1
    assert checked > 50


def uniform(
    operators: int, counts: tuple[int, ...], speeds: list[float], *, fixed_s: float, replicas: int
) -> SearchProblem:
    """Equal operators of one second, and `fixed_s` a stage, both divided by the speed of each class."""
    period = [[(stop - start + fixed_s) / speed for start, stop in slices(operators)] for speed in speeds]
    return chain(period, counts, replicas=replicas)


def test_splitting_that_costs_more_than_it_gains_is_left_alone() -> None:
    found = minimize_bottleneck(uniform(4, (4,), [1.0], fixed_s=0.0, replicas=1))
    assert found is not None and (found.period_s, len(found.steps)) == (1.0, 4)
    period = [[stop - start + (0 if stop - start == 4 else 50.0) for start, stop in slices(4)]]
    found = minimize_bottleneck(chain(period, (4,)))
    assert found is not None and (found.period_s, len(found.steps)) == (4.0, 1)


def test_replicas_share_one_stage() -> None:
    found = minimize_bottleneck(uniform(4, (3,), [1.0], fixed_s=2.0, replicas=3))
    assert found is not None
    assert found.steps == (StageAssignment(slices(4).index((0, 4)), (3,)),) and found.period_s == 2.0
    # A slow device would hold up the others, which take turns.
    found = minimize_bottleneck(uniform(4, (2, 1), [1.0, 0.1], fixed_s=2.0, replicas=3))
    assert found is not None and found.steps[0].devices == (2, 0) and found.period_s == 3.0


def test_large_problems_of_a_few_classes_are_proven() -> None:
    rng = np.random.default_rng(0)
    work = np.concatenate([[0.0], np.cumsum(rng.lognormal(0, 1, 60))])
    ends = slices(60)
    seconds = np.array([work[stop] - work[start] + 0.2 for start, stop in ends])
    problem = chain([list(seconds), list(seconds / 1.7), list(seconds / 0.4)], (4, 3, 5))
    found = minimize_bottleneck(problem)
    assert found is not None and found.proven
    check(problem, found)


def test_where_every_device_differs_the_gap_is_small_and_told() -> None:
    rng = np.random.default_rng(1)
    work = np.concatenate([[0.0], np.cumsum(rng.lognormal(0, 1, 80))])
    seconds = np.array([work[stop] - work[start] + 0.2 for start, stop in slices(80)])
    problem = chain([list(seconds / speed) for speed in rng.uniform(0.3, 2, 16)], (1,) * 16)
    found = minimize_bottleneck(problem)
    assert found is not None
    check(problem, found)
    assert found.bound_s <= found.period_s < 1.05 * found.bound_s
    assert found.proven == (found.bound_s == found.period_s)


def test_no_plan_is_told_apart_from_none_found() -> None:
    problem = uniform(2, (1,), [1.0], fixed_s=0.0, replicas=1)
    nowhere = replace(problem, period_s=np.full((1, 3), np.inf), latency_s=np.full((1, 3), np.inf))
    assert minimize_bottleneck(nowhere) is None and minimize_latency(nowhere) is None


def test_a_search_too_narrow_to_find_any_plan_says_so() -> None:
    no = math.inf
    problem = chain([[no, no, no, 1, no, no], [1, 1, no, 1, 1, no], [no, 1, no, 1, no, 1]], (1, 1, 1))
    found = minimize_bottleneck(problem)
    assert found is not None and (found.period_s, found.latency_s) == (1.0, 2.0)
    with pytest.raises(SearchLimit, match="no way to place the slices within the memory of the devices was found"):
        minimize_bottleneck(problem, 1)
