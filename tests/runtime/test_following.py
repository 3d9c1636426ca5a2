"""The loops of sensors that follow a plan: they switch when told, wait for every answer, and lose nothing unsaid."""

from collections import Counter

import msgspec
import pytest

from har_edge.mqtt.bus import Delivery, PublishOutcome
from har_edge.protocol import wire
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import State
from har_edge.protocol.topics import Kind
from har_edge.runtime.sensor.flow_control import Untracked
from har_edge.runtime.sensor.live import LiveLoop
from har_edge.runtime.sensor.plan_follower import PlanFollower
from har_edge.runtime.sensor.send_policy import SendPolicy, SensorLoop
from har_edge.runtime.stop import Stop
from har_edge.tflite.manifest import TensorSpec
from har_edge.timing import LAST_ANSWERS_S, RECENT_AFTER_S
from tests.runtime.rig import TOPICS
from tests.runtime.sensor.test_live import HOP, ScriptedDevice, lines, live_sensor
from tests.runtime.sensor.test_retransmit_buffer import RetransmitBuffer, course_of, plan, plan_of
from tests.runtime.test_loop import ScriptedBus, batches, clock, identity

__all__ = ["clock"]


class Deployed(ScriptedBus):
    """A broker with a pipeline behind it, which answers the windows of some epochs at the next poll."""

    def __init__(self, clock, *epochs):
        super().__init__(clock=clock)
        self.epochs, self.began, self.messages = set(epochs or (1,)), clock.now, []
        self.quiet, self.at = self.turn, {}
        self.answered, self.seen = Counter(), 0

    @property
    def time(self):
        return self.clock.now - self.began

    def when(self, second, do):
        """Do something at a time; what it returns is delivered."""
        self.at[second] = do

    def turn(self):
        came = []
        for second in sorted(self.at):
            if second <= self.time:
                came += self.at.pop(second)() or []
        sent, self.seen = self.published[self.seen :], len(self.published)
        for topic, payload in sent:
            if TOPICS.read(topic).kind is not Kind.WINDOW:
                continue
            message = wire.decode(payload)
            self.messages.append(message)
            if message.epoch not in self.epochs:
                continue
            results = [
                Result(message.stream, message.seq + k, "still", 1, 0.5, captured, captured, message.epoch)
                for k, captured in enumerate(message.captured)
            ]
            self.answered.update((one.stream, one.seq) for one in results)
            came.append(Delivery(TOPICS.result(message.stream), encode_results(results), (1, 1)))
        return came

    def to(self, *epochs, deployment=None):
        self.epochs = set(epochs)
        return [plan(deployment)] if deployment else None


def replay_of(bus, *, give_up_s=120.0, **policy):
    sensor, course = course_of(give_up_s=give_up_s)
    options = {"in_flight": 4, "real_time": False} | policy
    return sensor, SensorLoop(bus, sensor, identity("sensor-chest", "sensor"), SendPolicy(**options), course)


def test_a_replay_switches_with_the_plan_and_tells_at_once(clock):
    bus = Deployed(clock, 1, 2)
    bus.script.append(lambda: None)
    bus.when(0.0, lambda: [plan(plan_of(1))])
    bus.when(0.02, lambda: [plan(plan_of(1, 2, revision=2))])
    sensor, loop = replay_of(bus)
    loop.run(batches(50), Stop())
    assert bus.filters == [TOPICS.plan(), TOPICS.result("+")]
    epochs = [message.epoch for message in bus.messages]
    assert len(epochs) == 50 and epochs == sorted(epochs) and set(epochs) == {1, 2}
    assert (sensor.counters.resent, sensor.counters.unanswered) == (0, 0)
    assert [status.epoch for status in bus.statuses()] == [1, 2, 2] and bus.statuses()[-1].state is State.STOPPED


def test_windows_whose_epoch_went_are_sent_again_with_the_same_times(clock):
    bus = Deployed(clock, 9)  # the stages of epoch 1 are gone
    bus.when(2.0, lambda: bus.to(2, deployment=plan_of(2, revision=2)))
    sensor, loop = replay_of(bus)
    loop.run(batches(10), Stop())
    assert sensor.counters.resent == 4 and set(bus.answered.values()) == {1} and len(bus.answered) == 10
    captured = {}
    for message in bus.messages:
        assert captured.setdefault(message.seq, message.captured) == message.captured
    assert [message.seq for message in bus.messages[:8]] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_replay_waits_while_nobody_answers_and_ends_when_the_last_window_is_answered(clock):
    bus = Deployed(clock, 9)
    bus.when(70.0, lambda: bus.to(1))
    sensor, loop = replay_of(bus)
    loop.run(batches(10), Stop())
    assert max(message.seq for message in bus.messages[: sensor.counters.resent]) == 3  # 4 and no more were out
    assert len(bus.answered) == 10 and sensor.counters.unanswered == 0 and 70.0 < bus.time < 105.0


def test_a_batch_is_kept_as_one(clock):
    bus = Deployed(clock, 9)
    bus.when(2.0, lambda: bus.to(2, deployment=plan_of(2, revision=2)))
    sensor, loop = replay_of(bus, in_flight=100)
    groups = iter([[one for batch in [next(singles) for _ in range(5)] for one in batch] for singles in [batches(5)]])
    loop.run(groups, Stop())
    assert [(message.seq, message.count, message.epoch) for message in bus.messages] == [(0, 5, 1), (0, 5, 2)]
    assert sensor.counters.resent == 5 and len(bus.answered) == 5


def test_a_batch_goes_one_by_one_once_the_slices_take_no_more(clock):
    """A plan may come that cuts elsewhere, where something without a batch crosses."""
    bus = Deployed(clock, 9)

    def recut():
        deployment = plan_of(2, revision=2)
        (generation,) = deployment.generations
        entry = generation.manifest.slices[0]
        rows = TensorSpec("c", (-1, 4, 2), "float32", batched=False)
        manifest = msgspec.structs.replace(
            generation.manifest, slices=(msgspec.structs.replace(entry, inputs=(rows, *entry.inputs[1:])),)
        )
        generation = msgspec.structs.replace(generation, manifest=manifest)
        return bus.to(2, deployment=msgspec.structs.replace(deployment, generations=(generation,)))

    bus.when(2.0, recut)
    sensor, loop = replay_of(bus, in_flight=100)
    groups = iter([[one for batch in [next(singles) for _ in range(5)] for one in batch] for singles in [batches(5)]])
    loop.run(groups, Stop())
    sent = [(message.seq, message.count, message.epoch) for message in bus.messages]
    assert sent == [(0, 5, 1), *((seq, 1, 2) for seq in range(5))]
    assert sensor.counters.resent == 5 and len(bus.answered) == 5 and sensor.counters.unanswered == 0


def test_a_replay_gives_up_when_no_result_came_for_long(clock):
    bus = Deployed(clock, 9)
    sensor, loop = replay_of(bus, give_up_s=90.0)
    loop.run(batches(10), Stop())
    assert 90.0 < bus.time < 95.0 and sensor.counters.unanswered == 4 and sensor.counters.windows == 4
    assert bus.statuses()[-1].counters["unanswered"] == 4 and bus.closed is True


def test_stop_ends_a_replay_that_waits_and_says_what_is_unanswered(clock):
    bus, stop = Deployed(clock, 9), Stop()
    bus.when(5.0, lambda: setattr(stop, "asked", True))
    sensor, loop = replay_of(bus)
    loop.run(batches(10), stop)
    assert bus.time < 5.2 + LAST_ANSWERS_S and sensor.counters.unanswered == 4


def test_a_stalled_pipeline_costs_a_device_its_oldest_windows_that_were_not_sent_and_no_others(clock):
    """A window a second for 60 s; from 10 s to 45 s nobody answers. 5 may be on their way, 8 may wait."""
    bus = Deployed(clock, 1)
    sensor, stream = live_sensor()
    _, shadow = live_sensor()
    course = PlanFollower(plan_of(1), sensor, RetransmitBuffer(["chest"], 0.0), TOPICS, None, 120.0, expires=True)
    read, script = [0], []

    class Steady(ScriptedDevice):
        def read(self):
            due = int(bus.time) * HOP
            if due >= 60 * HOP:
                return None
            first, read[0] = read[0], max(read[0], due)
            script.append(lines(first, read[0]))
            return script[-1]

    bus.when(10.0, lambda: bus.to(9))
    bus.when(45.0, lambda: bus.to(1))
    loop = LiveLoop(
        bus, sensor, identity("sensor-chest", "sensor"), Steady(), stream, queue=8, flow=course, in_flight=5
    )
    loop.run(Stop())
    produced = [window.seq for data in script for _, window in shadow.feed(data, 0.0)]
    counters = bus.statuses()[-1].counters
    assert len(produced) == 58 and len(bus.answered) == sensor.counters.windows
    assert counters["dropped"] + len(bus.answered) == len(produced) and counters["unanswered"] == 0
    assert counters["dropped"] == counters["dropped_windows"] > 10 and counters["resent"] > 0
    lost = sorted(set(produced) - {seq for _, seq in bus.answered})
    sent = [message.seq for message in bus.messages]
    assert not set(lost) & set(sent) and lost == list(range(lost[0], lost[-1] + 1))
    assert sent.index(lost[0] - 1) < sent.index(lost[-1] + 1)


def test_a_device_without_a_plan_waits_for_no_answer(clock):
    bus = Deployed(clock, 9)
    sensor, stream = live_sensor()
    device = ScriptedDevice(lines(0, 50))
    LiveLoop(bus, sensor, identity("sensor-chest", "sensor"), device, stream, queue=64, flow=Untracked(sensor)).run(
        Stop()
    )
    assert bus.filters == [] and sensor.counters.windows == 24 and bus.statuses()[-1].epoch == 0


def test_a_lost_window_in_the_middle_comes_again_while_later_ones_flow(clock):
    bus = Deployed(clock, 1)
    plain, lost = bus.publish, []

    def publish(topic, payload, **options):
        if "/window/" in topic and wire.decode(payload).seq == 3 and not lost:
            lost.append(topic)
            options["on_outcome"](bus.outcome)
            return
        plain(topic, payload, **options)

    bus.publish = publish
    sensor, loop = replay_of(bus, real_time=True)
    timed = iter([[(float(seq), window)] for seq, [(_, window)] in enumerate(batches(20))])
    loop.run(timed, Stop())
    assert sensor.counters.resent == 1 and len(bus.answered) == 20
    assert pytest.approx(bus.time, abs=0.5) == 19.0


def test_what_nobody_hears_holds_no_sensor_up_whose_windows_are_answered(clock):
    """Sent again for nothing, when the stages had gone with everything done."""
    bus = Deployed(clock, 9)
    sensor, loop = replay_of(bus)
    bus.outcome = lambda topic: (
        PublishOutcome.NO_SUBSCRIBERS if "/window/" in topic and bus.time > 4.0 else PublishOutcome.ACKED
    )
    results = [Result("s", seq, "still", 1, 0.5, 1e12, 1e12, 1) for seq in range(4)]
    bus.when(20.0, lambda: [Delivery(TOPICS.result("s"), encode_results(results), (1, 1))])
    loop.run(batches(4), Stop())
    assert sensor.counters.resent == 4 and sensor.counters.unanswered == 0 and bus.time < 21.0


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_sensor_that_was_forgotten_does_not_end_before_it_has_sent_again_what_others_may_lack(clock, forgotten):
    bus = Deployed(clock, 1)
    bus.when(2.0, lambda: setattr(bus, "connected", False))

    def come_back():
        bus.connected = True
        bus.traffic.forgotten += forgotten

    bus.when(4.0, come_back)
    sensor, loop = replay_of(bus, real_time=True)
    loop.run(iter([[(float(seq), window)] for seq, [(_, window)] in enumerate(batches(6))]), Stop())
    if not forgotten:
        assert bus.time < 4.0 + RECENT_AFTER_S and sensor.counters.resent == sensor.counters.unanswered == 0
        return
    assert 4.0 + RECENT_AFTER_S <= bus.time < 5.0 + RECENT_AFTER_S and sensor.counters.resent == 6
    assert set(bus.answered.values()) == {2} and sensor.counters.unanswered == 0
