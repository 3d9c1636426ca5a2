"""What a sensor keeps until it is answered; and, whatever happens between it and the sink, each window comes once."""

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.codecs.catalog import make_reducer
from har_edge.config.pipeline_config import PipelineConfig
from har_edge.config.task import SourceInput
from har_edge.errors import BrokerError, ConfigError, NodeError
from har_edge.mqtt.bus import Delivery
from har_edge.protocol import wire
from har_edge.protocol.deployment import VERSION, Deployment, Generation, Placement, encode_deployment
from har_edge.protocol.results import Result, encode_results
from har_edge.runtime.sensor.plan_follower import PlanFollower
from har_edge.runtime.sensor.retransmission import RECENT_A_STEP, RECENT_SPACING_S
from har_edge.runtime.sensor.retransmit_buffer import (
    LAST,
    LOOK_S,
    MOST_CLOSED,
    MOST_STREAMS,
    SWITCH_S,
    RetransmitBuffer,
)
from har_edge.runtime.sensor.sensor import Sensor, SensorSetup
from har_edge.runtime.sink import Sink
from har_edge.timing import FILES_AGAIN_S, RESEND_S
from tests.runtime.deployed import manifest
from tests.runtime.rig import CHANNELS, LENGTH, TASK, TOPICS, Clock, samples, small_stage
from tests.runtime.sensor.test_sensor import window

CUT = manifest((("c", "a"), ("scores",)))


def plan_of(*epochs, epoch=None, revision=1, author="a", started=1.0, task=TASK, **more):
    config = PipelineConfig(task, name="test", **more)
    generations = tuple(Generation(one, CUT, (Placement(0, "n"),)) for one in epochs)
    return Deployment(
        VERSION, revision, author, started, config, epochs[-1] if epoch is None else epoch, {}, generations
    )


def plan(deployment):
    return Delivery(TOPICS.plan(), encode_deployment(deployment), (1, 1), retained=True)


def course_of(*sources, epoch=1, refit=None, give_up_s=120.0, **options):
    reducers = {source: make_reducer("none", LENGTH, CHANNELS[source]) for source in sources or ("chest",)}
    sensor = Sensor(SensorSetup(TOPICS, epoch, reducers, frozenset({1, 4})))
    return sensor, PlanFollower(
        plan_of(epoch), sensor, RetransmitBuffer(reducers, 0.0), TOPICS, refit, give_up_s, **options
    )


def result(seq=0, *, stream="s", captured=1.0, missing=(), emitted=2.0):
    return Result(stream, seq, "still", 1, 0.5, captured, emitted, 1, None, list(missing))


def buffer_of(*seqs, captured=1.0, epoch=1, now=0.0):
    buffer = RetransmitBuffer(["chest"], 0.0)
    for seq in seqs:
        buffer.put([window(seq)], [captured], epoch, now)
    return buffer


def due(buffer, now, current=1, alive=(1,), *, out=True):
    return [kept.windows[0].seq for kept in buffer.due(current, frozenset(alive), now, out=out)]


def test_a_result_answers_its_window_and_no_other():
    buffer = buffer_of(0, 1, 2)
    assert buffer.ack(result(1)) and not buffer.ack(result(1))
    assert not buffer.ack(result(9)) and not buffer.ack(result(0, stream="other"))
    assert (len(buffer), buffer.open("s"), buffer.open("other")) == (2, 2, 0)


@pytest.mark.parametrize(("captured", "answers"), [(0.9, False), (0.9995, True), (1.0, True), (1.2, True)])
def test_a_result_of_an_earlier_run_answers_nothing(captured, answers):
    assert buffer_of(0).ack(result(0, captured=captured)) is answers


def test_a_result_without_any_source_of_this_sensor_answers_even_before_the_window_is_sent():
    buffer = buffer_of(0)
    assert buffer.ack(result(0, captured=0.5, missing=["chest"]))
    assert not buffer.ack(result(1, captured=0.5, missing=["chest"]))
    buffer.put([window(1)], [1.0], 1, 0.0)
    buffer.put([window(2)], [1.0], 1, 0.0)
    assert (len(buffer), buffer.open("s")) == (1, 1)
    assert not buffer.ack(result(2, captured=0.5, missing=["arm"]))
    late = RetransmitBuffer(["chest"], begun=10.0)
    late.put([window(0)], [11.0], 1, 0.0)
    assert not late.ack(result(0, captured=0.5, missing=["chest"], emitted=9.0))  # of an earlier run


def test_a_window_answered_without_this_sensor_tells_of_those_before_it_until_the_stream_begins_anew():
    buffer = RetransmitBuffer(["chest"], begun=1.0)
    for seq in (0, 1, 9):
        buffer.put([window(seq)], [1.0], 1, 0.0)
    assert not buffer.ack(result(5, emitted=0.5, missing=("chest", "ankle")))  # of before this sensor began
    assert buffer.pass_by("s") == 0
    assert not buffer.ack(result(5, emitted=2.0, missing=("chest", "ankle")))
    assert buffer.pass_by("t") == 0 and buffer.open("s") == 3
    assert buffer.pass_by("s") == 2 and buffer.open("s") == 1
    assert buffer.put([window(4)], [1.0], 1, 0.0) == (1, 0)
    assert buffer.put([window(6)], [1.0], 1, 0.0) == (0, 0)
    assert not buffer.ack(result(0, emitted=3.0))
    assert buffer.put([window(2)], [1.0], 1, 0.0) == (0, 0)


def test_a_message_is_kept_until_all_its_windows_are_answered():
    buffer = RetransmitBuffer(["chest"], 0.0)
    buffer.put([window(4), window(5), window(6)], [1.0, 2.0, 3.0], 1, 0.0)
    assert buffer.ack(result(5, captured=2.0)) and not buffer.ack(result(6, captured=2.0))
    assert (len(buffer), buffer.messages) == (2, 1)
    assert buffer.ack(result(4)) and buffer.ack(result(6, captured=3.0))
    assert (len(buffer), buffer.messages, buffer.open("s")) == (0, 0, 0)


def test_what_went_to_an_epoch_that_is_gone_is_sent_again_at_once_oldest_first():
    buffer = buffer_of(3, 1, epoch=1)
    buffer.put([window(2)], [0.5], 2, 0.0)
    assert due(buffer, 0.1, 2, (1, 2)) == []
    assert due(buffer, 0.2, 3, (3,)) == [2, 3, 1]
    assert due(buffer, 0.3, 3, (3,)) == []


def test_silence_is_waited_for_twice_as_long_each_time_and_at_most_half_a_minute():
    buffer, times, now = buffer_of(0), [], 0.0
    while now < 400:
        if due(buffer, now):
            times.append(now)
        now += 0.25
    pauses = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    wanted = [RESEND_S, 10, 20, 30, 30, 30, 30]
    assert len(pauses) >= 7 and all(0 <= got - most <= LOOK_S + 0.3 for got, most in zip(pauses, wanted, strict=False))


def test_a_window_whose_turn_is_still_to_come_is_not_sent_again():
    """Every second one window is answered: none waits in vain, however long it takes until its turn."""
    buffer = buffer_of(*range(60))
    for second in range(60):
        assert due(buffer, second + 0.5) == []
        assert buffer.ack(result(second))
    assert len(buffer) == 0


def test_a_window_that_later_ones_have_passed_is_sent_again_soon():
    buffer, again = buffer_of(*range(30)), []
    for second in range(12):
        if second != 2:
            assert buffer.ack(result(second))
        again += [(seq, second) for seq in due(buffer, second + 0.5)]
    # Until 1.5 those before it are answered; then as for an epoch that ends, and twice as long the second time.
    assert again == [(2, 4), (2, 9)]


def test_windows_that_were_lost_together_come_again_together():
    """An answer to the first of them is no sign that the others are on their way: later ones have been answered."""
    buffer = buffer_of(*range(30))
    for seq in range(10):
        if seq not in (3, 5, 7):
            assert buffer.ack(result(seq))
    assert due(buffer, 0.5) == [] and buffer.ack(result(10)) and due(buffer, 1.6) == []
    sent = []
    for tick in range(16, 60):
        for seq in due(buffer, tick / 10):
            sent.append((seq, tick))
            assert buffer.ack(result(seq))
    assert [seq for seq, _ in sent if seq < 10] == [3, 5, 7] and {tick for seq, tick in sent if seq < 10} == {
        sent[0][1]
    }


def test_what_was_lost_and_healed_makes_no_other_window_wait_longer():
    """The time that an answer takes counts from the last time that its window was sent."""
    buffer = buffer_of(*range(8), now=0.0)
    assert due(buffer, 6.0) == list(range(8))
    for seq in range(8):
        assert buffer.ack(result(seq), now=6.1)
    assert due(buffer, 7.0) == []
    buffer.put([window(9)], [1.0], 1, 10.0)
    assert due(buffer, 14.0) == [] and due(buffer, 15.5) == [9]


def test_what_went_to_an_epoch_that_others_have_left_is_sent_again_sooner():
    buffer = buffer_of(0, epoch=1)
    assert due(buffer, SWITCH_S - 0.1, 2, (1, 2)) == [] and due(buffer, SWITCH_S + LOOK_S, 2, (1, 2)) == [0]


def test_nothing_is_overdue_that_has_not_left():
    buffer = buffer_of(0)
    assert [due(buffer, float(now), out=False) for now in range(60)] == [[]] * 60
    assert due(buffer, 62.0) == [] and due(buffer, 66.0) == [0]


def test_a_stream_whose_clock_was_set_back_replaces_windows_and_says_so():
    buffer = buffer_of(0, 1)
    assert buffer.put([window(1)], [0.2], 1, 5.0) == (0, 1) and len(buffer) == 2
    assert buffer.ack(result(1, captured=0.2))


def test_a_course_switches_with_the_plan_and_what_it_sends_again_is_the_same(caplog):
    sensor, course = course_of()
    before = [wire.decode(one.payload) for one in course.send([window(0)], [7.0], 0.0)]
    course.take(plan(plan_of(1, 2, revision=2)), 1.0)
    assert course.epoch == 2 and course.again(1.0, connected=True, blocked=False) == []
    assert wire.decode(course.send([window(1)], [8.0], 1.0)[0].payload).epoch == 2
    course.take(plan(plan_of(2, revision=3)), 1.0)
    (after,) = [wire.decode(one.payload) for one in course.again(1.1, connected=False, blocked=True)]
    assert (before[0].epoch, after.epoch) == (1, 2)
    for name in ("stream", "seq", "captured", "truth"):
        assert getattr(before[0], name) == getattr(after, name)
    assert before[0].tensors["chest"].tobytes() == after.tensors["chest"].tobytes()
    assert (sensor.counters.windows, sensor.counters.resent) == (2, 1) and not caplog.records


def test_a_plan_that_cannot_be_read_is_dropped_counted_and_logged(caplog):
    sensor, course = course_of()
    course.take(Delivery(TOPICS.plan(), b"{", (1, 1)), 0.0)
    course.take(Delivery(TOPICS.result("s"), b"{", (1, 1)), 0.0)
    course.take(Delivery(TOPICS.plan(), encode_deployment(plan_of(9, base="other")), (1, 1)), 0.0)
    assert sensor.counters.rejected == 3 and course.epoch == 1
    assert "what came is no plan" in caplog.text and "a plan of pipeline other/test came" in caplog.text
    course.take(Delivery(TOPICS.plan(), b"", (1, 1)), 0.0)
    assert course.epoch == 1 and "the plan was removed; going on as it was" in caplog.text


def test_who_has_every_answer_waits_for_a_lost_broker_but_not_for_ever():
    _, course = course_of(give_up_s=120.0)
    for now, connected, done in [(0, True, True), (1, False, False), (120, False, False), (122, False, True)]:
        course.again(float(now), connected=connected, blocked=False)
        assert course.is_done(0) is done, now
    for now, done in [(123, False), (132, True)]:  # it comes back after all
        course.again(float(now), connected=True, blocked=False, forgotten=1)
        assert course.is_done(0) is done, now
    _, patient = course_of(give_up_s=0.0)
    for now, connected in [(0, True), (1, False), (9999, False)]:
        patient.again(float(now), connected=connected, blocked=False)
    assert not patient.is_done(0)


@pytest.mark.parametrize(
    ("author", "revision", "started", "followed"),
    [("a", 8, 5.0, False), ("b", 8, 4.0, False), ("b", 9, 4.0, False), ("b", 10, 4.0, True), ("b", 1, 6.0, True)],
)
def test_an_older_plan_is_not_followed_but_a_younger_coordinator_is(author, revision, started, followed):
    _, course = course_of()
    course.take(plan(plan_of(5, revision=9, started=5.0)), 0.0)
    course.take(plan(plan_of(3, revision=revision, author=author, started=started)), 0.0)
    assert course.epoch == (3 if followed else 5)


@dataclass
class World:
    """Two sensors of a stream, the stages of some epochs, and a network that loses and doubles what it is told to."""

    clock: Clock = field(default_factory=Clock)
    lose: int = 0
    twice: int = 0
    away: dict[str, float] = field(default_factory=dict)
    mute: int = 0
    forgotten: int = 0
    calm_at: float = 0.0
    sink: Sink = field(default_factory=Sink)
    results: list[Result] = field(default_factory=list)

    def __post_init__(self):
        self.sensors = {source: course_of(source)[1] for source in CHANNELS}
        self.sent, self.known = dict.fromkeys(CHANNELS, 0), dict.fromkeys(CHANNELS, 0)
        self.backlog = {source: [] for source in CHANNELS}
        self.unheard = {source: [] for source in CHANNELS}  # what the broker keeps for who is away
        self.stages = {1: self.stage(1)}
        self.deployment, self.tokens = plan_of(1), 0
        self.wait(0.0)

    def stage(self, epoch):
        return small_stage(epoch=epoch, deployed=True, clock=self.clock)

    def send(self, source):
        seq, self.sent[source] = self.sent[source], self.sent[source] + 1
        captured = 100.0 + seq + (0.003 if source == "arm" else 0.0)
        self.backlog[source] += self.sensors[source].send([window(seq)], [captured], self.clock.now)
        self.flush(source)

    def flush(self, source):
        if source not in self.away:
            outgoing, self.backlog[source] = self.backlog[source], []
            self.carry(outgoing)

    def carry(self, outgoing):
        for one in outgoing:
            if self.lose:
                self.lose -= 1
                continue
            for _ in range(2 if self.twice else 1):
                for stage in list(self.stages.values()):
                    self.tokens += 1
                    self.answer(stage.handle(Delivery(one.topic, one.payload, (1, self.tokens))))
            self.twice = max(0, self.twice - 1)

    def answer(self, outgoing):
        for one in outgoing:
            if "/result/" not in one.topic:
                continue
            if self.mute:  # the broker lost it: nobody hears it
                self.mute -= 1
                continue
            delivery = Delivery(one.topic, one.payload, (1, 1))
            self.results += self.sink.handle(delivery)
            for source, course in self.sensors.items():
                if source not in self.away:
                    course.take(delivery, self.clock.now)
                else:
                    self.unheard[source].append(delivery)

    def change(self, *, retire):
        """Start another epoch; or end all but the current one."""
        if retire:
            epochs = [self.deployment.epoch]
        else:
            epochs = [*[one.epoch for one in self.deployment.generations][-3:], self.deployment.epoch + 1]
        self.stages = {epoch: self.stages.get(epoch) or self.stage(epoch) for epoch in epochs}
        self.deployment = plan_of(*epochs, revision=self.deployment.revision + 1)

    def follow(self, source):
        self.sensors[source].take(plan(self.deployment), self.clock.now)

    def wait(self, seconds):
        self.clock.now += seconds
        for stage in self.stages.values():
            self.answer(stage.tick())
        for source, course in self.sensors.items():
            if self.clock.now >= self.away.get(source, 0.0):
                if self.away.pop(source, None) is not None:
                    self.hear(source)
                self.flush(source)
                self.follow(source)
            self.backlog[source] += course.again(
                self.clock.now,
                connected=source not in self.away,
                blocked=source in self.away,
                forgotten=self.known[source],
            )
            self.flush(source)

    def hear(self, source):
        """Be back: get what the broker has kept, or learn that it has forgotten all, which it does only once."""
        unheard, self.unheard[source] = self.unheard[source], []
        if self.known[source] == self.forgotten:
            for delivery in unheard:
                self.sensors[source].take(delivery, self.clock.now)
        self.known[source] = self.forgotten

    def cut(self, source):
        """Take the connection of one sensor; the broker keeps what is for it."""
        self.sensors[source].again(self.clock.now, connected=False, blocked=True, forgotten=self.known[source])
        self.away.setdefault(source, self.clock.now + 2.0)

    def restart_broker(self, last):
        """Lose what the broker knew; one sensor is back at once, the last one later."""
        self.calm_at, self.lose, self.mute = self.clock.now + 30.0, 0, 0
        self.forgotten += 1
        for source, course in self.sensors.items():
            course.again(self.clock.now, connected=False, blocked=True, forgotten=self.known[source])
            self.away[source] = self.clock.now + (4.0 if source == last else 0.0)

    def do(self, step):
        if self.clock.now < self.calm_at and step in {"lose", "mute", "crash"}:
            return  # no second fault before the first is over: then a window may remain open, and is given up
        match step.split():
            case ["send", source]:
                self.send(source)
            case ["follow", source]:
                self.follow(source)
            case ["wait", seconds]:
                self.wait(float(seconds))
            case ["lose"]:
                self.lose += 1
            case ["twice"]:
                self.twice += 1
            case ["mute"]:
                self.mute += 1
            case ["cut", source]:
                self.cut(source)
            case ["restart", source]:
                self.restart_broker(source)
            case ["crash"]:
                self.stages = {epoch: self.stage(epoch) for epoch in self.stages}
            case [what]:
                self.change(retire=what == "retire")


STEPS = [
    *("send chest", "send arm", "follow chest", "follow arm", "wait 0.3", "wait 2.6", "lose", "twice", "mute"),
    *("cut chest", "cut arm", "restart chest", "restart arm", "crash", "change", "retire"),
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=50))
def test_every_window_is_answered_once_whatever_happens_on_the_way(steps):
    world = World()
    for step in steps:
        world.do(step)
    world.lose = world.mute = world.twice = 0
    world.wait(5.0)
    for source in CHANNELS:
        world.follow(source)
        while world.sent[source] < max(world.sent.values()):
            world.send(source)
    for _ in range(1200):
        if not any(course.open for course in world.sensors.values()):
            break
        world.wait(0.25)
    count = max(world.sent.values())
    assert sorted(one.seq for one in world.results) == list(range(count))
    assert [course.open for course in world.sensors.values()] == [0, 0]
    for one in world.results:
        sums = [samples(source, one.seq).sum() for source in ("chest", "arm")]
        assert one.confidence == pytest.approx(max(sums), rel=1e-4) and one.captured == 100.003 + one.seq


@pytest.mark.parametrize("then", ["wait 0.3", "crash"])
def test_a_sensor_that_missed_a_result_gets_it_again(then):
    """The broker came back without what it kept, and the other sensor was there before."""
    world = World()
    world.send("chest"), world.send("arm"), world.send("chest")
    world.restart_broker("chest")
    world.wait(0.1)
    world.send("arm")
    assert [course.open for course in world.sensors.values()] == [1, 0] and len(world.results) == 2
    world.do(then)
    for _ in range(60):
        world.wait(0.25)
    assert [course.open for course in world.sensors.values()] == [0, 0] and len(world.results) == 2


def test_what_was_answered_around_a_loss_of_the_connection_is_sent_once_more_and_is_bounded(monkeypatch):
    monkeypatch.setattr("har_edge.runtime.sensor.retransmit_buffer.MOST_RECENT", 300)
    sensor, course = course_of()
    course.again(0.0, connected=True, blocked=False)
    for seq in range(1000):
        course.send([window(seq)], [1.0], 0.0)
        if seq == 500:
            course.again(1.0, connected=False, blocked=True)
            course.again(2.0, connected=True, blocked=False, forgotten=1)
        course.take(Delivery(TOPICS.result("s"), encode_results([result(seq)]), (1, 1)), 3.0)
    again, now = [], 9.9
    assert course.again(now, connected=True, blocked=False, forgotten=1) == []
    while not course.is_done(0):
        now += 0.1
        came = course.again(now, connected=True, blocked=False, forgotten=1)
        assert len(came) <= RECENT_A_STEP
        again += [wire.decode(one.payload).seq for one in came]
    assert again == list(range(500 - LAST, 800 - LAST)) and sensor.counters.resent == 300
    assert now >= 10.0 + 300 * RECENT_SPACING_S / 2  # and not in one go, which new windows would wait behind
    assert course.again(60.0, connected=True, blocked=False, forgotten=1) == []


def test_nothing_is_sent_once_more_for_a_broker_that_still_knows_the_sensor():
    sensor, course = course_of()
    for seq in range(2000):
        course.send([window(seq)], [1.0], 0.0)
        course.again(seq / 100, connected=seq % 100 > 50, blocked=False)
        course.take(Delivery(TOPICS.result("s"), encode_results([result(seq)]), (1, 1)), seq / 100)
    assert course.is_done(0) and course.again(60.0, connected=True, blocked=False) == [] and sensor.counters.resent == 0


def test_a_broker_that_forgets_twice_gets_what_was_answered_around_both_times():
    _, course = course_of()
    again = []
    for seq, now in enumerate(range(60)):
        course.send([window(seq)], [1.0], float(now))
        course.take(Delivery(TOPICS.result("s"), encode_results([result(seq)]), (1, 1)), float(now))
        came = course.again(float(now), connected=now not in (5, 17), blocked=False, forgotten=(now > 5) + (now > 17))
        again += [wire.decode(one.payload).seq for one in came]
    assert set(range(27)) <= set(again) and len(again) < 60


def test_a_recording_gives_up_when_no_result_came_for_long_though_there_was_a_broker():
    sensor, course = course_of(give_up_s=100.0)
    course.send([window(0)], [1.0], 0.0)
    for now in range(200):
        course.again(float(now), connected=now > 50, blocked=True)
    assert not course.is_hopeless(150.0) and course.is_hopeless(150.1)
    course.abandon()
    assert (course.open, sensor.counters.unanswered) == (0, 1)


def test_a_device_goes_on_without_windows_that_nobody_answers(caplog):
    sensor, course = course_of(give_up_s=100.0, expires=True)
    course.send([window(0)], [1.0], 0.0)
    course.send([window(1)], [1.0], 50.0)
    for now in range(160):
        course.again(float(now), connected=True, blocked=False)
    assert (course.open, sensor.counters.unanswered, sensor.counters.windows) == (0, 2, 2)
    assert "no result of 1 windows of s for 100 s: going on without them" in caplog.text
    assert not course.is_hopeless(1000.0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"length": 8}, "length was 4, is 8"),
        ({"hop": 4}, "hop was 2, is 4"),
        ({"grouping": "person"}, "grouping was location, is person"),
    ],
)
def test_windows_that_do_not_fit_the_new_model_end_the_sensor_with_what_changed(change, text):
    stream = msgspec.structs.replace(TASK.stream, **change)
    changed = plan_of(2, revision=2, task=msgspec.structs.replace(TASK, stream=stream))
    _, course = course_of()
    with pytest.raises(ConfigError, match=f"do not fit epoch 2: {text}; start the sensor again"):
        course.take(plan(changed), 0.0)


def test_a_source_that_the_new_model_does_not_take_ends_the_sensor():
    task = msgspec.structs.replace(TASK, inputs={"arm": TASK.inputs["arm"]})
    _, course = course_of("chest", "arm")
    with pytest.raises(ConfigError, match="source 'chest' is no longer taken"):
        course.take(plan(plan_of(2, revision=2, task=task)), 0.0)


def test_with_the_new_model_come_its_reducers_also_for_what_is_sent_again():
    made = []

    def refit(deployment):
        made.append(deployment.epoch)
        reducers = {"chest": make_reducer("q8", LENGTH, CHANNELS["chest"])}
        return SensorSetup(TOPICS, deployment.epoch, reducers, frozenset({1}))

    sensor, course = course_of(refit=refit)
    course.send([window(0)], [1.0], 0.0)
    task = msgspec.structs.replace(TASK, inputs=TASK.inputs | {"chest": SourceInput("c", "q8")})
    preparing = plan_of(1, 2, epoch=1, revision=2, task=task)
    course.take(plan(preparing), 0.0)
    assert made == []  # not before sensors are to switch
    course.take(plan(plan_of(2, revision=3, task=task)), 0.0)
    (again,) = course.again(1.0, connected=True, blocked=False)
    assert made == [2] and wire.decode(again.payload).tensors["chest"].dtype.name != "float32"
    course.take(plan(plan_of(3, revision=4, task=task)), 0.0)
    assert made == [2] and course.epoch == 3 and sensor.counters.resent == 1


def test_where_the_files_of_a_new_plan_cannot_be_had_windows_go_on_as_they_went_until_they_can():
    failures = [NodeError("no chunk came"), BrokerError("the broker is away")]

    def refit(deployment):
        if failures:
            raise failures.pop()
        return SensorSetup(TOPICS, deployment.epoch, {"chest": reducer}, frozenset({1}))

    reducer = make_reducer("q8", LENGTH, CHANNELS["chest"])
    sensor, course = course_of(refit=refit)
    task = msgspec.structs.replace(TASK, inputs=TASK.inputs | {"chest": SourceInput("c", "q8")})
    course.take(plan(plan_of(2, revision=3, task=task)), 0.0)
    course.take(plan(plan_of(1, revision=1)), 1.0)  # an older one changes nothing
    assert course.epoch == 1 and sensor.counters.rejected == 0
    course.again(FILES_AGAIN_S - 0.1, connected=True, blocked=False)
    assert len(failures) == 1
    course.again(FILES_AGAIN_S, connected=True, blocked=False)
    assert not failures and course.epoch == 1
    course.again(2 * FILES_AGAIN_S, connected=True, blocked=False)
    assert course.epoch == 2


def test_a_message_is_not_forgotten_when_a_window_that_was_answered_comes_again_as_a_new_one():
    """The stream begins anew: its first number is that of a window that was answered, of a message that is open."""
    buffer = RetransmitBuffer(["chest"], 0.0)
    buffer.put([window(4), window(5)], [1.0, 2.0], 1, 0.0)
    assert buffer.ack(result(4))
    assert buffer.put([window(4)], [9.0], 1, 0.1) == (0, 0)
    assert (buffer.messages, len(buffer), buffer.open("s")) == (2, 2, 2)
    assert due(buffer, RESEND_S + 1.0) == [4, 4]
    assert buffer.ack(result(5, captured=2.0)) and buffer.ack(result(4, captured=9.0)) and buffer.messages == 0


def test_a_window_that_was_given_up_is_answered_also_by_a_result_without_this_sensor():
    sensor, follower = course_of(give_up_s=10.0, expires=True)
    follower.send([window(0)], [1.0], 0.0)
    follower.again(20.0, connected=True, blocked=False)
    assert sensor.counters.unanswered == 1
    late = result(0, captured=0.5, missing=("chest",))
    for _ in range(2):  # a repetition answers nothing more
        follower.take(Delivery(TOPICS.result("s"), encode_results([late]), (1, 1)), 21.0)
        told = follower.streams()["s"]
        assert (told.sent, told.answered, told.lost, sensor.counters.unanswered) == (1, 1, 0, 0)


def test_what_is_remembered_of_windows_and_streams_is_bounded():
    buffer = RetransmitBuffer(["chest"], 0.0)
    for number in range(MOST_CLOSED + 10):
        assert not buffer.ack(result(number, stream=f"x{number % 7}", missing=("chest",)))
    assert len(buffer._closed) == MOST_CLOSED
    buffer.put([window(0, stream="mine")], [1.0], 1, 0.0)
    for number in range(MOST_STREAMS + 10):
        buffer.ack(result(0, stream=f"y{number}", missing=("chest",)))
    assert len(buffer._streams) == MOST_STREAMS and buffer.open("mine") == 1
    assert buffer.ack(result(0, stream="mine"))
