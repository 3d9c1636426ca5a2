"""Stages without a node: who takes them on."""

from __future__ import annotations

from itertools import product

import pytest

from har_edge.coordinator.failover import Reassigner
from har_edge.coordinator.membership import Membership
from har_edge.planner.relocation import Candidate
from har_edge.protocol.deployment import PROTOCOL
from har_edge.protocol.status import Heartbeat, NodeCapabilities, NodeStatus, State
from tests.runtime.coded_pipeline import make_coded_group
from tests.runtime.deployed import deployment, generation

CARD = NodeCapabilities(PROTOCOL, "m", "Linux", 4, 10**9, "litert", 50.0)
CODED = make_coded_group(0, 2, 4, 5).manifest


@pytest.mark.parametrize(("lost", "spare"), list(product(range(4), ["idle", ""])))
def test_a_shard_goes_to_no_node_with_another_one_that_the_same_parity_stands_for(lost: int, spare: str) -> None:
    """A spare node takes it, or that of the stage that answers, for which no parity stands."""
    names = [f"n{k}" for k in range(5)]
    members = Membership()
    for name in (*names, spare) if spare else names:
        members.note_status(name, NodeStatus(name, "node", State.READY, "i", 1.0, device=CARD), 100.0)
        for now in (100.0,) if name == f"n{lost}" else (100.0, 109.9):
            members.note_heartbeat(name, Heartbeat(name, "i", int(now), 0.0), now)
    members.tick(110.0)
    assert CODED.spared == [0, 1, 2, 3]
    candidates = [Candidate(name, 0.1 if name == "n4" else 1.0) for name in names if name != f"n{lost}"]
    candidates += [Candidate(spare, 0.2)] if spare else []
    _, moved = Reassigner(members).reassign(deployment(generation(*names, cut=CODED)), candidates, (), 110.0)
    assert [(one.key[1], one.source, one.target) for one in moved] == [(lost, f"n{lost}", spare or "n4")]
