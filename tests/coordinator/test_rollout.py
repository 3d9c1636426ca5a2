"""The steps of a rollout, what ends each of them, and what a coordinator that starts goes on with."""

from __future__ import annotations

import msgspec
import pytest

from har_edge.coordinator.membership import Registry
from har_edge.coordinator.rollout import (
    DRAIN_S,
    NEXT,
    PROBE_S,
    STUCK_S,
    SWITCH_S,
    Outcome,
    Rollout,
    Step,
    go_on,
)
from har_edge.coordinator.session_gc import PATIENCE_S, Sweeps
from har_edge.protocol.deployment import PROTOCOL, Deployment
from har_edge.protocol.status import (
    Beat,
    DeviceCard,
    NodeStatus,
    StagePhase,
    StageReport,
    State,
    encode_beat,
    encode_status,
)
from tests.runtime.deployed import deployment, generation

MODEL = "a" * 64
OLD, NEW = generation("a", "b", "c", epoch=1), generation("a", "b", "c", epoch=2)
RUNNING, DRAINED = StagePhase.RUNNING, StagePhase.DRAINED


def saying(registry: Registry, node: str, *reports: StageReport, revision: int = 0, now: float = 0.0) -> None:
    card = DeviceCard(PROTOCOL, "m", "Linux", 1, 1, "", 1.0)
    registry.note_status(node, encode_status(NodeStatus(node, "node", State.READY, "i", 1.0, device=card)), now)
    registry.note_beat(node, encode_beat(Beat(node, "i", 1, 0.0, revision, reports)), now)


def three(phase: StagePhase, epoch: int = 2) -> Registry:
    """Three nodes with a stage each."""
    registry = Registry()
    for stage, node in enumerate("abc"):
        saying(registry, node, StageReport(epoch, stage, 0, phase))
    return registry


def preparing() -> Rollout:
    rollout = Rollout()
    rollout.enter(Step.PREPARING, 0.0, NEW)
    return rollout


def test_every_step_has_its_successors_and_ends_idle() -> None:
    assert NEXT.keys() == set(Step) and all(Step.IDLE in steps for step, steps in NEXT.items() if step is not Step.IDLE)
    with pytest.raises(AssertionError):
        Rollout().enter(Step.PROBING, 0.0)


def test_a_generation_is_prepared_when_all_stages_run() -> None:
    rollout, registry = preparing(), three(StagePhase.PREPARED)
    assert rollout.prepared(registry, 1.0).outcome is Outcome.WAIT
    saying(registry, "a", StageReport(2, 0, 0, RUNNING))
    assert rollout.prepared(registry, 1.0).outcome is Outcome.WAIT
    assert rollout.prepared(three(RUNNING), 1.0).outcome is Outcome.DONE


def test_a_stage_that_fails_or_is_stuck_and_a_node_that_is_lost_end_it() -> None:
    rollout, registry = preparing(), three(StagePhase.FETCHING)
    assert rollout.prepared(registry, 1.0).outcome is Outcome.WAIT
    assert rollout.prepared(registry, STUCK_S).outcome is Outcome.WAIT  # the phases were seen at 1 s
    late = rollout.prepared(registry, STUCK_S + 1.1)
    assert (late.outcome, late.text, late.node) == (Outcome.FAILED, "stage 0 on a: fetching for 60 s", "a")
    saying(registry, "b", StageReport(2, 1, 0, StagePhase.FAILED, "no room"))
    failed = rollout.prepared(registry, 1.0)
    assert (failed.text, failed.node) == ("stage 1 failed on b: no room", "b")
    registry = three(RUNNING)
    registry.tick(99.0)
    assert rollout.prepared(registry, 99.0).text == "node a is lost"


def test_a_probe_decides() -> None:
    rollout = preparing()
    rollout.enter(Step.PROBING, 10.0)
    assert rollout.probed(three(RUNNING), True, 11.0).outcome is Outcome.DONE
    assert rollout.probed(three(RUNNING), False, 10 + PROBE_S - 0.1).outcome is Outcome.WAIT
    assert rollout.probed(three(RUNNING), False, 10 + PROBE_S).text == "no answer to a probe in 10 s"


def test_an_old_generation_waits_for_sensors_and_stages_but_not_for_ever() -> None:
    rollout, both = Rollout(), deployment(OLD, NEW, epoch=2)
    rollout.enter(Step.DRAINING, 0.0, NEW)
    assert rollout.drained(both, three(DRAINED, 1), 1.0).outcome is Outcome.DONE
    registry = three(DRAINED, 1)
    sensor = NodeStatus("s", "sensor", State.READY, "i", 1.0, epoch=1)
    registry.note_status("s", encode_status(sensor), 0.0)
    assert rollout.drained(both, registry, SWITCH_S - 0.1).outcome is Outcome.WAIT
    assert rollout.drained(both, registry, SWITCH_S).text == "not waiting any longer for sensor s"
    registry = three(RUNNING, 1)
    assert rollout.drained(both, registry, DRAIN_S - 0.1).outcome is Outcome.WAIT
    text = rollout.drained(both, registry, DRAIN_S).text
    assert text.startswith("not waiting any longer for stage 0 of epoch 1 on a, stage 1 of epoch 1")


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        (deployment(OLD, epoch=1), [1]),
        (deployment(OLD, NEW, epoch=1), [1, 2]),
        (deployment(OLD, NEW, epoch=2), [1, 2]),
        (deployment(OLD, NEW, generation("a", "b", "c", epoch=3), epoch=2), [1, 2]),
        (deployment(OLD, NEW, generation("a", "b", "c", epoch=3), epoch=1), [1]),
        (deployment(NEW, epoch=0), [2]),
    ],
)
def test_a_start_goes_on_with_what_it_can_bring_to_an_end(found: Deployment, kept: list[int]) -> None:
    assert [one.epoch for one in go_on(found, MODEL).generations] == kept
    other = [one for one in kept if one <= found.epoch]
    assert [one.epoch for one in go_on(found, "b" * 64).generations] == other


def test_sessions_are_swept_unless_their_node_has_left_them() -> None:
    before, after = deployment(OLD, NEW, epoch=2, revision=7), deployment(NEW, epoch=2, revision=8)
    registry, sweeps = three(DRAINED, 1), Sweeps()
    registry.note_status("c", b"", 0.0)  # c is gone
    sweeps.note(before, after, 0.0)
    assert sweeps.due(registry, 0.1) == [(1, 2, 0)]
    saying(registry, "a", revision=8)  # a has read the plan, and says nothing of the stage any more
    saying(registry, "b", StageReport(1, 1, 0, DRAINED), revision=8)
    assert sweeps.due(registry, PATIENCE_S) == []
    assert sweeps.due(registry, PATIENCE_S + 0.1) == [(1, 1, 0)] and sweeps.due(registry, 99.0) == []


def test_a_stage_that_only_moved_is_not_swept() -> None:
    sweeps, moved = Sweeps(), msgspec.structs.replace(OLD, placements=generation("a", "b", "z").placements)
    sweeps.note(deployment(OLD, epoch=1), deployment(moved, epoch=1, revision=8), 0.0)
    assert sweeps.due(Registry(), 99.0) == []
