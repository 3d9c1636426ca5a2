"""The coordinator among nodes that join, leave, crash, hang, fail and slow down."""

from __future__ import annotations

import hashlib
import time

import msgspec
import pytest

from har_edge.coordinator.candidates import BAN_S
from har_edge.coordinator.membership import WILL_S
from har_edge.coordinator.replan import PlacementSpec
from har_edge.mqtt.bus import Delivery, Outgoing, TakenOver
from har_edge.protocol.deployment import Placement, encode_deployment
from har_edge.protocol.events import Event, decode
from har_edge.protocol.status import Heartbeat, State, encode_heartbeat
from har_edge.protocol.topics import Topics
from tests.protocol.reading import read_plan
from tests.runtime import coordinated
from tests.runtime.coordinated import MODEL, TOPICS, World


@pytest.fixture
def world() -> World:
    """Three nodes and a coordinator, running."""
    world = World()
    for name in "abc":
        world.join(name)
    world.start()
    world.until(lambda: world.ready)
    return world


def test_nodes_that_are_there_get_a_stage_each_and_sensors_an_epoch_that_answers(world: World) -> None:
    assert world.homes == {0: "a", 1: "b", 2: "c"} and world.plan is not None
    assert world.plan.epoch == 5000 and len(world.plan.generations) == 1
    assert world.answered == {5000}
    assert [plan.epoch for plan in world.plans] == [0, 5000]  # nobody sends before a probe came through


def test_a_crashed_node_hands_its_stage_to_another_at_once_with_the_same_cuts(world: World) -> None:
    world.crash("b")
    world.run(0.2)
    assert world.plan is not None and (world.plan.epoch, world.homes[1]) == (5000, "a")
    assert world.said("node b is lost: the broker lost its connection")
    assert world.said("epoch 5000: stage 1 goes from b to a: b is lost")
    assert not world.ready
    world.until(lambda: world.ready, 3)
    assert world.drawer.asked[1:] == []  # nobody was asked before


def test_a_spare_node_takes_the_stage_of_a_crashed_one() -> None:
    world = World(PlacementSpec(stages=2))
    for name in "abc":
        world.join(name)
    world.start()
    world.until(lambda: world.ready)
    counters = world.service._coordinator.counters
    assert (counters["asked"], counters["nodes"]) == (2, 3)  # doctor compares the two
    world.crash("a")
    world.run(0.2)
    assert world.homes == {0: "c", 1: "b"}


def test_a_hung_node_is_lost_after_its_deadline_and_a_join_when_it_wakes(world: World) -> None:
    world.nodes["b"].hung = True
    world.run(1.2)
    assert world.homes[1] == "b"
    world.run(1.0)
    assert world.homes[1] != "b" and world.said("node b is lost: no beat for 1.")
    world.nodes["b"].hung = False
    world.run(0.5)
    assert world.said("node b has joined") and world.homes[1] != "b"
    world.until(lambda: len(set(world.homes.values())) == 3, 20)
    assert world.plan is not None and world.plan.epoch > 5000


def test_a_coordinator_that_was_blind_blames_nobody(world: World) -> None:
    """It slept: every beat of that time comes late, or not at all."""
    before, service = world.plan, world.service
    world.service = None
    for node in world.nodes.values():
        node.bus.cut()
    world.run(5)
    world.service = service
    world.run(5)
    assert world.plan == before and not world.said("is lost")


def test_a_coordinator_that_is_short_of_time_blames_nobody(world: World) -> None:
    """It has a turn every 0.9 s, and a node beats in every third of them."""
    before, service = world.plan, world.service
    assert service is not None
    for turn in range(9):
        world.service = None
        world.nodes["b"].hung = turn % 3 < 2
        world.run(0.8)
        world.service = service
        world.step()
    assert world.plan == before and not world.said("is lost")


def test_a_node_that_boasts_is_planned_with_all_the_same(world: World) -> None:
    world.join("d", speed=float("1e300"))
    world.run(20)
    assert world.coordinator is not None and world.ready
    assert max(one.speed for one in world.drawer.asked[-1].candidates) == 1e9


def test_nobody_is_asked_while_the_broker_is_away(world: World) -> None:
    world.broker.stop()
    world.run(2)
    before = world.bus.unsent
    world.run(60)
    assert world.bus.unsent == before
    world.broker.start()
    world.run(20)
    assert world.ready


def test_a_retained_plan_that_comes_late_is_adopted(world: World) -> None:
    before, topic = world.plan, TOPICS.plan()
    assert before is not None
    world.kill()
    retained = world.retained[topic]
    world.mouth.publish(topic, b"", retain=True)
    world.start()
    world.run(1.5)
    world.mouth.publish(topic, retained, retain=True)
    world.run(10)
    assert world.said("adopted the plan of") and world.plan is not None and world.ready
    assert (world.plan.epoch, world.plan.generations) == (before.epoch, before.generations)
    assert all(plan.generations for plan in world.plans)


def test_a_reconnection_gives_everybody_time(world: World) -> None:
    before = world.plan
    world.broker.stop()
    world.run(4)
    world.broker.start()
    world.nodes["b"].hung = True
    world.run(2.5)
    assert world.said("the connection to the broker is back") and not world.said("node b is lost")
    world.nodes["b"].hung = False
    world.until(lambda: world.ready)
    assert world.plan == before


@pytest.mark.parametrize("seen", [False, True], ids=["with the cut", "before the cut"])
def test_the_wills_that_a_broker_publishes_as_it_stops_move_nothing(world: World, seen: bool) -> None:
    """Nor do they when they come again after the reconnection, before the nodes are back."""
    before = world.plan
    for name, node in world.nodes.items():
        node.hung = True
        world.say(TOPICS.status(name), node.status(State.LOST), retain=True)
    if seen:
        assert world.service is not None
        world.service.step(0, lambda: world.now)
    world.broker.stop()
    world.broker._accounts.pop("har.har.coordinator")  # its session expires at once
    world.run(2)
    world.broker.start()
    world.run(2)
    for node in world.nodes.values():
        node.hung = False
    world.run(6)
    assert world.ready and before is not None and world.plan is not None
    assert world.plan.generations == before.generations and not world.said("is lost")


def test_a_node_that_is_lost_while_the_broker_is_gone_is_found_after_the_grace(world: World) -> None:
    world.broker.stop()
    lost = world.nodes.pop("b").status(State.LOST)
    world.run(1)
    world.broker._retained[TOPICS.status("b")] = lost
    world.broker.start()
    world.run(2.5)
    assert world.homes[1] == "b"
    world.run(1)
    assert world.homes[1] != "b" and world.said("node b is lost: the broker lost its connection")


def test_a_node_that_joins_gets_a_stage_when_that_gains_enough(world: World) -> None:
    world.join("d")
    world.run(2)
    assert world.plan is not None and world.plan.epoch == 5000  # not before everything is settled
    world.until(lambda: world.plan is not None and len(world.plan.generations) == 2, 5)
    world.until(lambda: world.plan is not None and len(world.plan.generations) == 1, 20)
    assert world.plan.epoch == 5001 and world.homes == {0: "a", 1: "b", 2: "c", 3: "d"}
    assert world.said("because: a window every 1.00 s instead of 1.33 s, which gains 25%")
    assert 5001 in world.answered and world.said("epoch 5000 is over")


def test_a_node_that_brings_too_little_is_a_spare() -> None:
    world = World(margin=0.3)
    for name in "abc":
        world.join(name)
    world.start()
    world.until(lambda: world.ready)
    world.join("d")
    world.run(20)
    assert world.plan is not None and world.plan.epoch == 5000
    assert world.said("that gains 25%, and 30% is the margin")
    assert len(world.drawer.asked) == 2  # asked once for the first plan, once for the new node


def test_a_node_that_leaves_hands_over_when_its_successor_has_loaded(world: World) -> None:
    world.leave("b")
    world.run(0.3)
    assert world.homes[1] == "b" and world.plan is not None and world.plan.current is not None
    assert world.plan.current.placements[1].standby == ("a",)
    world.until(lambda: world.homes[1] == "a", 2)
    assert world.said("stage 1 goes from b to a: b leaves, and a has loaded it")
    assert world.plan.epoch == 5000
    world.run(1)
    assert world.said("node b has stopped")


def test_a_successor_that_does_not_load_gets_the_stage_before_the_other_gives_up(world: World) -> None:
    world.leave("b")
    for node in world.nodes.values():
        node.fetch_s = 60.0
    world.run(7.5)
    assert world.homes[1] == "b"
    world.until(lambda: world.homes[1] != "b", 1.5)
    assert world.said("b leaves, and a has not loaded it")


def test_the_last_node_that_leaves_leaves_the_plan(world: World) -> None:
    for name in "abc":
        world.crash(name)
    world.run(5)
    assert set(world.homes.values()) <= set("abc") and world.said("waiting for nodes: start `har-edge node`")
    assert world.status is not None and world.status.state.value == "busy"
    world.join("z")
    world.until(lambda: set(world.homes.values()) == {"z"}, 3)
    assert world.plan is not None and world.plan.epoch == 5000
    world.until(lambda: world.ready, 3)


def test_a_generation_on_which_a_stage_fails_is_withdrawn_and_tried_without_that_node(world: World) -> None:
    world.join("d", failing="disk full")
    world.until(lambda: world.said("was withdrawn"), 20)
    assert world.said("epoch 5001 was withdrawn: stage 3 failed on d: disk full; trying again in 2 s, without d")
    world.run(20)
    assert world.plan is not None and world.plan.epoch == 5000 and len(world.plan.generations) == 1
    assert all(plan.epoch == 5000 for plan in world.plans[1:]) and world.ready


def test_a_generation_whose_probe_does_not_come_back_never_gets_windows(world: World) -> None:
    world.mute = {5001, 5002}
    world.join("d")
    world.until(lambda: world.said("epoch 5001 was withdrawn: no answer to a probe in 12 s; trying again in 2 s"), 60)
    began = world.now
    world.until(lambda: world.said("epoch 5002 was withdrawn"), 90)
    assert world.now > began + BAN_S  # it counts against d, which alone was new
    world.until(lambda: world.plan is not None and world.plan.epoch == 5003, 2.5 * BAN_S)
    assert {plan.epoch for plan in world.plans} == {0, 5000, 5003}
    assert [line[-4:] for line in world.lines if "trying again in" in line] == ["2 s", "4 s"] or world.said("in 4 s")


def test_a_node_lost_while_a_generation_gets_ready_withdraws_it(world: World) -> None:
    world.join("d").fetch_s = 5.0
    world.until(lambda: world.plan is not None and len(world.plan.generations) == 2, 10)
    world.crash("d")
    world.run(0.3)
    assert world.plan is not None and len(world.plan.generations) == 1 and world.said("withdrawn: node d is lost")
    assert world.drawer.swept == ["har.har.5001.stage-3.0"]


def test_a_stage_that_fails_moves_and_stays_away_from_that_node(world: World) -> None:
    world.nodes["b"].failing = "slice is broken"
    world.until(lambda: world.homes[1] == "a", 2)
    assert world.said("stage 1 goes from b to a: it failed on b: slice is broken")
    world.run(20)
    assert "b" not in world.homes.values() and world.ready


def test_a_slow_node_gets_less_after_two_looks(world: World) -> None:
    world.run(8)
    world.nodes["b"].slow = 9.0
    world.until(lambda: world.said("measured speeds speak for another plan"), 60)
    assert world.plan is not None and world.plan.epoch == 5000
    world.until(lambda: world.plan is not None and world.plan.epoch == 5001, 60)
    request = world.drawer.asked[-1]
    speeds = {one.name: one.effective_speed for one in request.candidates}
    assert speeds["b"] < 0.2 * speeds["a"]


def test_what_plan_after_plan_remarks_is_said_once_until_one_does_not(world: World) -> None:
    def look(*remarks: str) -> None:
        """Let a joining node ask for a plan."""
        world.drawer.remarks, asked = remarks, len(world.drawer.asked)
        world.join(f"e{asked}", speed=1.0)
        world.until(lambda: len(world.drawer.asked) > asked, 60)
        world.run(1.0)

    for remarks in (("x is absent",), ("x is absent", "y is absent"), (), ("x is absent",)):
        look(*remarks)
    assert [line for line in world.lines if "is absent" in line] == ["x is absent", "y is absent", "x is absent"]


def test_a_slow_moment_changes_nothing(world: World) -> None:
    world.run(8)
    world.nodes["b"].slow = 9.0
    world.run(1.5)
    world.nodes["b"].slow = 1.0
    world.run(60)
    assert world.plan is not None and world.plan.epoch == 5000


def test_a_model_that_does_not_fit_is_said_and_what_runs_stays(world: World) -> None:
    world.drawer.problem = "har.tflite is too large for all devices together"
    world.join("d")
    world.run(10)
    assert world.status is not None and "too large for all devices together" in world.status.detail
    assert world.plan is not None and world.plan.epoch == 5000 and world.ready
    assert len(world.drawer.asked) == 2


def test_a_node_of_another_protocol_is_not_used(world: World) -> None:
    world.join("d", protocol=99)
    world.run(10)
    assert world.said("node d cannot be used: it speaks protocol 99, expected 1") and len(world.drawer.asked) == 1


def test_slices_come_before_the_plan_that_names_them_and_go_when_nobody_does(world: World) -> None:
    world.join("d")
    world.until(lambda: world.plan is not None and world.plan.epoch == 5001 and len(world.plan.generations) == 1, 30)
    world.run(1)
    assert world.plan.current is not None
    kept = {topic.split("/")[4] for topic, payload in world.retained.items() if "/slice/" in topic and payload}
    assert kept == {entry.sha256 for entry in world.plan.current.manifest.slices}
    assert {topic.split("/")[4] for topic, payload in world.retained.items() if "/chunk/" in topic and payload} == kept


def test_a_coordinator_that_is_killed_and_started_goes_on(world: World) -> None:
    before = world.plan
    world.kill()
    world.run(3)
    world.start()
    world.until(lambda: world.ready, 10)
    assert world.plan is not None and before is not None
    assert world.plan.generations == before.generations and world.plan.revision == before.revision + 1
    assert world.said("adopted the plan of c4, revision 2: epoch 5000: 3 stages (cuts 1, 2): 0 on a, 1 on b, 2 on c")
    world.run(10)
    assert world.plan.epoch == 5000


def test_nodes_that_were_lost_while_nobody_looked_are_found(world: World) -> None:
    world.kill()
    world.crash("b")
    world.nodes["c"].hung = True
    world.run(3)
    world.start()
    world.until(lambda: set(world.homes.values()) == {"a"}, 8)
    world.until(lambda: world.ready, 5)


def test_a_node_in_the_plan_that_nobody_knows_gets_its_grace(world: World) -> None:
    """Its status is not retained any more, and it may be about to speak."""
    world.kill()
    world.nodes["b"].hung = True
    world.say(TOPICS.status("b"), b"", retain=True)
    world.start()
    world.run(3.5)  # a second for what is retained, and most of the grace
    assert world.said("adopted") and world.homes[1] == "b"
    world.run(1.5)
    assert world.homes[1] != "b" and world.said("node b is lost: it was never heard")


def test_a_plan_whose_slices_do_not_fit_is_begun_anew(world: World) -> None:
    world.kill()
    world.misfits = {5000}
    world.start()
    world.run(2)
    world.until(lambda: world.ready, 20)
    assert world.plan is not None and [one.epoch for one in world.plan.generations] == [5001]
    assert world.said("cannot be gone on with: no window goes through epoch 5000: the slices do not fit the task")


def test_a_plan_for_more_nodes_than_can_be_watched_is_begun_anew(world: World) -> None:
    assert world.plan is not None and world.plan.current is not None
    first, *others = world.plan.current.placements
    many = [Placement(0, f"n{number}", number) for number in range(255)]
    current = msgspec.structs.replace(world.plan.current, placements=(*many, *others))
    world.kill()
    forged = msgspec.structs.replace(world.plan, author="forger", revision=9, generations=(current,))
    world.say(TOPICS.plan(), encode_deployment(forged), retain=True)
    world.start()
    world.run(2)
    world.until(lambda: world.ready, 20)
    assert world.said("cannot be gone on with: it names 257 nodes; expected at most 256")
    assert world.plan.author == "c5" and world.homes[0] == first.node


def test_a_probe_that_cannot_be_made_is_said_and_ends_nothing(world: World) -> None:
    world.misfits = {5000}
    world.run(20)
    text = "epoch 5000 cannot be asked whether it answers: the slices do not fit the task"
    assert world.service is not None and not world.ready and world.status is not None and text in world.status.detail
    assert sum(text in line for line in world.lines) == 1


def test_slices_that_the_broker_lost_are_there_again_at_once_after_a_restart() -> None:
    world = World(PlacementSpec(stages=3), settle_s=60.0)
    for name in "abc":
        world.join(name)
    world.start()
    world.until(lambda: world.ready)
    assert world.plan is not None and world.plan.current is not None
    topics = [TOPICS.slice(entry.sha256) for entry in world.plan.current.manifest.slices]
    world.kill()
    for topic in topics:
        world.say(topic, b"", retain=True)
    world.run(1)
    asked = len(world.drawer.asked)
    world.start()
    world.run(1.5)
    assert all(world.retained[topic] for topic in topics) and len(world.drawer.asked) == asked


def test_a_rollout_is_gone_on_with_after_a_restart(world: World) -> None:
    world.join("d").fetch_s = 3.0
    world.until(lambda: world.plan is not None and len(world.plan.generations) == 2, 10)
    world.kill()
    world.run(1)
    world.start()
    world.until(lambda: world.plan is not None and world.plan.epoch == 5001, 15)
    world.until(lambda: len(world.plan.generations) == 1, 40)  # type: ignore[union-attr]
    assert world.ready


def test_another_model_takes_over_in_a_new_epoch(world: World) -> None:
    world.kill()
    world.start(model="b" * 64)
    world.until(lambda: world.plan is not None and world.plan.epoch == 5001 and len(world.plan.generations) == 1, 30)
    assert world.plan.generations[0].manifest.model_sha256 == "b" * 64
    assert world.said("because: it is of another model")
    assert all(plan.epoch in (0, 5000, 5001) for plan in world.plans)


def test_the_younger_of_two_coordinators_stays(world: World) -> None:
    old, old_bus = world.service, world.bus
    world.start()
    young = world.service
    world.run(3)
    assert young is world.service and old is not None
    with pytest.raises(TakenOver):
        old.step(0, lambda: world.now)
    assert not old_bus.connected and world.plan is not None and world.plan.author == "c5"


def test_an_older_coordinator_on_another_connection_ends_too(world: World) -> None:
    assert world.coordinator is not None and world.plan is not None
    theirs = msgspec.structs.replace(world.plan, author="other", started=99.0, revision=50)
    world.say(TOPICS.plan(), encode_deployment(theirs), retain=True)
    world.step()
    assert world.service is None and world.coordinator.successor == "other"


def test_a_plan_of_an_older_coordinator_is_replaced_by_ours(world: World) -> None:
    assert world.plan is not None
    ours = world.plan
    theirs = msgspec.structs.replace(ours, author="old", started=0.5, revision=50, generations=(), epoch=0)
    world.say(TOPICS.plan(), encode_deployment(theirs), retain=True)
    world.run(0.3)
    assert (world.plan.author, world.plan.revision, world.plan.generations) == (ours.author, 51, ours.generations)


def test_an_older_plan_of_ours_that_comes_late_does_not_stay(world: World) -> None:
    world.crash("b")
    world.until(lambda: world.ready and world.homes[1] != "b", 5)
    late, newer = world.plans[-2:]
    assert late.revision < newer.revision and late.author == newer.author
    world.say(TOPICS.plan(), encode_deployment(late), retain=True)
    world.run(0.3)
    assert read_plan(Outgoing(TOPICS.plan(), world.retained[TOPICS.plan()])) == newer
    world.run(3)
    assert world.plans.count(newer) == 2  # once more is enough


def test_what_the_broker_lost_is_published_again(world: World) -> None:
    """A broker without persistence comes back empty."""
    before = world.plan
    world.broker.stop()
    world.run(1)
    world.broker._retained.clear()
    world.retained.clear()
    world.broker.start()
    assert before is not None and before.current is not None
    lost = [TOPICS.plan(), *(TOPICS.slice(entry.sha256) for entry in before.current.manifest.slices)]
    world.until(lambda: all(topic in world.broker._retained for topic in lost), 5)
    assert world.plan == before
    world.until(lambda: world.ready, 5)


def test_garbage_harms_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert world.coordinator is not None
    for topic in (
        TOPICS.plan(),
        TOPICS.status("b"),
        TOPICS.heartbeat("b"),
        TOPICS.slice("0" * 64),
        world.coordinator.filters[-1],  # the results of its probes
    ):
        for payload in (b"\xff\x00", b"{}", b"[" * 5000, b"1" * 300_000):
            world.say(topic, payload)
    world.run(0.3)
    assert world.coordinator.rejected == 20
    assert len([one for one in caplog.messages if TOPICS.slice("0" * 64) in one or "is no header" in one]) == 4
    world.until(lambda: world.ready, 5)
    assert world.homes == {0: "a", 1: "b", 2: "c"}


def test_results_of_people_do_not_even_come(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(delivery: Delivery, topics: Topics) -> Event:
        read.append(delivery.topic)
        return decode(delivery, topics)

    monkeypatch.setattr("har_edge.coordinator.coordinator.decode", reading)
    assert world.coordinator is not None
    probes = world.coordinator.filters[-2:]
    assert all(topic.startswith(TOPICS.result("_probe-")) and "+" not in topic for topic in probes)
    for topic in (TOPICS.result("anna"), TOPICS.result("_probe-x"), *probes):
        world.say(topic, b"{}")
    world.run(0.3)
    assert set(probes) <= set(read) and not {TOPICS.result("anna"), TOPICS.result("_probe-x")} & set(read)


def test_a_chain_that_stops_answering_is_not_ready_until_it_does(world: World) -> None:
    world.muted_all = True
    world.run(20)
    assert not world.ready and world.status is not None and world.status.state.value == "busy"
    world.muted_all = False
    world.until(lambda: world.ready, 3)


def test_the_way_from_a_crash_to_the_new_plan_takes_no_time() -> None:
    """Many nodes and stages: from the message of the broker to the plan less than 50 ms of work."""
    world = World(PlacementSpec(stages=24))
    for number in range(24):
        world.join(f"n{number}")
    world.start()
    world.until(lambda: world.ready)
    assert world.coordinator is not None
    will = world.nodes["n7"].status(State.LOST)
    before = time.thread_time()
    assert world.coordinator.handle(Delivery(TOPICS.status("n7"), will, (0, 0)), world.now) == []
    out = world.coordinator.tick(world.now + WILL_S)
    took_s = time.thread_time() - before
    (plan,) = [one for one in out if one.topic == TOPICS.plan()]
    assert read_plan(plan).holder(5000, 7, 0) not in ("n7", None)
    assert took_s < 0.05


def test_a_clock_that_was_set_back_does_not_end_a_coordinator(world: World) -> None:
    """The plan that was adopted is younger by its own clock; a broker that restarts may retain it once more."""
    assert world.plan is not None
    theirs = msgspec.structs.replace(world.plan, author="before", started=10.0**10, revision=70)
    world.kill()
    world.say(TOPICS.plan(), encode_deployment(theirs), retain=True)
    world.start()
    world.run(0.5)
    world.until(lambda: world.ready, 10)
    world.say(TOPICS.plan(), encode_deployment(theirs), retain=True)
    world.run(1)
    assert world.service is not None and world.plan.author == world.coordinator._setup.author  # type: ignore[union-attr]
    assert world.plan.revision == 72


@pytest.mark.parametrize("spec", [PlacementSpec(), PlacementSpec(stages=3)], ids=["any", "as many as nodes"])
def test_a_lost_plan_by_a_clock_that_was_ahead_does_not_stop_ours(spec: PlacementSpec) -> None:
    """Nodes take what they follow for newer, until ours has a later revision."""
    world = World(spec)
    for name in "abc":
        world.join(name)
    world.start()
    world.until(lambda: world.ready)
    assert world.plan is not None
    theirs = msgspec.structs.replace(world.plan, author="before", started=10.0**10, revision=70)
    world.kill()
    world.say(TOPICS.plan(), encode_deployment(theirs), retain=True)
    world.run(0.3)
    assert {node.deployment.revision for node in world.nodes.values() if node.deployment} == {70}
    world.say(TOPICS.plan(), b"", retain=True)
    world.start(clock=1.0)
    world.run(3)
    world.until(lambda: world.ready, 10)
    assert world.plan.author == "c5" and world.plan.revision > 70  # type: ignore[union-attr]
    assert world.plan.epoch == 5001  # not one that its stages may still have
    assert world.said("follows revision 70 of a lost plan: ours counts on from there")
    assert all(plan.generations for plan in world.plans if plan.author == "c5")  # what ran was not stopped before


def test_no_count_of_a_node_makes_a_revision_that_cannot_be_written(world: World) -> None:
    node = world.nodes["a"]
    for revision in (2**53, 2**62):
        beat = Heartbeat("a", node.instance, 10**6, world.now, revision)
        world.say(TOPICS.heartbeat("a"), encode_heartbeat(beat))
        world.run(0.3)
    assert world.plan is not None and world.plan.revision == 2


def test_a_slice_that_a_node_could_not_get_is_published_again_now_and_then(world: World) -> None:
    assert world.plan is not None and world.plan.current is not None
    sha256 = world.plan.current.manifest.slices[1].sha256
    chunk, spoilt = TOPICS.chunk(sha256, 0), bytes(17)
    good, said = world.retained[chunk], f"could not get {sha256} from the broker: it is published again"
    for node in world.nodes.values():
        node.failing, node.lacks = "forged or corrupt", sha256

    def spoil() -> None:
        world.say(chunk, spoilt, retain=True)
        world.look()
        assert world.retained[chunk] == spoilt

    def mended_within(seconds: float) -> bool:
        world.run(seconds)
        return world.retained[chunk] == good

    spoil()
    assert mended_within(1) and sum(said in line for line in world.lines) == 1
    spoil()
    assert not mended_within(8)  # three nodes say so twice a second
    assert mended_within(3) and sum(said in line for line in world.lines) == 2
    spoil()
    assert not mended_within(18) and mended_within(3)
    for node in world.nodes.values():
        node.failing = node.lacks = ""
    world.until(lambda: world.ready, 120)


def test_what_a_node_says_it_lacks_is_published_only_if_the_plan_names_it(world: World) -> None:
    world.nodes["a"].lacks = "b" * 64
    before = len(world.lines)
    world.run(1)
    assert len(world.lines) == before and not any("b" * 64 in topic for topic in world.retained)


def test_a_crash_during_an_upload_is_mended_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(model: str, count: int) -> list[bytes]:
        return [bytes([k, count]) * 2_000_000 for k in range(count)]

    monkeypatch.setattr(coordinated, "contents", large)
    world.join("d")
    chunks = {hashlib.sha256(one).hexdigest() for one in large(MODEL, 4)}

    def headers() -> set[str]:
        return {sha256 for sha256 in chunks if world.retained.get(TOPICS.slice(sha256))}

    world.until(headers, 10)
    assert headers() < chunks
    world.crash("b")
    world.run(0.2)
    assert world.homes[1] != "b" and headers() < chunks
    world.until(lambda: world.ready and world.plan is not None and len(world.plan.generations) == 1, 60)
    assert world.plan is not None and world.plan.current is not None
    named = {entry.sha256 for entry in world.plan.current.manifest.slices}
    world.until(
        lambda: {topic.split("/")[4] for topic, one in world.retained.items() if one and "/chunk/" in topic} == named
    )


def test_the_statuses_of_those_that_have_long_been_gone_are_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("har_edge.coordinator.membership.FORGET_NODE_S", 30.0)

    def there() -> set[str]:
        return {topic.split("/")[4] for topic, one in world.retained.items() if one and topic.endswith("/status")}

    world.crash("b")
    world.leave("c")
    world.join("d")
    world.run(1)
    world.nodes["d"].hung = True  # lost, but not gone
    world.run(25)
    assert "c" not in world.nodes and there() == {"a", "b", "c", "d", "coordinator"}
    world.join("c")
    world.run(10)
    assert there() == {"a", "c", "d", "coordinator"}
    assert world.said("b has been gone for more than an hour: its status is removed")
    world.run(40)
    assert there() == {"a", "c", "d", "coordinator"}
    assert world.coordinator is not None and set(world.coordinator.membership.members) == {"a", "c", "d"}
    world.join("b")
    world.until(lambda: "b" in world.homes.values(), 30)


def test_a_coordinator_that_was_started_again_publishes_a_slice_as_soon_as_it_has_cut_it() -> None:
    world = World(PlacementSpec(stages=3))
    for name in "abc":
        world.join(name)
    world.start()
    world.until(lambda: world.ready)
    assert world.plan is not None and world.plan.current is not None
    chunk = TOPICS.chunk(world.plan.current.manifest.slices[1].sha256, 0)
    good = world.retained[chunk]
    world.kill()
    world.start()
    world.say(chunk, bytes(17), retain=True)
    world.nodes["b"].failing, world.nodes["b"].lacks = "forged or corrupt", chunk.split("/")[4]
    world.run(0.5)
    assert world.retained[chunk] == bytes(17)  # it has no slices yet
    world.until(lambda: world.retained[chunk] == good, 2)
    assert world.said("it is published again")


def test_nodes_that_may_give_other_bits_than_each_other_are_warned_of_once() -> None:
    world = World()
    world.join("a", runtime="tflite-runtime 2.14.0")
    world.join("b", runtime="ai-edge-litert 2.3.0")
    world.start()
    world.until(lambda: world.ready)
    world.run(5.0)
    warnings = [line for line in world.lines if "warning: " in line]
    assert len(warnings) == 1
    assert "this model computes in float32, and its nodes in different ways: answers may differ" in warnings[0]
    assert "a (tflite-runtime 2.14.0, Linux), b (ai-edge-litert 2.3.0, Linux)" in warnings[0]


def test_nodes_that_compute_alike_are_not_warned_of(world: World) -> None:
    assert not world.said("warning: ")
