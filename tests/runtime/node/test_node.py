"""The control of a node: which workers there are, what it says and when, how it leaves; over hands that do as told."""

import logging
import re
from dataclasses import dataclass, field

import msgspec
import pytest

from har_edge.errors import BrokerError, NodeError
from har_edge.mqtt.bus import Delivery, Session, TakenOver
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.deployment import Placement, encode_deployment
from har_edge.protocol.status import (
    Heartbeat,
    NodeStatus,
    StagePhase,
    StageReport,
    State,
    encode_heartbeat,
    encode_status,
)
from har_edge.runtime.node import node as node_module
from har_edge.runtime.node import registration
from har_edge.runtime.node.node import LOOK_S, Node, replicas_of, run_node
from har_edge.runtime.node.registration import arrive, check_name, check_role
from har_edge.runtime.node.worker import LEAVING, DesiredState, ReplicaId
from har_edge.runtime.status_publisher import Identity
from har_edge.runtime.stop import Stop
from har_edge.timing import HEARTBEAT_S, NODE_STATUS_S
from tests.protocol.reading import read_heartbeat, read_status
from tests.runtime.deployed import CARD, EPOCH, TOPICS, Said, deployment, generation

ME, SAID = "pi-1", Said()


@dataclass
class Puppet:
    """A hand whose phase a test sets; told to leave, it goes when `obedient`."""

    replica_id: ReplicaId
    deployment: object
    desired: DesiredState
    phase: StagePhase = StagePhase.FETCHING
    alive: bool = False
    obedient: bool = True
    told: list[DesiredState] = field(default_factory=list)
    unending: bool = False

    def start(self):
        self.alive = True
        self.told.append(self.desired)

    def direct(self, desired, deployment=None):
        self.deployment = deployment or self.deployment
        if desired is self.desired or self.desired in LEAVING:
            return
        self.desired = desired
        self.told.append(desired)
        if desired in LEAVING and self.obedient:
            self.alive = False

    def retry_now(self):
        self.told.append("stir")

    def watch(self, now):
        self.watched_at = now

    def report(self, now):
        return StageReport(self.replica_id.epoch, self.replica_id.stage, self.replica_id.replica, self.phase)

    def join(self, timeout_s):
        self.told.append(("join", timeout_s > 0))


class NodeScenario:
    """A node and the workers that it has started, in order."""

    def __init__(self, *, obedient=True):
        self.hands: list[Puppet] = []
        self.obedient = obedient
        self.identity = Identity(TOPICS, ME, "node", "memory", device=CARD)
        self.node = Node(self.identity, self.start_worker)
        self.now = 100.0

    def start_worker(self, replica_id, deployment, desired):
        self.hands.append(Puppet(replica_id, deployment, desired, obedient=self.obedient))
        return self.hands[-1]

    def hear(self, *deployments):
        for one in deployments:
            self.node.handle(SAID.plan(one))
        return self.tick()

    def tick(self, passed_s=0.0, reconnects=0):
        self.now += passed_s
        return [read(one) for one in self.node.tick(self.now, reconnects, {"sent_bytes": 5})]

    def replicas(self):
        return {(replica_id.epoch, replica_id.stage): hand.desired for replica_id, hand in self.node.workers.items()}


def read(outgoing) -> NodeStatus | Heartbeat:
    if outgoing.topic == TOPICS.status(ME):
        assert outgoing.retain
        return read_status(outgoing)
    assert outgoing.topic == TOPICS.heartbeat(ME) and not outgoing.retain
    return read_heartbeat(outgoing)


def states(said):
    return [one.state for one in said if isinstance(one, NodeStatus)]


def beats(said):
    return [one for one in said if isinstance(one, Heartbeat)]


@pytest.fixture
def scenario():
    scenario = NodeScenario()
    scenario.node.begin()
    return scenario


def test_posts_are_what_is_held_and_what_stands_by_in_every_generation():
    old, new = generation("pi-1", "pi-2", "pi-1"), generation("pi-2", "pi-1", "pi-3", epoch=EPOCH + 1)
    shared = (Placement(0, "pi-1"), Placement(0, "pi-2", 1), Placement(1, "pi-2", standby=("pi-3", "pi-1")))
    new = msgspec.structs.replace(new, placements=(*shared, Placement(2, "pi-2")))
    plan = deployment(old, new)
    assert replicas_of(plan, ME) == {
        ReplicaId(EPOCH, 0, 0): DesiredState.HOLD,
        ReplicaId(EPOCH, 2, 0): DesiredState.HOLD,
        ReplicaId(EPOCH + 1, 0, 0): DesiredState.HOLD,
        ReplicaId(EPOCH + 1, 1, 0): DesiredState.PREPARE,
    }
    assert replicas_of(plan, "stranger") == replicas_of(None, ME) == {}


def test_a_node_says_how_it_is_when_that_changes_and_after_a_reconnection_and_beats_twice_a_second():
    scenario = NodeScenario()
    assert states(scenario.tick()) == [State.INIT] and scenario.tick(10.0) == []  # no beat before it can take stages
    scenario.node.begin()
    status, beat = scenario.tick()
    assert status.state is State.READY and status.device == CARD and status.role == "node"
    assert status.counters == {"plans_rejected": 0, "sent_bytes": 5}
    assert (beat.node, beat.instance, beat.number, beat.revision) == (ME, scenario.identity.instance, 1, 0)
    assert scenario.tick(HEARTBEAT_S / 2) == [] and len(beats(scenario.tick(HEARTBEAT_S / 2))) == 1
    status, beat = scenario.tick(0.01, reconnects=1)
    assert status.state is State.READY and beat.number == 3
    assert scenario.tick(0.01, reconnects=1) == []


def test_after_a_reconnection_what_failed_is_tried_again_at_once(scenario):
    scenario.hear(deployment(generation(ME, ME, "pi-2"), revision=1))
    for reconnects in (0, 1, 1, 2):
        scenario.tick(1.0, reconnects)
    assert [hand.told.count("stir") for hand in scenario.hands] == [2, 2]


def test_a_status_that_somebody_removed_comes_back(scenario):
    assert states(scenario.tick()) == [State.READY]
    assert states(scenario.tick(NODE_STATUS_S - 0.1)) == [] and states(scenario.tick(0.2)) == [State.READY]
    assert states(scenario.tick(1.0)) == [] and states(scenario.tick(NODE_STATUS_S)) == [State.READY]


def test_a_beat_goes_out_as_soon_as_a_stage_changes_and_the_status_when_the_first_one_runs(scenario):
    scenario.hear(deployment(generation("pi-1", "pi-2", "pi-1")))
    assert scenario.node.unsettled and scenario.tick() == []
    first, second = scenario.hands
    first.phase = StagePhase.PREPARED
    (beat,) = scenario.tick(0.01)
    assert [report.phase for report in beat.stages] == [StagePhase.PREPARED, StagePhase.FETCHING]
    assert beat.revision == 7
    first.phase = StagePhase.RUNNING
    status, beat = scenario.tick(0.01)
    assert status.state is State.BUSY and beat.stages[0].phase is StagePhase.RUNNING
    second.phase = StagePhase.RUNNING
    assert states(scenario.tick()) == [] and not scenario.node.unsettled
    first.phase = second.phase = StagePhase.FAILED
    assert states(scenario.tick(0.01)) == [State.READY]


def test_workers_follow_the_plan(scenario):
    scenario.obedient = False
    scenario.hear(deployment(generation("pi-1", "pi-2", "pi-1"), revision=1))
    assert scenario.replicas() == {(EPOCH, 0): DesiredState.HOLD, (EPOCH, 2): DesiredState.HOLD}
    placements = (Placement(0, "pi-2", standby=(ME,)), Placement(1, "pi-2"), Placement(2, "pi-2"))
    moved = msgspec.structs.replace(generation("pi-1", "pi-2", "pi-1"), placements=placements)
    scenario.hear(deployment(moved, revision=2))
    assert (
        scenario.replicas() == {(EPOCH, 0): DesiredState.PREPARE, (EPOCH, 2): DesiredState.LEAVE}
        and scenario.node.unsettled
    )
    scenario.hear(deployment(generation("pi-2", "pi-1", "pi-2", epoch=EPOCH + 1), epoch=EPOCH + 1, revision=3))
    assert scenario.replicas() == {
        (EPOCH, 0): DesiredState.END,
        (EPOCH, 2): DesiredState.LEAVE,
        (EPOCH + 1, 1): DesiredState.HOLD,
    }
    for hand in scenario.hands[:2]:
        hand.alive = False
    scenario.tick()
    assert scenario.replicas() == {(EPOCH + 1, 1): DesiredState.HOLD} and len(scenario.hands) == 3
    assert all(hand.deployment.revision == 3 for hand in scenario.hands)


def test_a_stage_that_comes_back_waits_until_its_former_worker_has_gone(scenario):
    scenario.obedient = False
    scenario.hear(deployment(generation("pi-1", "pi-2", "pi-2"), revision=1))
    scenario.hear(deployment(generation("pi-2", "pi-2", "pi-2"), revision=2))
    scenario.hear(deployment(generation("pi-1", "pi-2", "pi-2"), revision=3))
    assert scenario.replicas() == {(EPOCH, 0): DesiredState.LEAVE} and len(scenario.hands) == 1
    scenario.hands[0].alive = False
    scenario.tick()
    assert scenario.replicas() == {(EPOCH, 0): DesiredState.HOLD} and len(scenario.hands) == 2


def test_a_worker_that_vanished_is_hired_anew(scenario):
    scenario.hear(deployment(generation("pi-1", "pi-2", "pi-2")))
    scenario.hands[0].alive = False
    scenario.tick()
    assert scenario.replicas() == {(EPOCH, 0): DesiredState.HOLD} and len(scenario.hands) == 2


def test_a_plan_for_others_gives_a_node_nothing_to_do(scenario):
    (beat,) = beats(scenario.tick())
    scenario.hear(deployment(generation("nobody", "knows", "these")))
    (beat,) = beats(scenario.tick(HEARTBEAT_S))
    assert (
        scenario.hands == [] and beat.revision == 7 and not scenario.node.placed and scenario.node.state is State.READY
    )


PLAN = encode_deployment(deployment(generation("pi-1", "pi-2", "pi-1"), revision=9))


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"no plan", "what came is no plan"),
        (PLAN[:-20], "what came is no plan"),
        (PLAN.replace(b'"version":1', b'"version":9', 1), "the version is 9; expected 1"),
        (PLAN.replace(b'"stage":2', b'"stage":1'), "a stage is placed twice"),
        (PLAN.replace(b'"config":{', b'"config":{"name":"other",', 1), "a plan of pipeline har/other came"),
    ],
)
def test_a_plan_that_cannot_be_read_is_dropped_and_counted_and_the_old_one_stays(scenario, caplog, payload, text):
    scenario.hear(deployment(generation("pi-1", "pi-2", "pi-2"), revision=3))
    if "other" in text:
        payload = encode_deployment(
            msgspec.structs.replace(
                deployment(generation("pi-1", "pi-2", "pi-1"), revision=9),
                config=msgspec.structs.replace(deployment(generation("a", "b", "c")).config, name="other"),
            )
        )
    assert payload != PLAN
    scenario.node.handle(Delivery(TOPICS.plan(), payload, (1, 1)))
    said = scenario.tick()
    assert scenario.replicas() == {(EPOCH, 0): DesiredState.HOLD} and scenario.node.deployment.revision == 3
    assert [one.counters["plans_rejected"] for one in said if isinstance(one, NodeStatus)] == [1]
    assert re.search("dropped a plan: .*" + re.escape(text), caplog.text)


def test_an_older_plan_is_left(scenario, caplog):
    three = deployment(generation("pi-1", "pi-2", "pi-2"), revision=3)
    scenario.hear(three, deployment(generation("pi-2", "pi-1", "pi-2"), revision=2), three)
    assert scenario.node.deployment == three and scenario.node.rejected == 1
    assert "dropped revision 2 of the plan by author-1: revision 3 by author-1 is newer" in caplog.text


@pytest.mark.parametrize(
    ("started", "revision", "newer"),
    [
        (2.0, 1, True),  # a younger coordinator that found no plan to go on with
        (2.0, 4, True),
        (0.5, 4, True),  # one that went on with this plan, on a clock that is behind
        (0.5, 3, False),
        (0.5, 2, False),  # one that was stopped for a while, and does not know of this plan
    ],
)
def test_of_two_authors_the_younger_counts_or_the_one_that_went_on(scenario, started, revision, newer):
    scenario.hear(deployment(generation("pi-1", "pi-2", "pi-2"), revision=3))
    other = msgspec.structs.replace(deployment(revision=revision, epoch=0), author="author-2", started=started)
    scenario.hear(other)
    assert (scenario.node.deployment == other) is newer and scenario.node.rejected == (not newer)


def test_without_a_plan_every_stage_ends(scenario, caplog):
    scenario.hear(deployment(generation("pi-1", "pi-2", "pi-2"), revision=3))
    hand = scenario.hands[0]
    scenario.node.handle(Delivery(TOPICS.plan(), b"", (1, 1)))
    scenario.tick()
    assert hand.told == [DesiredState.HOLD, DesiredState.END] and "the plan was taken away" in caplog.text
    scenario.hear(deployment(generation("pi-1", "pi-2", "pi-2"), revision=1))  # whatever comes then is new
    assert scenario.replicas() == {(EPOCH, 0): DesiredState.HOLD}


def test_other_topics_are_not_taken_for_plans(scenario):
    scenario.node.handle(Delivery(TOPICS.status("pi-2"), b"x", (1, 1)))
    assert scenario.node.rejected == 0


def test_a_node_cannot_go_from_any_state_to_any_other():
    scenario = NodeScenario()
    scenario.node.retire()  # nothing to hand over yet
    assert scenario.node.state is State.INIT
    scenario.node.farewell()
    with pytest.raises(AssertionError, match="a node cannot go from stopped to ready"):
        scenario.node.begin()


# --- the loop over a bus --------------------------------------------------------------------------------------------


class Watched:
    """What a node says on a broker in memory; a script of steps runs between two polls of the node."""

    def __init__(self, scenario, *steps):
        self.scenario, self.broker, self.steps = scenario, MemoryBroker(), list(steps)
        self.session = scenario.identity.session(expiry_s=0)
        self.eye = self.broker.connect(Session("eye"))
        self.eye.subscribe([TOPICS.status(ME), TOPICS.heartbeat(ME)])
        self.said, self.waits = [], []
        self.bus = self.broker.connect(self.session)
        poll = self.bus.poll

        def stepped(timeout_s):
            self.waits.append(timeout_s)
            self.look()
            if self.steps:
                self.steps.pop(0)(self)
            return poll(timeout_s)

        self.bus.poll = stepped

    def look(self):
        self.said += [one for one in self.eye.poll(0) if not (one.retained or one.duplicate)]

    def states(self):
        self.look()
        return [read_status(one).state for one in self.said if one.topic == TOPICS.status(ME)]

    def plan(self, *nodes, revision):
        self.eye.publish(
            TOPICS.plan(), encode_deployment(deployment(generation(*nodes), revision=revision)), retain=True
        )
        self.eye.poll(0)


def phase(scenario, phase):
    for hand in scenario.hands:
        hand.phase = phase


def test_a_node_hands_its_stages_over_before_it_stops():
    scenario, stop = NodeScenario(), Stop()
    moved = []

    def ask(watched):
        phase(scenario, StagePhase.RUNNING)
        stop.asked = True

    def move(watched):
        moved.append((scenario.node.state, [hand.desired for hand in scenario.hands]))
        watched.plan("pi-2", "pi-2", "pi-2", revision=2)

    watched = Watched(
        scenario,
        lambda one: one.plan("pi-1", "pi-2", "pi-1", revision=1),
        lambda one: phase(scenario, StagePhase.RUNNING),
        ask,
        lambda one: None,
        move,
    )
    run_node(watched.bus, scenario.node, stop, drain_timeout_s=60.0)
    assert moved == [(State.DRAINING, [DesiredState.HOLD, DesiredState.HOLD])]
    assert watched.states() == [State.READY, State.BUSY, State.DRAINING, State.STOPPED]
    assert [hand.told for hand in scenario.hands] == [[DesiredState.HOLD, DesiredState.LEAVE, ("join", True)]] * 2
    assert LOOK_S in watched.waits and not watched.bus.connected
    assert TOPICS.status(ME) in watched.broker._retained  # without its will: it has said goodbye


def test_a_node_with_a_stage_that_does_not_end_hands_the_others_over_and_starts_anew():
    scenario = NodeScenario()

    def hang(watched):
        phase(scenario, StagePhase.RUNNING)
        scenario.hands[0].unending, scenario.hands[0].phase = True, StagePhase.FAILED

    watched = Watched(
        scenario,
        lambda one: one.plan("pi-1", "pi-2", "pi-1", revision=1),
        lambda one: phase(scenario, StagePhase.RUNNING),
        hang,
        lambda one: None,
        lambda one: one.plan("pi-2", "pi-2", "pi-2", revision=2),
    )
    why = run_node(watched.bus, scenario.node, Stop(), drain_timeout_s=60.0)
    assert why == f"stage 0 of epoch {EPOCH} neither goes on nor ends"
    assert watched.states() == [State.READY, State.BUSY, State.DRAINING, State.STOPPED]
    assert [hand.told[-1] for hand in scenario.hands] == [("join", False), ("join", True)]


def test_a_node_with_nothing_but_a_stage_that_does_not_end_waits_for_nobody():
    scenario = NodeScenario()

    def hang(watched):
        scenario.hands[0].unending, scenario.hands[0].phase = True, StagePhase.FAILED

    watched = Watched(scenario, lambda one: one.plan("pi-1", "pi-2", "pi-2", revision=1), lambda one: None, hang)
    assert run_node(watched.bus, scenario.node, Stop(), drain_timeout_s=3600.0)
    assert watched.states()[-1] is State.STOPPED


def test_a_node_does_not_wait_for_ever_for_somebody_to_take_over():
    scenario, stop = NodeScenario(), Stop()

    def ask(watched):
        phase(scenario, StagePhase.RUNNING)
        stop.asked = True

    watched = Watched(scenario, lambda one: one.plan("pi-1", "pi-2", "pi-1", revision=1), lambda one: None, ask)
    run_node(watched.bus, scenario.node, stop, drain_timeout_s=0.05)
    assert watched.states()[-2:] == [State.DRAINING, State.STOPPED]
    assert [hand.told for hand in scenario.hands] == [[DesiredState.HOLD, DesiredState.LEAVE, ("join", True)]] * 2


@pytest.mark.slow
def test_a_node_whose_broker_has_gone_waits_for_nobody_when_it_is_asked_to_stop(monkeypatch, caplog):
    monkeypatch.setattr(node_module, "NO_BROKER_S", 0.2)
    scenario, stop = NodeScenario(), Stop()

    def ask(watched):
        phase(scenario, StagePhase.RUNNING)
        watched.broker.stop()
        stop.asked = True

    watched = Watched(scenario, lambda one: one.plan("pi-1", "pi-2", "pi-1", revision=1), lambda one: None, ask)
    run_node(watched.bus, scenario.node, stop, drain_timeout_s=3600.0)
    assert [hand.told for hand in scenario.hands] == [[DesiredState.HOLD, DesiredState.LEAVE, ("join", True)]] * 2
    assert "stopping without the broker: nobody can take over what runs here" in caplog.text


def test_a_node_without_stages_stops_at_once():
    scenario, stop = NodeScenario(), Stop()
    watched = Watched(scenario, lambda one: None, lambda one: setattr(stop, "asked", True))
    run_node(watched.bus, scenario.node, stop, drain_timeout_s=60.0)
    assert watched.states() == [State.READY, State.STOPPED]


@pytest.mark.parametrize("error", [TakenOver(ME), BrokerError("not permitted")])
def test_a_node_that_lost_its_name_lets_its_stages_go_without_a_word(error):
    scenario = NodeScenario()

    def fail(watched):
        raise error

    plan = [lambda one: one.plan("pi-1", "pi-2", "pi-1", revision=1), lambda one: None]
    watched = Watched(scenario, *plan, lambda one: None, fail)
    with pytest.raises(type(error)):
        run_node(watched.bus, scenario.node, Stop(), drain_timeout_s=60.0)
    assert [hand.told for hand in scenario.hands] == [[DesiredState.HOLD, DesiredState.LEAVE, ("join", True)]] * 2
    assert State.STOPPED not in watched.states()


def test_after_a_broker_restart_a_node_says_all_again():
    scenario, stop = NodeScenario(), Stop()

    def restart(watched):
        watched.broker.stop()
        watched.broker.start()

    nothing = [lambda one: None] * 3
    watched = Watched(scenario, *nothing, restart, *nothing, lambda one: setattr(stop, "asked", True))
    run_node(watched.bus, scenario.node, stop, drain_timeout_s=60.0)
    states = watched.states()
    assert states == [State.READY, State.READY, State.STOPPED]


# --- arriving -------------------------------------------------------------------------------------------------------


def somebody(broker, state, *, machine="m2", beats=True, device=True):
    """Let another node of this name be there."""
    card = msgspec.structs.replace(CARD, machine=machine) if device else None
    status = NodeStatus(ME, "node", state, "other", 1.0, device=card)
    bus = broker.connect(Session("other"))
    bus.publish(TOPICS.status(ME), encode_status(status), retain=True)
    bus.poll(0)
    number = iter(range(10**9))

    def connect(session):
        eye = broker.connect(session)
        poll = eye.poll

        def beaten(timeout_s):
            if beats:
                bus.publish(TOPICS.heartbeat(ME), encode_heartbeat(Heartbeat(ME, "other", next(number), 0.0)))
                for nonsense in (b"no beat", b'{"node":"\xff"}', b'{"a":' * 20_000):
                    bus.publish(TOPICS.heartbeat(ME), nonsense)
                bus.poll(0)
            return poll(timeout_s)

        eye.poll = beaten
        return eye

    return connect


def test_a_name_that_is_alive_on_another_machine_is_refused():
    with pytest.raises(NodeError) as error:
        check_name(somebody(MemoryBroker(), State.BUSY), TOPICS, ME, "m1")
    assert str(error.value) == (
        "a node 'pi-1' is alive on another machine, on Linux aarch64; expected a name of its own for each: choose "
        "another one with --name, or stop that node"
    )


def test_the_name_of_a_sensor_is_refused_while_it_lives(monkeypatch):
    monkeypatch.setattr(registration, "_QUIET_S", 0.02)
    broker = MemoryBroker()
    bus = broker.connect(Session("other"))
    for state in (State.LOST, State.READY):
        bus.publish(TOPICS.status(ME), encode_status(NodeStatus(ME, "sensor", state, "other", 1.0)), retain=True)
        bus.poll(0)
        if state is State.LOST:
            check_name(broker.connect, TOPICS, ME, "m1")
    with pytest.raises(NodeError, match="'pi-1' is the name of a sensor that is alive; expected a name of its own"):
        check_name(broker.connect, TOPICS, ME, "m1")


@pytest.mark.parametrize("role", ["node", "coordinator", "stage"])
def test_no_sensor_takes_the_name_of_something_else_that_lives(role, caplog):
    broker, topic = MemoryBroker(), TOPICS.status(ME)
    bus = broker.connect(Session("other"))
    for payload in (b"", b"no status", encode_status(NodeStatus(ME, role, State.LOST, "other", 1.0))):
        bus.publish(topic, payload, retain=True)
        bus.poll(0)
        check_role(broker.connect, TOPICS, ME, "sensor")
    bus.publish(topic, encode_status(NodeStatus(ME, "sensor", State.READY, "other", 1.0)), retain=True)
    bus.poll(0)
    check_role(broker.connect, TOPICS, ME, "sensor")  # the younger sensor takes over
    bus.publish(topic, encode_status(NodeStatus(ME, role, State.READY, "other", 1.0)), retain=True)
    bus.poll(0)
    with pytest.raises(NodeError, match=f"'pi-1' is the name of a {role} that is alive; expected a name of its own"):
        check_role(broker.connect, TOPICS, ME, "sensor")
    assert "dropped har/" in caplog.text and not [name for name in broker._accounts if name.startswith("look-")]


@pytest.mark.parametrize(
    ("state", "others"),
    [
        (State.BUSY, {"machine": "m1"}),  # the same machine: the younger one takes over
        (State.STOPPED, {}),
        (State.LOST, {}),
        (State.READY, {"beats": False}),  # gone without a word, and the broker too
        (State.INIT, {"device": False}),
    ],
)
def test_a_name_is_free_when_nobody_else_lives_by_it(monkeypatch, state, others):
    monkeypatch.setattr(registration, "NAME_LISTEN_S", 0.1)
    check_name(somebody(MemoryBroker(), state, **others), TOPICS, ME, "m1")


def test_a_name_that_nobody_has_is_free_soon(monkeypatch):
    monkeypatch.setattr(registration, "_QUIET_S", 0.02)
    check_name(MemoryBroker().connect, TOPICS, ME, "m1")


def test_a_node_waits_for_the_broker_says_hello_and_then_measures(monkeypatch, caplog):
    broker, identity, said = MemoryBroker(), Identity(TOPICS, ME, "node", "memory"), []
    eye = broker.connect(Session("eye"))
    eye.subscribe([TOPICS.status(ME)])
    problems = [BrokerError("no broker at mqtt://x")]
    monkeypatch.setattr(registration, "RETRY_S", 0.0)
    monkeypatch.setattr(registration, "_QUIET_S", 0.02)

    def measure(delegate=None):
        said.extend(read_status(one) for one in eye.poll(0))
        return 123.0

    def connect(session):
        if problems:
            raise problems.pop()
        return broker.connect(session)

    monkeypatch.setattr(registration, "measure_speed", measure)
    bus = arrive(connect, identity.session(expiry_s=0), identity, Stop())
    assert bus.connected and "no broker at mqtt://x; trying again" in caplog.text
    assert [(one.state, one.device) for one in said] == [(State.INIT, None)]
    assert identity.device.speed == 123.0 and identity.device.link_bytes_per_s > 0 and identity.device.round_trip_s >= 0


def test_a_node_that_is_stopped_before_the_broker_comes_ends(monkeypatch):
    monkeypatch.setattr(registration, "RETRY_S", 0.0)
    stop = Stop()

    def connect(session):
        stop.asked = True
        raise BrokerError("no broker")

    assert arrive(connect, Session("x"), Identity(TOPICS, ME, "node", "memory"), stop) is None


def test_a_link_that_cannot_be_measured_is_unknown(monkeypatch, caplog):
    def refused(bus, topic):
        raise BrokerError("0 of 1 messages came back")

    monkeypatch.setattr(registration, "estimate_link", refused)
    broker, identity = MemoryBroker(), Identity(TOPICS, ME, "node", "memory")
    with caplog.at_level(logging.WARNING):
        assert registration.look_at_link(broker.connect, identity) is None
    assert "the link was not measured: 0 of 1 messages came back" in caplog.text
