"""What is done about each fault of a device: every row of docs/reference/device-faults.md has its test."""

import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.data.faults import Fault, FaultLog, ValidationLimits
from har_edge.data.validation import StreamValidator

RATE = 50.0
NAN = math.nan


class Device:
    """A validator of two channels and what it made of the readings so far; each reading is a number that counts up."""

    def __init__(self, stamped=True, rate_hz=RATE, **limits):
        self.faults = FaultLog()
        self.validator = StreamValidator(
            ["arm.acc_x", "arm.acc_y"], rate_hz, self.faults, stamped=stamped, limits=ValidationLimits(**limits)
        )
        self.samples, self.now, self.count = [], 1000.0, 0

    def send(self, apart_s=1 / RATE, x=None, y=None):
        self.now += apart_s
        self.count += 1
        values = np.array([self.count if x is None else x, -self.count if y is None else y], np.float32)
        made = self.validator.validate(self.now, values, self.now)
        self.samples += made
        return made

    def garble(self):
        self.validator.reject(self.now, "3 columns ('1,2,3'), expected 2")

    def count_of(self, *names):
        counts = self.faults.counts
        return counts.get(names[0], 0) if len(names) == 1 else tuple(counts.get(name, 0) for name in names)

    @property
    def segments(self):
        return sum(sample.fresh for sample in self.samples)


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_good_readings_pass_as_they_are(caplog):
    device = Device()
    for _ in range(100):
        device.send()
    assert [sample.values.tolist() for sample in device.samples] == [[n, -n] for n in range(1, 101)]
    assert device.segments == 1 and device.samples[0].fresh
    assert set(device.faults.counts.values()) == {0} and warnings(caplog) == []


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_number_that_is_none_is_held_for_five_samples_and_then_a_gap(bad, caplog):
    device = Device()
    device.send()
    for _ in range(5):
        device.send(x=bad)
    assert [sample.values.tolist() for sample in device.samples[1:]] == [[1, -n] for n in range(2, 7)]
    assert device.send(x=bad) == [] and device.send(x=bad) == []
    (back,) = device.send()
    assert back.fresh and back.values.tolist() == [9, -9]
    assert device.count_of("not_finite_samples", "held_samples", "lost_samples", "gaps") == (7, 5, 2, 1)
    assert warnings(caplog) == [
        "no finite number came for arm.acc_x; holding the last ones",
        "a gap (1 lost): no value for 6 in a row, and at most 5 are held",
    ]


def test_there_is_nothing_to_hold_at_the_start():
    device = Device()
    assert device.send(x=NAN) == [] and device.send(y=NAN) == []
    assert device.send()[0].fresh
    assert device.count_of("lost_samples", "gaps", "held_samples") == (2, 0, 0)


@pytest.mark.parametrize("stamped", [True, False])
def test_unreadable_lines_are_filled_in_for_five_samples(stamped, caplog):
    device = Device(stamped)
    device.send()
    for _ in range(5):
        device.garble()
    made = device.send(6 / RATE)
    assert [sample.values.tolist() for sample in made] == [[1, -1]] * 5 + [[2, -2]]
    np.testing.assert_allclose(np.diff([sample.time_s for sample in device.samples]), 1 / RATE)
    assert device.segments == 1 and device.count_of("unreadable_lines", "held_samples", "lost_samples") == (5, 5, 0)
    assert warnings(caplog) == ["dropped a line: 3 columns ('1,2,3'), expected 2"]


@pytest.mark.parametrize("stamped", [True, False])
def test_more_unreadable_lines_than_five_in_a_row_are_a_gap(stamped, caplog):
    device = Device(stamped)
    device.send()
    for _ in range(6):
        device.garble()
    (back,) = device.send(7 / RATE)
    assert back.fresh and device.count_of("gaps", "lost_samples", "held_samples") == (1, 6, 0)
    assert warnings(caplog)[1] == (
        "a gap (6 lost): 140 ms and 6 dropped lines between two samples, expected 20.0 ms and none"
    )


def test_time_tells_whether_a_dropped_line_was_a_sample():
    device = Device()
    device.send()
    device.garble()  # such as a word of greeting between two samples
    assert len(device.send()) == 1 and device.count_of("held_samples") == 0
    device.garble()
    (back,) = device.send(4 / RATE)  # three samples are missing for one line
    assert back.fresh and device.count_of("gaps", "lost_samples") == (1, 3)


def test_more_than_one_and_a_half_periods_are_a_gap():
    device = Device()
    device.send()
    assert not device.send(1.49 / RATE)[0].fresh
    assert device.send(1.51 / RATE)[0].fresh
    assert device.send(10 / RATE)[0].fresh
    assert device.count_of("gaps", "lost_samples") == (2, 10)


def test_without_time_stamps_silence_is_a_gap_and_bunches_are_none():
    device = Device(stamped=False)
    for _ in range(10):
        device.send(0.9)
        for _ in range(44):
            device.send(0.0)
    assert device.segments == 1
    assert device.send(1.2)[0].fresh and device.count_of("gaps", "lost_samples") == (1, 59)
    slow = Device(stamped=False, rate_hz=1.0)
    for _ in range(3):
        slow.send(9.0)
    assert slow.segments == 1 and slow.send(11.0)[0].fresh


def test_a_line_whose_time_is_not_later_is_dropped(caplog):
    device = Device()
    device.send()
    assert device.send(0.0) == [] and device.send(-0.5) == []
    device.now += 0.5
    assert device.validator.validate(device.now, np.zeros(2, np.float32), device.now) == []
    assert not device.send()[0].fresh and device.count_of("late_lines", "gaps", "clock_jumps") == (3, 0, 0)
    assert warnings(caplog)[0] == "dropped a line: its time 1000.020000 is not after 1000.020000 of the one before"


@pytest.mark.parametrize(("seconds", "text"), [(-1.0, "-1.000"), (-3600.0, "-3600.000"), (61.0, "+61.000")])
def test_a_clock_that_is_set_starts_a_segment(seconds, text, caplog):
    device = Device()
    device.send()
    (back,) = device.send(seconds)
    assert back.fresh and not device.send()[0].fresh
    assert device.count_of("clock_jumps", "gaps", "lost_samples") == (1, 0, 0)
    assert warnings(caplog) == [f"times jumped by {text} s; starting a new segment"]


def test_a_channel_that_stands_still_while_others_move_is_named_and_kept(caplog):
    device = Device()
    for _ in range(61 * 50):
        device.send(y=7.0)
    assert len(device.samples) == 61 * 50 and device.segments == 1
    assert warnings(caplog) == ["no change for 60 s while others moved: arm.acc_y"]
    assert device.count_of("stuck_channels", "stuck arm.acc_y", "stuck arm.acc_x") == (1, 1, 0)
    device.send()
    for _ in range(60 * 50 + 1):
        device.send(y=7.0)
    assert device.count_of("stuck arm.acc_y") == 2


def test_a_device_that_stands_still_altogether_is_told_apart(caplog):
    device = Device(stuck_s=1.0)
    for _ in range(60):
        device.send(x=1.0, y=7.0)
    text = "no change for 1 s in any channel; is the device alive: arm.acc_x, arm.acc_y"
    assert warnings(caplog) == [text] and device.count_of("stuck_channels") == 2


def test_what_is_missing_does_not_count_as_standing_still():
    device = Device(stuck_s=0.1, held=100)
    device.send()
    for _ in range(50):
        device.send(y=NAN)
    assert device.count_of("stuck_channels") == 0


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize(
    ("rate", "warned", "refused"), [(50.9, 0, 0), (49.1, 0, 0), (51.1, 1, 0), (48.9, 1, 0), (56, 1, 1), (25, 1, 1)]
)
def test_a_rate_that_is_off_is_said_and_far_off_refused(stamped, rate, warned, refused, caplog):
    device = Device(stamped)
    for _ in range(1501):
        device.send(1 / rate)
    measured = f"{rate:.4g} samples a second came by the "
    said = [text for text in warnings(caplog) if measured in text]
    assert len(said) == warned and (device.count_of("off_rate") > 0) == bool(warned)
    assert device.validator.refuses == (stamped and bool(refused))
    if warned:
        assert said[0].endswith("expected 50; windows are withheld" if device.validator.refuses else "expected 50")
    for _ in range(1501):
        device.send(1 / RATE)
    assert not device.validator.refuses


def test_gaps_do_not_change_the_measured_rate():
    device = Device()
    for number in range(2000):
        device.send(3.0 if number % 100 == 99 else 1 / RATE)
    assert device.count_of("gaps", "off_rate") == (20, 0)


def test_each_kind_is_logged_at_once_and_then_once_a_minute(caplog):
    faults = FaultLog()
    for second in range(125):
        faults.record(Fault.GAP, 5000.0 + second, f"gap at {second}")
    faults.record(Fault.JUMP, 5125.0, "a jump")
    faults.record(Fault.GAP, 10.0, "after the clock was set back")
    assert warnings(caplog) == [
        "gap at 0",
        "gap at 60 (59 more of the kind since the last such line)",
        "gap at 120 (59 more of the kind since the last such line)",
        "a jump",
        "after the clock was set back (4 more of the kind since the last such line)",
    ]
    assert faults.counts["gaps"] == 126 and faults.counts["clock_jumps"] == 1


EVENT = st.sampled_from(["good"] * 8 + ["lost", "garbled", "nan", "late"])


@given(st.lists(EVENT, max_size=120), st.integers(0, 8))
def test_whatever_comes_segments_are_even_in_time_finite_and_account_for_every_sample(events, held):
    device = Device(held=held)
    last_good = {}  # how long each value of a channel stood, in samples
    apart = 0.0
    for event in events:
        apart += 1 / RATE
        if event == "garbled":
            device.garble()
        elif event == "late":
            apart -= 1 / RATE
            if device.samples or device.count:
                device.now, before = device.now - 0.1, device.now
                device.send(0.0)
                device.now = before
        elif event != "lost":
            device.send(apart, x=NAN if event == "nan" else None)
            apart = 0.0
    for before, after in zip(device.samples, device.samples[1:], strict=False):
        assert np.isfinite(after.values).all() and after.time_s > before.time_s
        if not after.fresh:
            assert after.time_s - before.time_s < 1.5 / RATE
            same = after.values[0] == before.values[0]
            last_good[0] = last_good.get(0, 0) + 1 if same else 0
            assert last_good[0] <= held
        else:
            last_good.clear()
    first = next((index for index, event in enumerate(events) if event in ("good", "nan")), len(events))
    last = max((index for index, event in enumerate(events) if event in ("good", "nan")), default=-1)
    due = sum(event != "late" for event in events[first : last + 1])
    lates = sum(event == "late" for event in events[first : last + 1])
    given_or_lost = len(device.samples) + device.count_of("lost_samples")
    assert due <= given_or_lost <= due + lates


@given(st.lists(st.sampled_from([0.02, 0.02, 0.02, 0.03, 0.031, -0.3, -5.0, 0.0, 2.0, 100.0]), max_size=60))
def test_times_rise_within_every_segment(steps):
    device = Device()
    for step in steps:
        device.send(step)
    for before, after in zip(device.samples, device.samples[1:], strict=False):
        assert after.fresh or 0 < after.time_s - before.time_s <= 0.0301


@pytest.mark.parametrize(
    ("apart_s", "said"),
    [
        (3600.0, "its times are 1.0 h ahead of the clock here"),
        (-3600.0, "its times are 1.0 h behind the clock here"),
        (-300.0, "its times are 5.0 min behind the clock here"),
        (400 * 86_400.0, "its times are 400.0 days ahead of the clock here"),
        (6.0, "its times are 6.0 s ahead of the clock here"),
    ],
)
def test_a_clock_that_is_off_is_named_once_and_counted(apart_s, said, caplog):
    device, now = Device(), 1.7e9
    for row in range(100):
        device.samples += device.validator.validate(
            now + row / RATE + apart_s, np.array([row, -row], np.float32), now + row / RATE
        )
    (line,) = warnings(caplog)
    assert line.startswith(f"{said}: its windows do not join those of other devices")
    assert device.count_of("off_clock_samples") == 100 == len(device.samples) and device.segments == 1


def test_times_since_the_start_of_a_device_are_named(caplog):
    faults, now = FaultLog(), 1.7e9
    validator = StreamValidator(["x"], RATE, faults, stamped=True, limits=ValidationLimits(skew_s=math.inf))
    for row in range(10):
        validator.validate(12.5 + row / RATE, np.array([row], np.float32), now + row / RATE)
    (line,) = warnings(caplog)
    assert line.startswith("its times count from some start of the device (12.5 s came), not from 1970")
    assert "seconds since 1970, or leave out --timestamps" in line and faults.counts["off_clock_samples"] == 10


@pytest.mark.parametrize("apart_s", [-4.9, 0.0, 4.9])
def test_a_clock_that_is_nearly_right_and_a_file_of_last_year_are_fine(apart_s, caplog):
    for skew_s, late_s in ((5.0, 0.0), (math.inf, -365 * 86_400.0)):
        faults = FaultLog()
        validator = StreamValidator(["x"], RATE, faults, stamped=True, limits=ValidationLimits(skew_s=skew_s))
        validator.validate(1.7e9 + apart_s + late_s, np.array([1], np.float32), 1.7e9)
        assert faults.counts["off_clock_samples"] == 0
    assert warnings(caplog) == []
