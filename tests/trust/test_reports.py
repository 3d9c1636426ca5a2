"""A refused plan is said: by the node in its status, by the coordinator within a second, by doctor with the mend."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from har_edge.coordinator.refusals import Refusals
from har_edge.monitor.broker_checks import Verdict
from har_edge.monitor.signatures import check_signatures
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.deployment import encode_deployment
from har_edge.protocol.status import NodeStatus, PlanRefusal, State, encode_status
from har_edge.runtime.node.node import Node
from har_edge.runtime.status_publisher import Identity
from har_edge.trust.verdict import MENDS, Flaw
from tests.protocol.reading import read_status
from tests.runtime.coordinated import World
from tests.runtime.deployed import CARD, TOPICS, Said, deployment, generation

OURS = "ab" * 32
KEY = "12" * 32


def status(refused: PlanRefusal | None = None, state: State = State.READY, signer: str = "") -> NodeStatus:
    return NodeStatus("pi", "node", state, "pi-1", 1.0, refused=refused, signer=signer)


def test_a_node_says_which_plan_it_refused_for_its_revision_until_it_follows_one() -> None:
    node = Node(Identity(TOPICS, "pi", "node", "memory", device=CARD), lambda *_: pytest.fail("no stage is here"))
    newer, older, newest = (deployment(generation("a", "b", "c"), revision=n) for n in (9, 8, 10))
    node.begin()

    def said(*plans: object) -> PlanRefusal | None:
        for one in plans:
            node.handle(Said().plan(one))  # type: ignore[arg-type]
        return read_status(node.tick(0.0, 0)[0]).refused

    assert said(newer) is None
    refused = said(older)
    assert refused is not None and (refused.code, refused.serial) == (Flaw.OLDER.value, 9)
    assert refused.plan == hashlib.sha256(encode_deployment(older)).hexdigest() and "revision 8 came" in refused.reason
    assert said(newest) is None


def test_a_coordinator_says_once_who_refuses_its_last_plan_and_that_it_is_over() -> None:
    refusals, refusal = Refusals(), PlanRefusal(Flaw.KEY.value, "it is signed by another", OURS, 5)
    assert refusals.note("pi", status(PlanRefusal("key", "", "cd" * 32)), [OURS]) == "", "the plan of another"
    assert refusals.note("pi", status(refusal), ["0" * 64, OURS]) == (
        f"node pi refuses this plan: it is signed by another; {MENDS[Flaw.KEY]}"
    )
    assert refusals.detail == "the plan is refused by pi (key)" and refusals.newest("pi") is None
    assert refusals.note("pi", status(refusal), [OURS]) == ""
    assert refusals.note("pi", status(PlanRefusal("rollback", "old", OURS, 5)), [OURS]) and refusals.newest("pi") == 5
    assert refusals.note("pi", status(), [OURS]) == "node pi follows the plan again" and refusals.detail == ""
    refusals.note("pi", status(refusal), [OURS])
    assert refusals.note("pi", status(refusal, State.LOST), [OURS]) and refusals.detail == ""


def test_a_coordinator_whose_plan_is_refused_says_so_within_a_second() -> None:
    world = World()
    world.join("a")
    world.start()
    world.until(lambda: world.ready)
    assert world.plan is not None
    plan = hashlib.sha256(encode_deployment(world.plan)).hexdigest()
    refusal = PlanRefusal(Flaw.EXPIRED.value, "its signature expired", plan)
    node = world.nodes["a"]
    topic = TOPICS.status("a")
    said = read_status(Delivery(topic, node.status(node.state), (1, 1)))
    node.bus.publish(topic, encode_status(msgspec.structs.replace(said, refused=refusal)), retain=True)
    world.until(lambda: world.said("node a refuses this plan: its signature expired"), 1.0)
    world.until(lambda: world.status is not None and "refused by a (expired)" in world.status.detail, 1.0)


@pytest.mark.parametrize(
    ("node", "signer", "verdict", "text"),
    [
        (status(), "", Verdict.OK, "plans are unsigned: nodes follow whoever may publish at har/v1/har/plan"),
        (status(), KEY, Verdict.NOTE, "plans are signed, but pi follow unsigned ones too"),
        (status(signer=KEY), KEY, Verdict.OK, "plans are signed by ed25519:1212121212121212"),
        (status(PlanRefusal("ahead", "it is ahead")), KEY, Verdict.FAIL, "pi refuses a plan: it is ahead"),
    ],
)
def test_doctor_says_whether_plans_are_signed_and_who_refuses_one(
    node: NodeStatus, signer: str, verdict: Verdict, text: str
) -> None:
    (finding,) = check_signatures("signatures", {"pi": node}, {"coordinator": status(signer=signer)}, TOPICS)
    assert finding.verdict is verdict and text in finding.said
    if verdict is Verdict.FAIL:
        assert finding.remedy == MENDS[Flaw.AHEAD]
