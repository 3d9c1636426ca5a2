"""Rows of several streams in one file: in blocks, in turn, with times; and texts that are not UTF-8 with line feeds."""

import re
import stat

import numpy as np
import pytest

from har_edge.data.cache import cache_folder
from har_edge.data.description import parse_description
from har_edge.data.files import read_recordings
from har_edge.data.runs import find_runs
from har_edge.data.tabular import decode_text
from har_edge.errors import DataError

TOML = """
name = "body"
rate_hz = 50.0
labels = ["rest", "walk"]
[files]
stream = "person"
label = "label"
{time}
[[sources]]
name = "hip"
columns = ["x"]
"""


def describe(time=""):
    return parse_description(TOML.format(time=time))


def write(path, rows, header="t,person,x,label"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def read(folder, time=""):
    return {one.stream: one for one in read_recordings(describe(time), folder)}


def in_turn(count, people=("p1", "p2"), rate_hz=50.0):
    return [(f"{row / rate_hz:.2f}", person, row, 0) for row in range(count) for person in people]


@pytest.mark.parametrize("people", [("p1", "p2"), ("p1", "p2", "p3", "p4", "p5")])
def test_persons_in_turn_are_whole_streams(tmp_path, people):
    write(tmp_path / "body.csv", in_turn(200, people))
    came = read(tmp_path)
    assert list(came) == list(people)
    for recording in came.values():
        assert recording.samples["hip"][:, 0].tolist() == list(range(200)) and recording.starts == (0,)


def test_the_second_reading_comes_from_the_cache_and_is_the_same(tmp_path):
    write(tmp_path / "body.csv", in_turn(100))
    first, again = read(tmp_path), read(tmp_path)
    for name in first:
        np.testing.assert_array_equal(first[name].samples["hip"], again[name].samples["hip"])
        assert again[name].starts == (0,) and len(again[name]) == 100


def test_the_cache_of_recordings_of_people_is_for_its_owner(tmp_path):
    write(tmp_path / "body.csv", in_turn(100))
    read(tmp_path)
    entries = list(cache_folder().glob("*.npz"))
    assert entries and {stat.S_IMODE(entry.stat().st_mode) for entry in entries} == {0o600}


def test_one_who_starts_later_and_jitter_make_no_gap(tmp_path):
    rows = [(0, "p1", x, 0) for x in range(100)]
    rows += [(0, person, x, 0) for x in range(100, 200, 2) for person in ("p2", "p2", "p1", "p1")]
    write(tmp_path / "body.csv", rows)
    assert [(name, len(one), one.starts) for name, one in read(tmp_path).items()] == [
        ("p1", 200, (0,)),
        ("p2", 100, (0,)),
    ]


def test_blocks_of_a_stream_have_gaps_between_them(tmp_path):
    rows = [(0, person, 1, 0) for person, count in (("p1", 300), ("p2", 200), ("p1", 100)) for _ in range(count)]
    write(tmp_path / "body.csv", rows)
    assert {name: one.starts for name, one in read(tmp_path).items()} == {"p1": (0, 300), "p2": (0,)}


def test_short_blocks_are_refused_rather_than_cut_to_pieces(tmp_path):
    rows = [(f"{row * 0.02:.2f}", "p1" if row // 10 % 2 else "p2", row, 0) for row in range(400)]
    write(tmp_path / "body.csv", rows)
    text = r"2 streams take turns every few rows \(400 rows in 40 runs\).*files\.time, or sort the rows by stream"
    with pytest.raises(DataError, match=text):
        read(tmp_path)


def test_with_times_bursts_are_whole_and_gaps_are_seen(tmp_path):
    rows = []
    for burst in range(20):
        for person in ("p1", "p2"):
            late = 1.0 if person == "p2" and burst >= 10 else 0.0
            rows += [(f"{(burst * 10 + k) / 50 + late:.3f}", person, burst * 10 + k, 0) for k in range(10)]
    write(tmp_path / "body.csv", rows)
    came = read(tmp_path, 'time = "t"')
    assert {name: one.starts for name, one in came.items()} == {"p1": (0,), "p2": (0, 100)}
    assert came["p2"].samples["hip"][:, 0].tolist() == list(range(200))


def test_times_of_one_stream_show_its_gaps_too(tmp_path):
    text = TOML.format(time='time = "t"').replace('stream = "person"\n', "")
    write(tmp_path / "anna.csv", [(time, "-", 1, 0) for time in (0.0, 0.02, 0.04, 0.08, 0.1)])
    (one,) = read_recordings(parse_description(text), tmp_path)
    assert (one.stream, one.starts, len(one)) == ("anna", (0, 3), 5)


def test_times_that_do_not_rise_are_refused(tmp_path):
    write(tmp_path / "body.csv", [(0.0, "p1", 1, 0), (0.0, "p2", 1, 0), (0.02, "p1", 1, 0), (0.02, "p1", 1, 0)])
    with pytest.raises(DataError, match=r"row 4: the time of stream p1 is 0.02, expected one after 0.02 .*sort"):
        read(tmp_path, 'time = "t"')


def test_a_time_that_is_none_is_refused_with_its_line(tmp_path):
    write(tmp_path / "body.csv", [(0.0, "p1", 1, 0), ("nan", "p1", 1, 0)])
    with pytest.raises(DataError, match="line 3: column 0 is 'nan', expected a finite number"):
        read(tmp_path, 'time = "t"')


def test_runs_of_a_single_stream_keep_the_order_of_the_file():
    runs = find_runs(["a"] * 5, None, 50.0, "file")
    assert (runs.order, runs.starts, runs.streams) == (None, (0,), ("a",))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_text_in_utf_16_with_its_mark_is_read(tmp_path, encoding):
    text = "t,person,x,label\r\n0,p1,7,1\r\n1,p1,8,0\r\n"
    mark = "" if encoding == "utf-16" else "\ufeff"
    (tmp_path / "body.csv").write_bytes((mark + text).encode(encoding))
    (one,) = read(tmp_path).values()
    assert one.samples["hip"][:, 0].tolist() == [7, 8] and one.labels.tolist() == [1, 0]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_named(tmp_path, encoding):
    (tmp_path / "body.csv").write_bytes("t,person,x,label\n0,p1,7,1\n".encode(encoding))
    with pytest.raises(DataError, match=r"UTF-16 without a byte order mark .*expected UTF-8 text"):
        read(tmp_path)


def test_broken_utf_16_is_named():
    with pytest.raises(DataError, match=re.escape("one.csv: begins as UTF-16 text but is none")):
        decode_text(b"\xff\xfea", "one.csv")


def test_lines_that_end_with_carriage_returns_alone_are_lines(tmp_path):
    (tmp_path / "body.csv").write_bytes(b"t,person,x,label\r0,p1,7,1\r1,p1,8,0\r")
    (one,) = read(tmp_path).values()
    assert one.samples["hip"][:, 0].tolist() == [7, 8]
