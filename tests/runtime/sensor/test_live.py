"""The live loop: a device that sends and a broker that takes, each in its own time."""

import os
import threading

import pytest

from har_edge.codecs.catalog import make_reducer
from har_edge.data.description import load_description
from har_edge.data.live import LiveStream, lay_out
from har_edge.errors import ConfigError, NodeError
from har_edge.mqtt.bus import PublishOutcome
from har_edge.protocol import wire
from har_edge.protocol.status import State
from har_edge.runtime.sensor import live as live_module
from har_edge.runtime.sensor.flow_control import Untracked
from har_edge.runtime.sensor.live import AHEAD, LiveDevice, LiveLoop
from har_edge.runtime.sensor.sensor import Sensor, SensorSetup
from har_edge.runtime.stop import Stop
from tests.runtime.rig import TOPICS
from tests.runtime.test_loop import ScriptedBus, clock, identity, stop_of

__all__ = ["clock"]
LENGTH, HOP, RATE = 4, 2, 50.0
BEGIN = 1_700_000_000.0


def live_sensor():
    description = load_description("mhealth")
    layout = lay_out(description, description, ["chest"], stamped=True)
    sensor = Sensor(SensorSetup(TOPICS, 1, {"chest": make_reducer("none", LENGTH, 5)}, frozenset([1])))
    return sensor, LiveStream("anna", layout, RATE, LENGTH, HOP)


def lines(first, stop):
    rows = ([f"{BEGIN + row / RATE:.3f}", *[str(row)] * 5] for row in range(first, stop))
    return b"".join("\t".join(row).encode() + b"\n" for row in rows)


class ScriptedDevice:
    """A device whose reads return what a script says; then it ends, or raises."""

    def __init__(self, *script, keeps=False, error=None):
        self.script, self.keeps, self.error, self.reads = list(script), keeps, error, 0

    def read(self):
        self.reads += 1
        if self.script:
            return self.script.pop(0)
        if self.error:
            raise self.error
        return None

    def reopen(self):
        return False


def loop_of(bus, device, queue=64, limit=None):
    sensor, stream = live_sensor()
    return LiveLoop(
        bus,
        sensor,
        identity("sensor-chest", "sensor"),
        device,
        stream,
        queue=queue,
        limit=limit,
        flow=Untracked(sensor),
    )


def sent(bus):
    return [wire.decode(payload) for topic, payload in bus.published if "/window/" in topic]


def rows(message):
    return message.tensors["chest"][0, :, 0].astype(int).tolist()


def test_windows_leave_as_they_complete_with_the_time_of_their_last_sample(clock):
    bus = ScriptedBus(clock=clock)
    loop_of(bus, ScriptedDevice(lines(0, 5), b"", lines(5, 9))).run(Stop())
    messages = sent(bus)
    assert [rows(message) for message in messages] == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    assert [message.captured for message in messages] == [(pytest.approx(BEGIN + row / RATE),) for row in (3, 5, 7)]
    assert [message.stream for message in messages] == ["anna"] * 3 and messages[0].truth is None
    assert [message.seq for message in messages] == [int(BEGIN * RATE / HOP) + number for number in range(3)]
    assert [status.state for status in bus.statuses()] == [State.READY, State.STOPPED] and bus.closed is True
    counters = bus.statuses()[-1].counters
    assert (counters["windows"], counters["lines"], counters["raw_bytes"]) == (3, 9, 8 * 5 * 4)


def test_the_loop_listens_to_the_broker_at_every_turn_whatever_the_device_does(clock):
    bus = ScriptedBus(clock=clock)
    device = ScriptedDevice(*[lines(row, row + 1) for row in range(30)], b"", b"")
    loop_of(bus, device).run(Stop())
    assert bus.waits[:30] == [0.0] * 30 and bus.waits[30:32] == [live_module.TURN_S] * 2


def test_without_a_broker_the_newest_windows_are_kept_and_the_dropped_ones_counted(clock, caplog):
    bus = ScriptedBus(clock=clock)
    bus.connected = False
    bus.script.extend([()] * 12)
    bus.script.append(lambda: setattr(bus, "connected", True))
    loop_of(bus, ScriptedDevice(*[lines(row, row + 10) for row in range(0, 100, 10)], b"", b"", b""), queue=5).run(
        Stop()
    )
    assert [rows(message)[0] for message in sent(bus)] == [88, 90, 92, 94, 96]
    counters = bus.statuses()[-1].counters
    assert (counters["windows"], counters["dropped_windows"]) == (5, 44)
    said = [
        record.message for record in caplog.records if "its times are" not in record.message
    ]  # the clock is made up
    assert said == ["dropped the oldest of 5 windows that wait to be sent"]


def test_what_nobody_hears_is_kept_in_a_bounded_number(clock):
    bus = ScriptedBus(clock=clock)
    bus.outcome = lambda topic: PublishOutcome.NO_SUBSCRIBERS if "/window/" in topic else PublishOutcome.ACKED
    stop = Stop()
    device = ScriptedDevice(lines(0, 1000), *[b""] * 30)
    loop = loop_of(bus, device, queue=10)
    bus.script.extend([()] * 30)
    bus.script.append(lambda: setattr(stop, "asked", True))
    loop.run(stop)
    assert len({message.seq for message in sent(bus)}) <= AHEAD
    assert bus.statuses()[-1].counters["dropped_windows"] > 400


def test_a_file_waits_for_the_broker(clock):
    bus = ScriptedBus(clock=clock)
    bus.connected = False
    device = ScriptedDevice(*[lines(row, row + 10) for row in range(0, 100, 10)], keeps=True)
    bus.script.extend([()] * 20)
    bus.script.append(lambda: setattr(bus, "connected", True))
    loop_of(bus, device, queue=5).run(Stop())
    assert [rows(message)[0] for message in sent(bus)] == list(range(0, 98, 2))


def test_it_ends_after_so_many_windows(clock):
    bus = ScriptedBus(clock=clock)
    device = ScriptedDevice(lines(0, 7), lines(7, 100), lines(100, 200))
    loop_of(bus, device, limit=3).run(Stop())
    assert len(sent(bus)) == 3 and len(device.script) == 1


def test_a_lost_device_ends_the_sensor_when_its_windows_have_left(clock):
    bus = ScriptedBus(clock=clock)
    with pytest.raises(NodeError, match="gone"):
        loop_of(bus, ScriptedDevice(lines(0, 4), error=NodeError("gone"))).run(Stop())
    assert len(sent(bus)) == 1 and bus.statuses()[-1].state is State.STOPPED


def test_stop_ends_it_although_the_broker_is_away(clock):
    bus = ScriptedBus(*[()] * 3, clock=clock)
    bus.connected = False
    loop_of(bus, ScriptedDevice(lines(0, 20), *[b""] * 100)).run(stop_of(bus))
    assert sent(bus) == [] and bus.closed is True


def test_a_file_is_read_to_its_end(tmp_path):
    (tmp_path / "log").write_bytes(b"1,2\n3,4")
    device = LiveDevice(str(tmp_path / "log"))
    assert device.keeps and device.read() == b"1,2\n3,4" and device.read() is None and not device.reopen()
    device.close()


def test_a_fifo_never_waits_and_outlives_its_writers(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    device = LiveDevice(str(path))
    assert not device.keeps and device.read() == b""
    for text in (b"first\n", b"second\n"):
        with path.open("wb") as writer:
            writer.write(text)
            writer.flush()
            assert device.read() == text and device.read() == b""
        assert device.read() is None and device.reopen() and device.read() == b""
    device.close()


def test_a_serial_device_that_goes_ends_with_an_error_or_an_end():
    ours, theirs = os.openpty()
    device = LiveDevice(os.ttyname(theirs))
    assert device.read() == b""
    os.write(ours, b"1,2\n")
    wait = threading.Event()
    while (data := device.read()) == b"":
        wait.wait(0.01)
    assert data is not None and data.replace(b"\r", b"") == b"1,2\n"
    os.close(ours)
    os.close(theirs)
    try:
        assert device.read() is None
    except NodeError as error:
        assert "can no longer be read: Input/output error; is the device connected?" in str(error)
    device.close()


def test_what_cannot_be_opened_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot read /nowhere: No such file or directory; expected a serial device"):
        LiveDevice("/nowhere")
    with pytest.raises(ConfigError, match=f"{tmp_path} is a folder; expected a serial device, a FIFO or a file"):
        LiveDevice(str(tmp_path))
