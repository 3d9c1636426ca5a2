"""A device's lines to windows: as from a recording where nothing is wrong, and where sensors must agree, they do."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.data.description import load_description
from har_edge.data.faults import ValidationLimits
from har_edge.data.grouping import regroup, regroup_recording
from har_edge.data.live import LineSplitter, LiveStream, lay_out
from har_edge.data.recording import Window
from har_edge.data.synthetic import synthesize
from har_edge.data.windows import windows
from har_edge.errors import ConfigError

MHEALTH = load_description("mhealth")
SOURCES = [source.name for source in MHEALTH.sources]
RATE, LENGTH, HOP = 50.0, 40, 20
BEGIN = 1_700_000_000.0  # a multiple of the hop


def stream(sources=("chest",), grouping="location", stamped=True, length=LENGTH, hop=HOP, **limits):
    layout = lay_out(MHEALTH, regroup(MHEALTH, grouping), list(sources), stamped=stamped)
    return LiveStream("anna", layout, RATE, length, hop, ValidationLimits(**limits))


def line(number, time_s=None, width=5):
    """Return a line whose values tell its number."""
    stamp = [] if time_s is None else [f"{time_s:.6f}"]
    return "\t".join([*stamp, *(str(number + column / 8) for column in range(width))]).encode() + b"\n"


def numbers(window):
    return window.samples["chest"][:, 0].astype(int).tolist()


@pytest.mark.parametrize("grouping", ["location", "all", "type"])
@pytest.mark.parametrize("stamped", [True, False])
def test_the_lines_of_a_recording_make_its_windows(grouping, stamped):
    recording = synthesize(["anna"], seconds_per_activity=1)[0]
    table = np.concatenate(list(recording.samples.values()), axis=1)
    grouped = regroup(MHEALTH, grouping)
    live = stream([source.name for source in grouped.sources], grouping, stamped)
    made = []
    for row, values in enumerate(table):
        now = BEGIN + row / RATE
        stamp = [f"{now:.3f}"] if stamped else []
        made += live.feed(("\t".join([*stamp, *map(repr, values.tolist())]) + "\r\n").encode(), now)
    expected = list(windows(regroup_recording(recording, MHEALTH, grouping), LENGTH, HOP, within_activity=False))
    assert len(made) == len(expected) > 20 and live.counts["lines"] == len(table)
    for (captured, one), other in zip(made, expected, strict=True):
        assert captured == pytest.approx(BEGIN + (other.start + LENGTH - 1) / RATE, abs=1e-6)
        assert (one.stream, one.label, one.start) == ("anna", None, other.start)
        assert one.seq == round(BEGIN * RATE / HOP) + other.seq
        assert list(one.samples) == list(other.samples)
        for name, values in one.samples.items():
            np.testing.assert_array_equal(values, other.samples[name])


def test_a_sensor_of_some_sources_takes_their_columns_only():
    layout = lay_out(MHEALTH, MHEALTH, ["arm", "chest"], stamped=False)
    assert layout.width == 14 and layout.channels[4:6] == ("chest.ecg_2", "arm.acc_x")
    assert layout.columns == {"arm": tuple(range(5, 14)), "chest": tuple(range(5))}
    by_type = lay_out(MHEALTH, regroup(MHEALTH, "type"), ["ecg", "mag"], stamped=True)
    assert by_type.width == 9 and by_type.columns == {"ecg": (0, 1), "mag": (2, 3, 4, 5, 6, 7)}
    with pytest.raises(ConfigError, match="mhealth has no source 'leg'; expected one of chest, ankle, arm"):
        lay_out(MHEALTH, MHEALTH, ["leg"], stamped=False)


@given(st.lists(st.integers(1, 400), max_size=60), st.booleans())
@settings(max_examples=30, deadline=None)
def test_how_bytes_are_cut_on_their_way_changes_nothing(cuts, stamped):
    data = b"".join(line(row, BEGIN + row / RATE if stamped else None) for row in range(100))
    whole, pieces = stream(stamped=stamped), stream(stamped=stamped)
    expected, made, at = whole.feed(data, BEGIN), [], 0
    for cut in [*cuts, len(data)]:
        made += pieces.feed(data[at : at + cut], BEGIN)
        at += cut
    assert [numbers(window) for _, window in made] == [numbers(window) for _, window in expected]
    assert [window.seq for _, window in made] == [window.seq for _, window in expected] and len(made) == 4


@given(st.sets(st.integers(0, 399), max_size=8), st.sampled_from([10, 20, 40, 55]))
@settings(max_examples=30, deadline=None)
def test_no_window_straddles_a_gap(lost, hop):
    live = stream(hop=hop)
    made = []
    for row in set(range(400)) - lost:
        made += live.feed(line(row, BEGIN + row / RATE), BEGIN + row / RATE)
    for _, window in made:
        assert set(np.diff(numbers(window))) == {1}
    whole = [window for window in range(0, 400 - LENGTH + 1) if not lost & set(range(window, window + LENGTH))]
    begins = [numbers(window)[0] for _, window in made]
    on_grid = [row for row in whole if (round(BEGIN * RATE) + row) % hop == 0]
    assert begins == on_grid  # every window of the grid that is whole is made, and no other
    assert [window.seq for _, window in made] == [(round(BEGIN * RATE) + row) // hop for row in on_grid]


@given(
    st.lists(st.tuples(st.floats(0, 15), st.floats(-0.015, 0.015)), min_size=2, max_size=2),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=10, deadline=None)
def test_sensors_on_several_devices_agree_on_when_windows_begin(devices, seed):
    """Started at other times, with clocks of a little other pace and jitter: the same seq is the same moment."""
    rng = np.random.default_rng(seed)
    captured = []
    for delay_s, pace in devices:
        live, made = stream(), {}
        times = BEGIN + delay_s + np.arange(2000) / (RATE * (1 + pace)) + rng.uniform(-0.002, 0.002, 2000)
        for row, time_s in enumerate(times.tolist()):
            for end, window in live.feed(line(row, time_s), time_s):
                assert window.seq not in made and set(np.diff(numbers(window))) == {1}
                made[window.seq] = times[numbers(window)[0]]
                assert end == pytest.approx(time_s, abs=1e-5)
        captured.append(made)
        assert live.counts["gaps"] == live.counts["off_rate"] == 0
        assert all(after == before + 1 for before, after in pairwise(made))
        off = [abs(begin - seq * HOP / RATE) * RATE for seq, begin in made.items()]
        assert max(off) < 3
    both = captured[0].keys() & captured[1].keys()
    assert len(both) > 20
    assert max(abs(captured[0][seq] - captured[1][seq]) for seq in both) < 5 / RATE


def test_a_restarted_sensor_numbers_on():
    seqs = []
    for first in (0, 1000):
        live = stream()
        for row in range(first, first + 200):
            seqs += [window.seq for _, window in live.feed(line(row, BEGIN + row / RATE), 0.0)]
    assert seqs == sorted(set(seqs))


def test_by_arrival_windows_keep_their_place_although_lines_come_in_bunches():
    """1 % slow for four minutes, in bunches of ten: by count alone, windows would be 2.4 s late at the end."""
    live, begins = stream(stamped=False), {}
    times = BEGIN + np.arange(12_000) / (RATE * 0.99)
    for row in range(0, 12_000, 10):
        now = float(times[row + 9])
        for _, window in live.feed(b"".join(line(number) for number in range(row, row + 10)), now):
            assert window.seq not in begins
            begins[window.seq] = times[numbers(window)[0]]
    off = [(begin - seq * HOP / RATE) * RATE for seq, begin in begins.items()]
    assert len(begins) > 590 and max(map(abs, off)) < 15 and live.counts["off_rate"] == 0


def test_lines_as_fast_as_they_come_make_every_window_and_a_warning(caplog):
    live = stream(stamped=False)
    made = live.feed(b"".join(line(row) for row in range(2000)), BEGIN)
    assert [numbers(window)[0] for _, window in made] == list(range(0, 2000 - LENGTH + 1, HOP))
    assert [window.seq for _, window in made] == list(range(made[0][1].seq, made[0][1].seq + 99))
    assert "inf samples a second came by the arrival of lines, as they have no --timestamps; expected 50" in caplog.text


def test_numbers_of_windows_rise_although_the_next_device_comes_too_soon():
    live = stream(stamped=False)
    first = live.feed(b"".join(line(row) for row in range(500)), BEGIN)
    live.finish(BEGIN)
    second = live.feed(b"".join(line(row) for row in range(LENGTH)), BEGIN + 1)
    assert [window.seq for _, window in second] == [first[-1][1].seq + 1]


def test_windows_of_another_rate_are_withheld(caplog):
    live = stream()
    for row in range(2000):
        live.feed(line(row, BEGIN + row / 100), 0.0)
    assert "100 samples a second came by the time stamps; expected 50; windows are withheld" in caplog.text
    assert live.counts["withheld_windows"] == (2000 - 501) // HOP + 1


def test_unreadable_lines_are_counted_and_said_with_what_is_wrong(caplog):
    cases = {
        b"acc x\tacc y\tacc z\tecg 1\tecg 2": "holds something that is no number",
        b"": "1 column (''), expected 5 with '\\t' between them",
        b"1\t2\t3\t4": "4 columns ('1\\t2\\t3\\t4'), expected 5",
        b"1\t2\t3\t4\t1_0": "holds something that is no number",
        b"1\t2\t3\t\xff\t5": "holds something that is no number",
        b"1\t2\t3\t\t5": "holds something that is no number",
        b"9" * 1000: "it is too long; expected 5 numbers and an end of line",
    }
    for text, said in cases.items():
        caplog.clear()
        live = stream(stamped=False)
        live.feed(text + b"\n" + line(1), BEGIN)
        assert live.counts["unreadable_lines"] == 1 and live.counts["lines"] == 2, text
        assert said in caplog.text
    live = stream()
    for time_s in ("nan", "-1", "1e12"):
        live.feed(f"{time_s}\t1\t2\t3\t4\t5\n".encode(), BEGIN)
    assert live.counts["unreadable_lines"] == 3
    assert "its time is -1.0, expected seconds from 0 to 1e+11" in caplog.text or "its time is nan" in caplog.text


def test_numbers_that_float32_cannot_hold_are_none():
    live = stream(stamped=False)
    live.feed(line(1) + b"1e39\t2\t3\t4\t5\n", BEGIN)
    assert live.counts["not_finite_samples"] == live.counts["held_samples"] == 1


def test_what_comes_after_the_end_starts_a_segment():
    live = stream(stamped=False)
    live.feed(b"".join(line(row) for row in range(LENGTH - 1)), BEGIN)
    ((_, window),) = live.feed(line(LENGTH - 1)[:-1], BEGIN) + live.finish(BEGIN)
    assert numbers(window) == list(range(LENGTH))
    assert live.feed(b"".join(line(row) for row in range(LENGTH - 1)), BEGIN + 0.1) == []


def test_a_silent_device_is_said_once_while_it_is_silent(caplog):
    live = stream()
    for second in range(25):
        live.tick(BEGIN + second)
    assert [record.message for record in caplog.records] == ["no line for 10 s: is the device connected?"]
    live.feed(line(1, BEGIN), BEGIN + 25)
    live.tick(BEGIN + 30)
    live.tick(BEGIN + 36)
    assert live.counts["silences"] == 2


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(1, 20))
def test_the_splitter_gives_the_lines_and_holds_no_more_than_one(chunks, limit):
    splitter, made = LineSplitter(limit), []
    for chunk in chunks:
        made += splitter.feed(chunk)
        assert len(splitter._rest) <= limit
    made += splitter.finish()
    lines = b"".join(chunks).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    assert made == [line.rstrip(b"\r") if len(line) <= limit else None for line in lines]


@given(st.lists(st.binary(max_size=200), max_size=30), st.booleans())
def test_no_bytes_raise_and_every_window_is_finite(chunks, stamped):
    live = stream(stamped=stamped, length=2, hop=1)
    for chunk in chunks:
        for captured, window in live.feed(chunk.replace(b"\x00", b"\t1\n"), BEGIN):
            assert isinstance(window, Window) and captured >= 0
            assert np.isfinite(window.samples["chest"]).all()
    live.finish(BEGIN)


def test_milliseconds_are_named(caplog):
    live = stream()
    assert live.feed(line(0, 1_700_000_000_000.0), 1.7e9) == [] and live.counts["unreadable_lines"] == 1
    assert "its time is 1700000000000, which looks like milliseconds; expected seconds since 1970" in caplog.text
