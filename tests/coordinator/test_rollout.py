"""The steps of a rollout, what ends each of them, and what a coordinator that starts goes on with."""

from __future__ import annotations

import msgspec
import pytest

from har_edge.coordinator.membership import Membership
from har_edge.coordinator.rollout import (
    DRAIN_S,
    NEXT,
    PROBE_S,
    STUCK_S,
    Rollout,
    Step,
    StepOutcome,
    resumable,
)
from har_edge.coordinator.session_gc import PATIENCE_S, SessionCollector
from har_edge.protocol.deployment import PROTOCOL, Deployment
from har_edge.protocol.status import (
    Heartbeat,
    NodeCapabilities,
    NodeStatus,
    StagePhase,
    StageReport,
    State,
)
from har_edge.timing import SWITCH_S
from tests.runtime.deployed import deployment, generation

MODEL = "a" * 64
OLD, NEW = generation("a", "b", "c", epoch=1), generation("a", "b", "c", epoch=2)
RUNNING, DRAINED = StagePhase.RUNNING, StagePhase.DRAINED


def saying(membership: Membership, node: str, *reports: StageReport, revision: int = 0, now: float = 0.0) -> None:
    card = NodeCapabilities(PROTOCOL, "m", "Linux", 1, 1, "", 1.0)
    membership.note_status(node, NodeStatus(node, "node", State.READY, "i", 1.0, device=card), now)
    membership.note_heartbeat(node, Heartbeat(node, "i", 1, 0.0, revision, reports), now)


def three(phase: StagePhase, epoch: int = 2) -> Membership:
    """Three nodes with a stage each."""
    membership = Membership()
    for stage, node in enumerate("abc"):
        saying(membership, node, StageReport(epoch, stage, 0, phase))
    return membership


def preparing() -> Rollout:
    rollout = Rollout()
    rollout.enter(Step.PREPARING, 0.0, NEW)
    return rollout


def test_every_step_has_its_successors_and_ends_idle() -> None:
    assert NEXT.keys() == set(Step) and all(Step.IDLE in steps for step, steps in NEXT.items() if step is not Step.IDLE)
    with pytest.raises(AssertionError):
        Rollout().enter(Step.PROBING, 0.0)


def test_a_generation_is_prepared_when_all_stages_run() -> None:
    rollout, membership = preparing(), three(StagePhase.PREPARED)
    assert rollout.prepared(membership, 1.0).outcome is StepOutcome.WAIT
    saying(membership, "a", StageReport(2, 0, 0, RUNNING))
    assert rollout.prepared(membership, 1.0).outcome is StepOutcome.WAIT
    assert rollout.prepared(three(RUNNING), 1.0).outcome is StepOutcome.DONE


def test_a_stage_that_fails_or_is_stuck_and_a_node_that_is_lost_end_it() -> None:
    rollout, membership = preparing(), three(StagePhase.FETCHING)
    assert rollout.prepared(membership, 1.0).outcome is StepOutcome.WAIT
    assert rollout.prepared(membership, STUCK_S).outcome is StepOutcome.WAIT  # the phases were seen at 1 s
    late = rollout.prepared(membership, STUCK_S + 1.1)
    assert (late.outcome, late.text, late.node) == (StepOutcome.FAILED, "stage 0 on a: fetching for 60 s", "a")
    saying(membership, "b", StageReport(2, 1, 0, StagePhase.FAILED, "no room"))
    failed = rollout.prepared(membership, 1.0)
    assert (failed.text, failed.node) == ("stage 1 failed on b: no room", "b")
    membership = three(RUNNING)
    membership.tick(99.0)
    assert rollout.prepared(membership, 99.0).text == "node a is lost"


def test_a_probe_decides() -> None:
    rollout = preparing()
    rollout.enter(Step.PROBING, 10.0)
    assert rollout.probed(three(RUNNING), True, 11.0).outcome is StepOutcome.DONE
    assert rollout.probed(three(RUNNING), False, 10 + PROBE_S - 0.1).outcome is StepOutcome.WAIT
    assert rollout.probed(three(RUNNING), False, 10 + PROBE_S).text == "no answer to a probe in 10 s"


def test_an_old_generation_waits_for_sensors_and_stages_but_not_for_ever() -> None:
    rollout, both = Rollout(), deployment(OLD, NEW, epoch=2)
    rollout.enter(Step.DRAINING, 0.0, NEW)
    assert rollout.drained(both, three(DRAINED, 1), 1.0).outcome is StepOutcome.DONE
    membership = three(DRAINED, 1)
    sensor = NodeStatus("s", "sensor", State.READY, "i", 1.0, epoch=1)
    membership.note_status("s", sensor, 0.0)
    assert rollout.drained(both, membership, SWITCH_S - 0.1).outcome is StepOutcome.WAIT
    assert rollout.drained(both, membership, SWITCH_S).text == "not waiting any longer for sensor s"
    membership = three(RUNNING, 1)
    assert rollout.drained(both, membership, DRAIN_S - 0.1).outcome is StepOutcome.WAIT
    text = rollout.drained(both, membership, DRAIN_S).text
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
    assert [one.epoch for one in resumable(found, MODEL).generations] == kept
    other = [one for one in kept if one <= found.epoch]
    assert [one.epoch for one in resumable(found, "b" * 64).generations] == other


def test_sessions_are_swept_unless_their_node_has_left_them() -> None:
    before, after = deployment(OLD, NEW, epoch=2, revision=7), deployment(NEW, epoch=2, revision=8)
    membership, collector = three(DRAINED, 1), SessionCollector()
    membership.note_status("c", None, 0.0)  # c is gone
    collector.note(before, after, 0.0)
    assert collector.due(membership, 0.1) == [((1, 2, 0), "")]
    saying(membership, "a", revision=8)  # a has read the plan, and says nothing of the stage any more
    saying(membership, "b", StageReport(1, 1, 0, DRAINED), revision=8)
    assert collector.due(membership, PATIENCE_S) == []
    assert collector.due(membership, PATIENCE_S + 0.1) == [((1, 1, 0), "")] and collector.due(membership, 99.0) == []


def test_a_stage_that_only_moved_is_not_swept() -> None:
    collector, moved = SessionCollector(), msgspec.structs.replace(OLD, placements=generation("a", "b", "z").placements)
    collector.note(deployment(OLD, epoch=1), deployment(moved, epoch=1, revision=8), 0.0)
    assert collector.due(Membership(), 99.0) == []
