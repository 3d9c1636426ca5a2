"""The loops: when they poll, what they keep, and when they go on, over a bus that does as it is told."""

import dataclasses
import itertools
import logging
from collections import deque

import pytest

from har_edge import timing
from har_edge.codecs.catalog import make_reducer
from har_edge.errors import BrokerError, ConfigError
from har_edge.monitor.window_account import WindowAccount
from har_edge.mqtt.bus import BusTraffic, Delivery, Outgoing, PublishOutcome, Session, TakenOver
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol import wire
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import State, StreamCount
from har_edge.protocol.topics import Kind
from har_edge.runtime import sender as sender_module
from har_edge.runtime.counters import Counters
from har_edge.runtime.sender import Sender
from har_edge.runtime.sensor import send_policy as pace_module
from har_edge.runtime.sensor.flow_control import Untracked
from har_edge.runtime.sensor.retransmission import Retransmitter
from har_edge.runtime.sensor.retransmit_buffer import RetransmitBuffer
from har_edge.runtime.sensor.send_policy import SendPolicy, SensorLoop
from har_edge.runtime.sensor.sensor import FIRST_ROOM, Sensor, SensorSetup
from har_edge.runtime.stage import loop as loop_module
from har_edge.runtime.stage.loop import StageLoop, run_stage
from har_edge.runtime.status_publisher import Identity, StatusPublisher
from har_edge.runtime.stop import POLL_S, Stop
from har_edge.timing import LAST_ANSWERS_S
from tests.protocol.reading import read_status
from tests.runtime.rig import CHANNELS, LENGTH, TOPICS, Clock, part, small_stage
from tests.runtime.sensor.test_sensor import window


class ScriptedBus:
    """A bus whose polls return what a script says; an exception in the script is raised, a callable is called."""

    def __init__(self, *script, clock=None):
        self.script, self.clock = deque(script), clock
        self.traffic, self.connected = BusTraffic(), True
        self.published, self.acknowledged, self.filters, self.waits = [], [], [], []
        self.outcome, self.closed, self.quiet = PublishOutcome.ACKED, None, lambda: None
        self._outcomes, self.hold = [], False

    @property
    def unsent(self):
        return len(self._outcomes)

    def subscribe(self, filters):
        self.filters += filters

    def publish(self, topic, payload, *, retain=False, on_outcome=None):
        self.published.append((topic, payload))
        self._outcomes.append((topic, on_outcome))

    def acknowledge(self, delivery):
        self.acknowledged.append(delivery)

    def poll(self, timeout_s, most_bytes=None):
        self.waits.append(timeout_s)
        if self.clock is not None:
            self.clock.now += max(timeout_s, 0.001)
        outcomes, self._outcomes = ([], self._outcomes) if self.hold else (self._outcomes, [])
        for topic, on_outcome in outcomes:
            if on_outcome is not None:
                on_outcome(self.outcome(topic) if callable(self.outcome) else self.outcome)
        if not self.script:
            return self.quiet() or ()
        step = self.script.popleft()
        if isinstance(step, Exception):
            raise step
        return (step() if callable(step) else step) or ()

    def close(self, *, forget=False):
        self.closed = forget

    def statuses(self):
        return [read_status(Outgoing(topic, payload)) for topic, payload in self.published if topic.endswith("/status")]

    def sent(self, kind):
        return [topic for topic, _ in self.published if f"/{kind}/" in topic]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(100.0)
    monkeypatch.setattr(pace_module.time, "monotonic", clock)
    return clock


def identity(node="stage-0", role="stage"):
    return Identity(TOPICS, node, role, "memory")


def stop_of(bus):
    """Return a Stop that is asked when the script of a bus has ended."""
    stop = Stop()
    bus.quiet = lambda: setattr(stop, "asked", True)
    return stop


def windows(*seqs):
    return [part(source, seq) for seq in seqs for source in ("chest", "arm")]


def test_a_stage_says_hello_answers_acknowledges_and_says_goodbye(clock):
    came = windows(0, 1)
    bus = ScriptedBus(came, (), clock=clock)
    stage = small_stage()
    run_stage(bus, stage, identity(), stop_of(bus), forget=True)
    assert bus.filters == stage.filters and bus.closed is True
    assert bus.acknowledged == came
    assert [status.state for status in bus.statuses()] == [State.READY, State.STOPPED]
    assert bus.statuses()[-1].counters["windows"] == 2 and len(bus.sent("result")) == 2


def test_a_status_says_when_it_was_said_and_when_windows_were_last_lost():
    bus, counters, wall, streams = ScriptedBus(), {"windows": 1, "given_up": 0}, Clock(5_000.0), {}
    status = StatusPublisher(bus, identity(), lambda: counters, lambda: streams, wall)
    status.announce(0.0)
    steps = [
        (10.0, {"given_up": 2}, {}),
        (20.0, {"windows": 9}, {}),
        (30.0, {}, {"anna": StreamCount(1, 1.0, 9, 5, 3)}),
        (40.0, {}, {"anna": StreamCount(1, 1.0, 9, 6, 2)}),  # one was answered after all
    ]
    for now, counted, sent in steps:
        wall.now = 5_000.0 + now
        counters.update(counted)
        streams.update(sent)
        status.announce(now)
    said = [(status.said, status.lost_at) for status in bus.statuses()]
    assert said == [(5000.0, 0.0), (5010.0, 5010.0), (5020.0, 5010.0), (5030.0, 5030.0), (5040.0, 5030.0)]


def test_nothing_is_acknowledged_before_its_output_is_safe(clock):
    came, bus = windows(0), ScriptedBus(clock=clock)
    seen = []

    def look(hold):
        seen.append((len(bus.sent("result")), list(bus.acknowledged)))
        bus.hold = hold

    bus.hold = True
    bus.script.extend([came, lambda: look(True), lambda: look(False), (), lambda: look(False)])
    run_stage(bus, small_stage(), identity(), stop_of(bus))
    assert seen == [(1, []), (1, []), (1, came)]


def test_a_slow_model_does_not_keep_the_stage_from_the_connection(clock):
    """Else the broker drops a stage with a backlog, sends all of it again, and so on for ever."""

    def slow(values):
        clock.now += 1.0
        return {"scores": values["c"].sum(axis=2)[:, :2]}

    bus = ScriptedBus(windows(*range(100)), clock=clock)
    stop = Stop()
    stage = small_stage(run=slow)
    seen = []

    def count():
        seen.append(stage.counters.windows)
        stop.asked = stage.counters.windows == 100

    bus.quiet = count
    run_stage(bus, stage, identity(), stop)
    assert max(after - before for before, after in itertools.pairwise(seen)) == 1
    assert len(bus.acknowledged) == 200


def test_after_a_reconnection_a_stage_takes_what_comes_again_and_forgets_what_it_held(clock):
    def slow(values):
        clock.now += 1.0
        return {"scores": values["c"].sum(axis=2)[:, :2]}

    bus = ScriptedBus(clock=clock)
    again = [Delivery(one.topic, one.payload, (2, number), duplicate=True) for number, one in enumerate(windows(2, 3))]

    def reconnect():
        bus.traffic.reconnects += 1
        return again

    bus.script.extend([windows(*range(6)), (), reconnect, (), (), (), ()])
    stage = small_stage(run=slow)
    run_stage(bus, stage, identity(), stop_of(bus))
    assert stage.counters.windows == 2 + 2 and bus.acknowledged[-4:] == again
    assert [status.state for status in bus.statuses()].count(State.READY) == 2


def test_a_loop_says_what_its_stage_has_done_and_how_long_messages_waited(clock):
    def slow(values):
        clock.now += 1.0
        return {"scores": values["c"].sum(axis=2)[:, :2]}

    bus = ScriptedBus([*windows(0, 1), part("chest", 2)], (), (), (), clock=clock)
    began = clock.now
    loop = StageLoop(bus, small_stage(run=slow), Stop())
    assert loop.metrics.at_rest and loop.metrics.heard_at == began and not loop.working
    loop.turn()
    first = loop.metrics
    assert (first.windows, first.handled, first.queued, first.waiting, first.at_rest) == (1, 2, 3, 0, False)
    assert first.busy_s == pytest.approx(1.0, abs=0.1) and first.queued_s == 0.0 and first.pending == 1
    loop.turn()
    second = loop.metrics
    assert (second.windows, second.handled, second.queued) == (2, 4, 1)
    assert second.busy_s == pytest.approx(2.0, abs=0.1) and second.queued_s == pytest.approx(2.0, abs=0.1)
    clock.now += 1.0
    loop.turn()
    third = loop.metrics
    assert (third.handled, third.queued, third.waiting, third.at_rest) == (5, 0, 1, False)
    assert third.heard_at > second.heard_at
    clock.now += 1.0
    loop.turn()
    assert loop.metrics.heard_at == third.heard_at and loop.metrics.busy_s < 2.5  # waiting is no work
    assert not loop.working


def test_a_window_whose_answer_the_broker_does_not_take_is_lost_and_said_to_be(clock):
    bus = ScriptedBus(windows(0), (), (), clock=clock)
    bus.outcome = PublishOutcome.TOO_LARGE
    loop = StageLoop(bus, small_stage(), Stop())
    for _ in range(3):
        loop.turn()
        clock.now += 1.0
    assert (loop.metrics.windows, loop.metrics.lost, loop.metrics.pending) == (1, 1, 0)


def test_what_is_not_in_the_totals_yet_is_being_worked_on(clock):
    """So that a stage is not taken for idle in the middle of a long run, nor between two counts."""
    seen = []

    def look(values):
        seen.append((loop.working, loop.metrics.at_rest))
        return {"scores": values["c"].sum(axis=2)[:, :2]}

    bus = ScriptedBus((), windows(0), (), clock=clock)
    loop = StageLoop(bus, small_stage(run=look), Stop())
    loop.turn()
    clock.now -= POLL_S  # the message comes right after the last count
    loop._count_at = clock.now + 1.0
    loop.turn()
    assert seen == [(True, True)] and loop.working and loop.metrics.windows == 0
    clock.now += 1.0
    loop.turn()
    assert not loop.working and loop.metrics.windows == 1


def test_what_came_is_handled_even_when_the_next_poll_ends_the_stage(clock):
    bus = ScriptedBus(windows(0), TakenOver("stage-0"), clock=clock)
    stage = small_stage()
    with pytest.raises(TakenOver):
        run_stage(bus, stage, identity(), Stop())
    assert stage.counters.windows == 1 and len(bus.sent("result")) == 1
    assert bus.closed is None and State.STOPPED not in [status.state for status in bus.statuses()]


def test_an_error_that_no_retry_mends_ends_the_stage(clock):
    bus = ScriptedBus(BrokerError("the broker refused the subscription to x"), clock=clock)
    with pytest.raises(BrokerError, match="refused the subscription"):
        run_stage(bus, small_stage(), identity(), Stop())


def test_a_stage_gives_up_missing_parts_while_nothing_comes(clock, caplog):
    came = part("chest", 0)
    bus = ScriptedBus([came], *[()] * 700, clock=clock)
    stage = small_stage(timeout_s=5.0, clock=clock)
    run_stage(bus, stage, identity(), stop_of(bus))
    assert (
        (stage.counters.shelved, stage.counters.given_up) == (1, 1)
        and bus.acknowledged == [came]
        and "gave up window 0 of s" in caplog.text
    )


def test_stopping_without_a_broker_does_not_hang(clock, caplog):
    bus = ScriptedBus(windows(0), clock=clock)
    stop = stop_of(bus)
    bus.script.append(lambda: setattr(stop, "asked", True) or ())
    bus.script.append(BrokerError("no broker at mqtt://x:1"))
    stage = small_stage(sends=("both",))
    bus.outcome = PublishOutcome.NO_SUBSCRIBERS
    bus.publish("x", b"")
    run_stage(bus, stage, identity(), stop)
    assert bus.closed is False


@pytest.mark.parametrize(("connected", "most_s"), [(True, timing.LAST_ACKS_S), (False, timing.NO_BROKER_S)])
def test_what_is_not_safe_is_waited_for_less_where_the_broker_has_gone(clock, connected, most_s):
    bus = ScriptedBus(clock=clock)
    bus.hold, bus.connected = True, connected
    bus.publish("x", b"")
    sender_module.drain(bus)
    assert clock.now - 100.0 == pytest.approx(most_s, abs=0.11) and bus.unsent == 1


def test_what_nobody_hears_is_kept_logged_once_and_sent_again(clock, caplog):
    bus, counters = ScriptedBus(clock=clock), Counters()
    sender, came = Sender(bus, counters, "start the next stage"), part("chest")
    bus.outcome = PublishOutcome.NO_SUBSCRIBERS
    sender.send(Outgoing("har/v1/test/act/1/0/s", b"x", (came,), needs_subscriber=True))
    for _ in range(4):
        bus.poll(0.1)
        clock.now += 1.0
        assert sender.pending == 1 and bus.acknowledged == []
        sender.retry(clock.now)
    bus.outcome = PublishOutcome.ACKED
    bus.poll(0.1)
    assert bus.acknowledged == [came] and sender.pending == 0 and counters.unheard == 4
    text = "nobody listens to har/v1/test/act/1/0/s; keeping the message and trying again: start the next stage"
    assert caplog.text.count(text) == 1


def test_what_the_broker_refuses_is_kept_and_logged_once(clock, caplog):
    bus, counters = ScriptedBus(clock=clock), Counters()
    sender = Sender(bus, counters, "-")
    bus.outcome = PublishOutcome.REFUSED
    sender.send(Outgoing("t", b"x", (part("chest"),)))
    for _ in range(3):
        bus.poll(0.1)
        clock.now += 1.0
        sender.retry(clock.now)
    assert (counters.refused, counters.unheard, bus.acknowledged) == (3, 0, [])
    assert caplog.text.count("the broker refused a message on t; trying again: see its access list") == 1
    assert "nobody listens" not in caplog.text


def test_what_is_too_large_for_the_broker_is_given_up_and_counted(clock):
    bus, counters = ScriptedBus(clock=clock), Counters()
    sender, came = Sender(bus, counters, "-"), part("chest")
    bus.outcome = PublishOutcome.TOO_LARGE
    sender.send(Outgoing("t", b"x", (came,)))
    bus.poll(0.1)
    assert (counters.too_large, sender.pending, bus.acknowledged) == (1, 0, [came])


def test_an_input_is_released_when_all_its_outputs_are_safe_even_after_a_retry(clock):
    bus = ScriptedBus(clock=clock)
    sender, came = Sender(bus, Counters(), "-"), part("chest")
    bus.outcome = PublishOutcome.REFUSED
    sender.send(Outgoing("result", b"x", (came,)))
    bus.poll(0.1)
    bus.outcome = PublishOutcome.ACKED
    sender.send(Outgoing("act", b"x", (came,)))
    bus.poll(0.1)
    assert bus.acknowledged == []
    clock.now += 1.0
    sender.retry(clock.now)
    bus.poll(0.1)
    assert bus.acknowledged == [came]


def test_deliveries_of_a_partial_message_wait_for_the_last_one_and_for_both_to_be_safe(clock):
    broker = MemoryBroker()
    bus, sender = broker.connect(Session("stage")), broker.connect(Session("sender"))
    bus.subscribe(["in"])
    sender.publish("in", b"")
    sender.poll(0.0)
    (delivery,) = bus.poll(0.0)
    acks = Sender(bus, Counters(), "-")
    acks.send(Outgoing("early", b"", (delivery,), partial=True))
    bus.poll(0.0)
    assert bus.unsent == 0 and list(bus._account.unacknowledged), "it was acknowledged before the last message"
    acks.send(Outgoing("early", b"", (delivery,), needs_subscriber=True, partial=True))
    bus.poll(0.0)
    acks.send(Outgoing("last", b"", (delivery,)))
    bus.poll(0.0)
    assert list(bus._account.unacknowledged), "it was acknowledged though nobody has heard an early message"
    sender.subscribe(["early"])
    acks.retry(float("inf"))
    bus.poll(0.0)
    assert not bus._account.unacknowledged and not acks._unfinished and not acks._holders


def test_a_result_nobody_hears_is_settled(clock):
    bus = ScriptedBus(clock=clock)
    sender, came = Sender(bus, Counters(), "-"), part("chest")
    bus.outcome = PublishOutcome.NO_SUBSCRIBERS
    sender.send(Outgoing("har/v1/test/result/s", b"x", (came,)))
    bus.poll(0.1)
    assert bus.acknowledged == [came]


def test_what_waits_at_a_slow_stage_is_bounded_and_all_of_it_is_done(monkeypatch):
    """A broker that gives all at once, whatever Receive Maximum says."""
    monkeypatch.setattr(loop_module, "TURN_S", 1e-9)  # one message a turn
    monkeypatch.setattr(loop_module, "QUEUED_BYTES", 40_000)
    broker, stop = MemoryBroker(), Stop()
    bus = broker.connect(Session("stage-0", expiry_s=60, receive_max=10**6))
    stage = small_stage()
    loop = StageLoop(bus, stage, stop)
    sender = broker.connect(Session("sensor"))
    for seq in range(300):
        for source in CHANNELS:
            one = part(source, seq)
            sender.publish(one.topic, one.payload)
    sender.poll(0.0)
    most = 0
    while stage.counters.windows < 300:
        loop.turn()
        most = max(most, sum(len(one.payload) + loop_module.MESSAGE_BYTES for _, one in loop._arrived))
    assert 20_000 < most < 1.3 * 40_000 and stage.counters.rejected == 0


# --- sensors --------------------------------------------------------------------------------------------------------


def sensor_loop(bus, **policy):
    reducers = {"chest": make_reducer("none", LENGTH, CHANNELS["chest"])}
    sensor = Sensor(SensorSetup(TOPICS, 1, reducers, frozenset({1})))
    options = {"in_flight": 4, "real_time": False} | policy
    give_up_s = options.pop("give_up_s", 120.0)
    resend = Retransmitter(sensor, RetransmitBuffer(reducers, 0.0), TOPICS, give_up_s)
    flow = resend if options["in_flight"] else Untracked(sensor)
    return sensor, SensorLoop(bus, sensor, identity("sensor-chest", "sensor"), SendPolicy(**options), flow)


def batches(count, *streams):
    return iter([[(0.0, window(seq, stream=stream))] for seq in range(count) for stream in streams or ("s",)])


LATER = 1e12  # no window is captured after that


def answer(seq, stream="s", room=None):
    result = Result(stream, seq, "still", 1, 0.5, LATER, LATER, 1, room=room)
    return Delivery(TOPICS.result(stream), encode_results([result]), (1, seq + 1))


class EchoBus(ScriptedBus):
    """Answers every window at the next poll, except those of `mute` streams; there is `room` for so many."""

    def __init__(self, clock, mute=(), room=None):
        super().__init__(clock=clock)
        self.mute, self.room, self.answered, self.most = mute, room, 0, []
        self.quiet = self.echo

    def echo(self):
        windows = [wire.decode(payload) for topic, payload in self.published if TOPICS.read(topic).kind is Kind.WINDOW]
        new, self.answered = windows[self.answered :], len(windows)
        self.most.append(len(new))
        needs_subscriber = [one for one in new if one.stream not in self.mute]
        return [answer(one.seq + k, one.stream, self.room) for one in needs_subscriber for k in range(one.count)]


def test_a_sensor_waits_for_results_and_ends_when_all_is_safe(clock):
    bus = EchoBus(clock)
    _, loop = sensor_loop(bus)
    loop.run(batches(50), Stop())
    assert bus.filters == ["har/v1/test/result/+"] and len(bus.sent("window")) == 50 and max(bus.most) <= 4
    assert [status.state for status in bus.statuses()][-1] is State.STOPPED and bus.closed is True
    assert bus.statuses()[-1].counters["windows"] == 50
    assert bus.statuses()[-1].counters["raw_bytes"] == (49 * 2 + LENGTH) * 2 * 4


@pytest.mark.parametrize(("in_flight", "lost"), [(4, 1), (0, 0)])
def test_a_sensor_whose_messages_are_too_large_says_what_it_sent_before_it_ends(clock, in_flight, lost):
    """Its will has no figures, so that a watcher would not know of these windows."""
    bus = ScriptedBus(clock=clock)
    bus.outcome = lambda topic: PublishOutcome.TOO_LARGE if "/window/" in topic else PublishOutcome.ACKED
    sensor, loop = sensor_loop(bus, in_flight=in_flight)
    with pytest.raises(ConfigError, match="larger than the broker takes; lower --batch, or raise max_packet_size"):
        loop.run(batches(50), Stop())
    status = bus.statuses()[-1]
    assert status.state is State.STOPPED and status.streams["s"].sent == 1 and bus.closed is True
    assert status.streams["s"].lost == sensor.counters.unanswered == lost
    account = WindowAccount(0.0)
    account.take_status(status, 1000.0)
    assert [one.sent - one.came for one in account.figures(1000.0)] == [1]
    assert bool(account.sentence(1000.0) or account.left_sentence(1000.0))


def test_windows_above_the_limit_of_the_pipeline_end_the_sensor_with_what_it_sent(clock):
    bus = ScriptedBus(clock=clock)
    sensor, loop = sensor_loop(bus)
    sensor.setup = dataclasses.replace(sensor.setup, max_payload_bytes=16)
    with pytest.raises(ConfigError, match="expected at most 16; lower --batch, or raise max_payload_bytes"):
        loop.run(batches(50), Stop())
    status = bus.statuses()[-1]
    assert status.state is State.STOPPED and status.streams["s"].open == 1 and bus.closed is True


@pytest.mark.parametrize(("late", "lost"), [(0.0, 0), (0.5, 0), (2 * LAST_ANSWERS_S, 4)])
def test_a_sensor_that_is_stopped_takes_the_answers_that_are_on_their_way(clock, late, lost):
    stop, bus = Stop(), ScriptedBus(clock=clock)
    sensor, loop = sensor_loop(bus)
    stopped_at = []

    def come():
        if len(bus.sent("window")) < 4 or bus.acknowledged:
            return ()
        if not stop.asked:
            stop.asked = True
            stopped_at.append(clock.now)
        return [answer(seq) for seq in range(4)] if clock.now >= stopped_at[0] + late else ()

    bus.quiet = come
    loop.run(batches(50), stop)
    status = bus.statuses()[-1]
    assert sensor.counters.unanswered == status.streams["s"].lost == lost and status.streams["s"].sent == 4
    assert clock.now - stopped_at[0] < min(late, LAST_ANSWERS_S) + 0.2


def test_a_sensor_that_is_stopped_waits_for_no_answers_without_a_broker(clock):
    bus = ScriptedBus(*[()] * 3, lambda: setattr(bus, "connected", False), clock=clock)
    sensor, loop = sensor_loop(bus)
    stop, polls = Stop(), []

    def ask():
        stop.asked = True
        polls.append(len(bus.waits))

    bus.quiet = ask
    loop.run(batches(50), stop)
    assert sensor.counters.unanswered == 4 and len(bus.waits) == polls[0]


def test_all_streams_together_are_bounded_so_that_no_join_overflows(clock):
    bus = EchoBus(clock)
    _, loop = sensor_loop(bus, total=6)
    loop.run(batches(20, *"abcdefgh"), Stop())
    assert len(bus.sent("window")) == 160 and max(bus.most) <= 6


@pytest.mark.parametrize(("room", "most"), [(3, 3), (30, 30), (500, 64), (None, 64)])
def test_a_sensor_begins_with_few_windows_and_then_sends_as_many_as_the_stages_have_room_for(clock, room, most):
    bus = EchoBus(clock, room=room)
    sensor, loop = sensor_loop(bus, in_flight=64)
    loop.run(batches(400), Stop())
    few = [count for count in bus.most if count]
    assert len(bus.sent("window")) == 400 and sensor.counters.resent == 0
    assert few[0] <= FIRST_ROOM and max(few[1:]) <= most and max(few[1:]) > min(most, 16) // 2


def test_every_stream_has_its_own_room_and_a_batch_counts_as_one_message(clock):
    bus = EchoBus(clock, room=2)
    _, loop = sensor_loop(bus, in_flight=300, batch=5)
    singles = batches(50)
    loop.run(iter([[next(singles)[0] for _ in range(5)] for _ in range(10)]), Stop())
    assert len(bus.sent("window")) == 10 and max(bus.most[1:]) <= 2


def test_a_stream_whose_results_never_come_does_not_stop_the_sensor_for_ever(clock, caplog):
    """A part of its windows went missing, or another sensor of the stream is away: those of other streams go on."""
    bus = EchoBus(clock, mute=("a",))
    sensor, loop = sensor_loop(bus, give_up_s=40.0)
    loop.run(batches(10, "a", "b"), Stop())
    streams = bus.statuses()[-1].streams
    assert (streams["a"].sent, streams["a"].answered, streams["a"].lost, streams["a"].open) == (10, 0, 10, 0)
    assert (streams["b"].sent, streams["b"].answered, streams["b"].lost) == (10, 10, 0)
    assert sensor.counters.unanswered == 10 and sensor.counters.windows == 20 and sensor.counters.resent > 8
    assert "no result of 4 windows of a for 30 s: going on without them" in caplog.text and "of b" not in caplog.text


def test_an_answer_to_a_window_that_was_given_up_counts_after_all(clock):
    bus = EchoBus(clock, mute=("a",))
    sensor, loop = sensor_loop(bus, give_up_s=40.0)
    plain = bus.echo
    bus.quiet = lambda: plain() + ([answer(seq, "a") for seq in range(4)] if 135 < clock.now < 136 else [])
    loop.run(batches(10, "a", "b"), Stop())
    streams = bus.statuses()[-1].streams
    assert (streams["a"].answered, streams["a"].lost, sensor.counters.unanswered) == (4, 6, 6)


def test_while_nobody_listens_nothing_counts_as_lost(clock, caplog):
    bus = EchoBus(clock)
    sensor, loop = sensor_loop(bus, give_up_s=35.0)
    bus.outcome = lambda topic: (
        PublishOutcome.NO_SUBSCRIBERS if "/window/" in topic and clock.now < 400 else PublishOutcome.ACKED
    )
    bus.quiet = lambda: bus.echo() if clock.now > 400 else None
    loop.run(batches(10), Stop())
    assert sensor.counters.unanswered == 0 and sensor.counters.unheard > 4
    assert caplog.text.count("nobody listens to har/v1/test/window/s/chest; keeping the message") == 1
    assert "start the stages: `har-edge stage`" in caplog.text and "going on without" not in caplog.text
    assert set(bus.sent("window")) == {"har/v1/test/window/s/chest"} and sensor.counters.windows == 10


def test_time_without_a_connection_is_not_the_stages_fault(clock, caplog):
    bus = EchoBus(clock)
    sensor, loop = sensor_loop(bus, give_up_s=35.0)

    def quiet():
        bus.connected = clock.now > 300
        return bus.echo() if bus.connected else None

    bus.quiet = quiet
    loop.run(batches(10), Stop())
    assert "no result" not in caplog.text and sensor.counters.unanswered == 0 and len(bus.sent("window")) >= 10


def test_without_a_bound_on_results_a_sensor_still_waits_for_the_broker(clock, monkeypatch):
    monkeypatch.setattr(pace_module, "MAX_PENDING", 8)
    monkeypatch.setattr(pace_module, "SENDS_A_STEP", 1000)
    bus = ScriptedBus(clock=clock)
    _, loop = sensor_loop(bus, in_flight=0)
    most = []
    plain = bus.publish
    bus.publish = lambda *values, **options: (most.append(bus.unsent), plain(*values, **options))[1]
    loop.run(batches(100), Stop())
    assert len(bus.sent("window")) == 100 and max(most) <= 8 and bus.filters == []


def test_results_of_strangers_and_of_earlier_runs_do_no_harm(clock, caplog):
    bus = EchoBus(clock)
    earlier = Result("s", 0, "still", 1, 0.5, 1.0, 2.0, 1)
    earlier = Delivery(TOPICS.result("s"), encode_results([earlier]), (1, 1))
    garbage = Delivery(TOPICS.result("s"), b"{", (1, 1))
    bus.script.extend([[answer(9999), answer(5, "stranger"), garbage], [earlier]])
    sensor, loop = sensor_loop(bus)
    with caplog.at_level(logging.WARNING):
        loop.run(batches(20), Stop())
    assert len(bus.sent("window")) == 20 and max(bus.most) <= 4 and sensor.counters.rejected == 1
    assert "dropped har/v1/test/result/s: a result came that is no result" in caplog.text
    assert len(bus.acknowledged) >= 3


def test_in_real_time_a_window_leaves_when_its_last_sample_exists(clock):
    bus = EchoBus(clock)
    _, loop = sensor_loop(bus, real_time=True)
    due = [3.0, 4.0, 8.0]
    leaves = []
    plain = bus.publish
    bus.publish = lambda topic, *rest, **options: (
        leaves.append(clock.now - 100.0) if "/window/" in topic else None,
        plain(topic, *rest, **options),
    )[1]
    loop.run(iter([[(due_s, window(seq))] for seq, due_s in enumerate(due)]), Stop())
    assert all(0 <= left - due_s < 0.25 for left, due_s in zip(leaves, due, strict=True)), leaves


def test_a_sensor_stops_when_asked_although_it_waits(clock):
    bus = ScriptedBus(clock=clock)
    stop = Stop()
    bus.quiet = lambda: setattr(stop, "asked", clock.now > 105)
    _, loop = sensor_loop(bus)
    loop.run(batches(50), stop)
    assert len(bus.sent("window")) == 4 and bus.statuses()[-1].state is State.STOPPED


def test_an_older_sensor_of_the_same_name_ends(clock):
    bus = ScriptedBus((), TakenOver("sensor-chest"), clock=clock)
    _, loop = sensor_loop(bus)
    with pytest.raises(TakenOver):
        loop.run(batches(50), Stop())


def test_a_second_signal_ends_at_once():
    stop = Stop()
    stop._on_signal(15, None)
    assert stop.asked
    with pytest.raises(KeyboardInterrupt):
        stop._on_signal(15, None)
