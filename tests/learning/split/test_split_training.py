"""Split training on a broker in memory: its numbers are those of one device, and a loss costs what it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from har_edge.errors import ConfigError
from har_edge.learning.split.server import SplitPhase
from har_edge.learning.split.server_settings import SplitPlanner
from har_edge.planner.training_devices import SplitDevice
from har_edge.protocol.split_training import SplitStage, SplitTrainingPlan
from har_edge.protocol.training import RunState
from tests.learning.split.networks import residual, samples
from tests.learning.split.rig import SplitRig, even, make_rig, train_alone

OPTIMIZER = "momentum:lr=0.1,beta=0.9"


def check_numbers(rig: SplitRig, tolerance: float = 1e-5) -> None:
    """Check that losses and weights are those of one device, and that each step counted once."""
    settings = rig.settings
    steps = settings.total_steps
    weights, losses = train_alone(rig.model, rig.data, settings.order, steps, settings.optimizer)
    assert rig.server.state is RunState.FINISHED, rig.lines
    assert [row.step for row in rig.server.record.steps] == list(range(steps))
    np.testing.assert_allclose([row.loss for row in rig.server.record.steps], losses, atol=1e-4)
    assert set(rig.server.whole.weights) == set(weights) and rig.server.whole.step == steps
    for name, values in weights.items():
        np.testing.assert_allclose(rig.server.whole.weights[name], values, rtol=0, atol=tolerance)


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
@pytest.mark.parametrize("cuts", [(), (3,), (1, 3), (1, 2, 4)], ids=lambda cuts: f"{len(cuts) + 1} stages")
def test_numbers_are_those_of_one_device(cuts: tuple[int, ...], micro_batches: int, tmp_path: Path) -> None:
    names = "abcd"[: len(cuts) + 1]
    rig = make_rig(
        tmp_path,
        residual(),
        samples(70),  # the last step of an epoch has fewer samples, its last micro-batch too
        names=names,
        cuts=cuts,
        micro_batch=16 // micro_batches,
        micro_batches=micro_batches,
        epochs=2,
        keep=micro_batches == 4,
    )
    rig.run()
    check_numbers(rig)
    assert sorted(one.micro_batches for one in [rig.server.assignment] if one) == [micro_batches]


@pytest.mark.parametrize("optimizer", ["sgd:lr=0.1", "adam:lr=0.01", "adamw:lr=0.01,decay=0.01"])
def test_the_loss_of_a_hundred_steps_is_that_of_one_device(optimizer: str, tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(400), micro_batches=4, epochs=4, optimizer=optimizer)
    rig.run(3000)
    assert rig.settings.total_steps == 100
    check_numbers(rig, 1e-4)
    assert rig.server.record.steps[-1].loss < 0.7 * rig.server.record.steps[0].loss


def test_stages_hold_at_most_their_micro_batches(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(64), micro_batch=2, micro_batches=8)
    rig.until(lambda: rig.server.counted == 1)
    rig.nodes["c"].hung = True
    for _ in range(40):
        rig.turn()
    held = {number: len(one._held) for node in rig.nodes.values() for number, one in node.worker.stages.items()}
    assert held == {0: 3, 1: 2, 2: 0}
    rig.nodes["c"].hung = False
    rig.run()
    check_numbers(rig)
    assert rig.server.record.recoveries == []


def test_a_node_that_is_killed_costs_the_steps_since_the_last_copy(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(320), epochs=2, replicate_every=4, checkpoint_s=1e9)
    rig.until(lambda: rig.server.counted >= 10)
    before, committed = rig.server.counted, rig.server.committed
    assert before - committed <= 6 and committed >= 4
    rig.kill("b")
    rig.until(lambda: rig.server.counted > before)
    (row,) = rig.server.record.recoveries
    assert row.reason == "b is lost" and row.back_to >= committed and row.lost_steps <= before - committed + 1
    assert any("computed again" in line for line in rig.lines)
    rig.run()
    check_numbers(rig)


Phase = Callable[[SplitRig], bool]


def has_loss(rig: SplitRig, step: int) -> bool:
    return rig.server.steps is not None and bool(rig.server.steps.losses.get(step))


PHASES: dict[str, Phase] = {
    "loading": lambda rig: rig.server.phase is SplitPhase.LOADING,
    "the first micro-batch": lambda rig: rig.server.counted == 0 and has_loss(rig, 0),
    "in the middle of a step": lambda rig: rig.server.counted == 3 and has_loss(rig, 3),
    "after a copy": lambda rig: rig.server.committed >= 4,
    "the last step": lambda rig: rig.server.counted >= rig.settings.total_steps - 1,
}


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_survives_a_kill_at_each_phase(phase: str, name: str, tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(160), replicate_every=4)
    for node in rig.nodes.values():
        node.operations = 1
    rig.until(lambda: PHASES[phase](rig))
    rig.kill(name)
    rig.run()
    check_numbers(rig)


def test_a_spare_node_takes_the_stage_of_one_that_hangs(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(320), names="abcd", replicate_every=4)
    rig.until(lambda: rig.server.counted >= 6)
    rig.nodes["b"].hung = True
    rig.run()
    check_numbers(rig)
    (row,) = rig.server.record.recoveries
    assert row.reason.startswith("b was not heard for")
    assert "d" in rig.server.assigned and "b" not in rig.server.assigned


def test_a_node_that_leaves_and_one_that_joins(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(320), replicate_every=4)
    rig.until(lambda: rig.server.counted >= 6)
    rig.add("d")
    rig.leave("a")
    rig.run()
    check_numbers(rig)
    assert [row.reason for row in rig.server.record.recoveries] == ["a has left"]


def test_two_nodes_that_are_lost_at_once_cost_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(160), epochs=3, replicate_every=4, checkpoint_s=1e9)
    rig.until(lambda: rig.server.counted >= 17)
    rig.kill("b")
    rig.kill("c")  # it had the only copy of b's stage
    rig.run()
    check_numbers(rig)
    assert min(row.back_to for row in rig.server.record.recoveries) == 10  # the end of the first epoch


def test_a_message_that_is_lost_holds_the_run_up_for_a_while(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(160), replicate_every=4)
    rig.until(lambda: rig.server.counted >= 2)
    lost = []

    def lose(one):  # type: ignore[no-untyped-def]
        if "/backward/" in one.topic and not lost:
            lost.append(one)
            return None
        return one

    rig.nodes["c"].each = lose
    rig.run()
    check_numbers(rig)
    (row,) = rig.server.record.recoveries
    assert lost and row.reason.startswith("nothing came for")


def test_a_run_goes_on_from_its_last_state_with_other_stages(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(160), epochs=2)
    rig.until(lambda: rig.server.counted >= 3)
    rig.server.halt("stopped by a test", rig.now)
    rig.run()
    assert rig.server.state is RunState.STOPPED and rig.server.whole.step == rig.server.counted < 10
    whole = rig.server.whole
    other = make_rig(tmp_path / "other", residual(), samples(160), epochs=2, cuts=(2, 5), names="xyz")
    other.start_server(whole)
    other.run()
    assert other.server.record.steps[0].step == whole.step
    weights, _ = train_alone(rig.model, rig.data, rig.settings.order, rig.settings.total_steps, OPTIMIZER)
    for name, values in weights.items():
        np.testing.assert_allclose(other.server.whole.weights[name], values, rtol=0, atol=1e-5)


def test_a_run_that_diverges_ends_and_says_why(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(160), optimizer="sgd:lr=1000", epochs=20)
    rig.run()
    assert rig.server.state is RunState.STOPPED
    assert "the learning rate may be too high" in rig.server.problem
    assert all(np.isfinite(values).all() for values in rig.server.whole.weights.values())


def test_without_nodes_a_run_waits_and_gives_up(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(160), patience_s=20.0)
    rig.until(lambda: rig.server.counted >= 2)
    for name in "abc":
        rig.kill(name)
    rig.run()
    assert rig.server.state is RunState.STOPPED and "no plan with the nodes that are there" in rig.server.problem
    assert rig.now < 60


def by_number(cuts_of: dict[int, tuple[int, ...]], micro_batch: int = 4) -> SplitPlanner:
    """Return a planner whose cuts follow from the number of devices."""

    def plan(devices: tuple[SplitDevice, ...]) -> SplitTrainingPlan:
        return even(residual(), cuts_of[len(devices)], micro_batch, 4)(devices)

    return plan


def test_a_node_that_joins_gets_a_stage_between_two_steps(tmp_path: Path) -> None:
    planner = by_number({2: (3,), 3: (1, 4)})
    rig = make_rig(tmp_path, residual(), samples(640), names="ab", planner=planner, epochs=10)
    rig.until(lambda: rig.server.counted >= 6)
    rig.add("c")
    rig.run(3000)
    check_numbers(rig)
    assert rig.server.record.recoveries == [] and rig.server.assigned == ("a", "b", "c")


def test_a_stage_that_moved_to_a_neighbour_moves_on_to_a_node_that_joins(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, residual(), samples(640), epochs=10, replicate_every=4)
    rig.until(lambda: rig.server.counted >= 9)
    rig.kill("b")
    rig.until(lambda: rig.server.phase is SplitPhase.RUNNING and rig.server.counted >= 10)
    assert rig.server.assigned == ("a", "c")
    rig.add("b")
    rig.run(3000)
    check_numbers(rig)
    assert len(rig.server.record.recoveries) == 1 and rig.server.assigned == ("a", "b", "c")


REPLICAS = {
    "in turn": (SplitStage(0, 3, ("a", "b"), in_flight=2), SplitStage(3, 7, ("c",))),
    "by slots": (SplitStage(0, 3, ("a", "b"), False, 2, (0, 0, 1)), SplitStage(3, 7, ("c", "d"), slots=(1, 0, 1))),
    "the last stage": (SplitStage(0, 3, ("a",), True, 4), SplitStage(3, 7, ("b", "c", "d"))),
    "all of it": (SplitStage(0, 7, ("a", "b", "c", "d")),),
}


@pytest.mark.parametrize("stages", REPLICAS.values(), ids=REPLICAS)
@pytest.mark.parametrize("micro_batches", [1, 3, 5])
def test_replicas_give_the_numbers_of_one_device(
    stages: tuple[SplitStage, ...], micro_batches: int, tmp_path: Path
) -> None:
    plan = SplitTrainingPlan(stages, 4, micro_batches)
    names = "".join(plan.workers)
    rig = make_rig(
        tmp_path, residual(), samples(50), names=names, planner=lambda devices: plan, batch=4 * micro_batches, epochs=2
    )
    rig.run()
    check_numbers(rig)
    machines = [one for node in rig.nodes.values() for one in node.worker.stages.values()]
    for number in range(len(stages)):
        same = [one.weights for one in machines if one.place.number == number]
        assert len(same) == len(stages[number].workers)
        assert all(np.array_equal(one, same[0]) for one in same)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_replica_that_is_killed_leaves_its_micro_batches_to_the_others(name: str, tmp_path: Path) -> None:
    plan = SplitTrainingPlan((SplitStage(0, 3, ("a", "b"), in_flight=2), SplitStage(3, 7, ("c",))), 4, 4)
    rig = make_rig(
        tmp_path, residual(), samples(160), names="abc", planner=lambda devices: plan, epochs=2, replicate_every=4
    )
    rig.until(lambda: rig.server.counted >= 9)
    rig.kill(name)
    rig.run()
    check_numbers(rig)
    assert len(rig.server.record.recoveries) == 1


def test_a_stage_goes_to_no_node_whose_memory_is_too_small(tmp_path: Path) -> None:
    def plan(devices: tuple[SplitDevice, ...]) -> SplitTrainingPlan:
        if len(devices) < 3:
            raise ConfigError("two do not do")
        return even(residual(), (1, 3), 4, 4)(devices)

    rig = make_rig(tmp_path, residual(), samples(160), names="", planner=plan, workers=3, patience_s=20.0)
    for name in "abc":
        rig.add(name, memory_bytes=4500)  # operators 1 to 2 take 3,040 of it, those in front 1,920, those behind 3,424
    rig.until(lambda: rig.server.counted >= 2)
    rig.kill("b")
    rig.run()
    assert rig.server.state is RunState.STOPPED
    assert any("no node that is left has memory for operators 1 to 3" in line for line in rig.lines)
    assert rig.server.whole.step == 0 and rig.server.record.steps == []
