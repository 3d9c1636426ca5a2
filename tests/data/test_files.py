"""Recordings read from every place they may lie in, and what is refused."""

import os
import re
import zipfile

import numpy as np
import pytest

from har_edge.data import archive, cache
from har_edge.data import files as files_module
from har_edge.data.archive import describe_pattern
from har_edge.data.files import read_recordings
from har_edge.errors import DataError

NAME = "mHealth_subject7.log"


def put_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def spoil(log, line, change):
    """Return the log with one line (from 1) changed."""
    lines = log.split(b"\n")
    lines[line - 1] = change(lines[line - 1])
    return b"\n".join(lines)


def test_a_zip_a_folder_and_a_file_give_the_same(tmp_path, mhealth, log, numbers):
    folder = tmp_path / "folder"
    (folder / "MHEALTHDATASET").mkdir(parents=True)
    (folder / "README.txt").write_text("not a recording")
    (folder / "MHEALTHDATASET" / NAME).write_bytes(log)
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    archive_path = put_zip(zipped / "any.zip", {f"MHEALTHDATASET/{NAME}": log, "MHEALTHDATASET/README.txt": "no"})
    values, labels = numbers
    for where in (folder, folder / "MHEALTHDATASET", folder / "MHEALTHDATASET" / NAME, zipped, archive_path):
        (recording,) = read_recordings(mhealth, where, keep_null=True)
        assert (recording.stream, recording.rate_hz, recording.real, recording.starts) == ("subject7", 50, True, (0,))
        joined = np.concatenate([recording.samples[source] for source in ("chest", "ankle", "arm")], axis=1)
        np.testing.assert_array_equal(joined, values)
        np.testing.assert_array_equal(recording.labels, labels)
        assert {source: array.shape[1] for source, array in recording.samples.items()} == {
            "chest": 5,
            "ankle": 9,
            "arm": 9,
        }
        assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in recording.samples.values())


@pytest.mark.parametrize("keep_null", [False, True])
def test_a_sensor_keeps_the_samples_of_its_own_source(tmp_path, mhealth, log, keep_null):
    (tmp_path / NAME).write_bytes(log)
    (whole,) = read_recordings(mhealth, tmp_path, keep_null=keep_null)
    (part,) = read_recordings(mhealth, tmp_path, None, keep_null, {"arm"})
    assert list(part.samples) == ["arm"] and part.starts == whole.starts
    np.testing.assert_array_equal(part.samples["arm"], whole.samples["arm"])
    np.testing.assert_array_equal(part.labels, whole.labels)
    samples = part.samples["arm"]
    assert samples.flags.c_contiguous and samples.base is None, "the other sources must not stay in memory"


def test_null_rows_leave_gaps(tmp_path, mhealth, log, numbers):
    (tmp_path / NAME).write_bytes(log)
    (recording,) = read_recordings(mhealth, tmp_path)
    values, labels = numbers
    np.testing.assert_array_equal(recording.labels, labels[labels != 0])
    np.testing.assert_array_equal(recording.samples["chest"], values[labels != 0, :5])
    assert recording.starts == (0, 300, 800)


def test_null_rows_at_the_ends_and_alone(tmp_path, mhealth, log):
    lines = log.split(b"\n")
    null = [line.rpartition(b"\t")[0] + b"\t0" for line in lines[:5]]
    (tmp_path / NAME).write_bytes(b"\n".join([*null, *lines[:10], *null, b""]))
    (recording,) = read_recordings(mhealth, tmp_path)
    assert (len(recording), recording.starts) == (10, (0,))
    (tmp_path / NAME).write_bytes(b"\n".join(null))
    (recording,) = read_recordings(mhealth, tmp_path)
    assert (len(recording), recording.starts) == (0, (0,))


def test_streams_are_chosen_and_sorted_by_number(tmp_path, mhealth, log):
    for number in (10, 2, 1):
        (tmp_path / f"mHealth_subject{number}.log").write_bytes(log)
    names = ["subject1", "subject2", "subject10"]
    assert [recording.stream for recording in read_recordings(mhealth, tmp_path)] == names
    assert [recording.stream for recording in read_recordings(mhealth, tmp_path, ["subject10", "subject1"])] == names[
        ::2
    ]
    with pytest.raises(DataError, match="no stream subject9, expected some of subject1, subject2, subject10"):
        read_recordings(mhealth, tmp_path, ["subject9"])


LINE = {
    "23 columns": (lambda line: line.partition(b"\t")[2], r"23 columns \('.*\.\.\.'\), expected 24 columns"),
    "25 columns": (lambda line: b"1\t" + line, r"25 columns \('1.*\), expected 24 columns"),
    "empty": (lambda line: b"", "an empty line, expected 24 columns"),
    "text": (lambda line: b"walk" + line[line.index(b"\t") :], "column 0 is 'walk', expected a finite number"),
    "missing value": (lambda line: line[line.index(b"\t") :], "column 0 is '', expected a finite number"),
    "nan": (lambda line: b"nan" + line[line.index(b"\t") :], "column 0 is 'nan', expected a finite number"),
    "infinity": (lambda line: b"-inf" + line[line.index(b"\t") :], "column 0 is '-inf', expected a finite number"),
    "too large": (lambda line: b"1e39" + line[line.index(b"\t") :], "column 0 is '1e39', expected a finite number"),
    "two numbers": (lambda line: b"1 2" + line[line.index(b"\t") :], "column 0 is '1 2', expected a finite number"),
    "underscore": (lambda line: b"1_0" + line[line.index(b"\t") :], "column 0 is '1_0', expected a finite number"),
    "binary": (lambda line: b"\xff\0" + line[line.index(b"\t") :], "is not UTF-8 text"),
    "label 13": (
        lambda line: line[: line.rindex(b"\t")] + b"\t13",
        "label is '13', expected a whole number from 0 to 12",
    ),
    "label -1": (lambda line: line[: line.rindex(b"\t")] + b"\t-1", "label is '-1', expected a whole number from 0"),
    "label 1.5": (lambda line: line[: line.rindex(b"\t")] + b"\t1.5", "label is '1.5', expected a whole number"),
    "label nan": (lambda line: line[: line.rindex(b"\t")] + b"\tnan", "label is 'nan', expected a whole number"),
    "label text": (lambda line: line[: line.rindex(b"\t")] + b"\twalk", "label is 'walk', expected a whole number"),
    "label missing": (lambda line: line[: line.rindex(b"\t")] + b"\t", "label is '', expected a whole number"),
    "comma": (lambda line: line.replace(b"\t", b","), "1 columns .*, expected 24 columns"),
    "carriage return": (lambda line: b"1\r2" + line[line.index(b"\t") :], r"column 0 is '1\\r2', expected a finite"),
}


@pytest.mark.parametrize("line", [1, 777, 1200])
@pytest.mark.parametrize("kind", LINE)
def test_a_malformed_line_is_refused_with_its_number(tmp_path, mhealth, log, kind, line):
    change, message = LINE[kind]
    content = spoil(log, line, change)
    path = tmp_path / NAME
    path.write_bytes(content)
    if line == 1200 and kind == "empty":  # that is no malformed line but the end of the file
        assert sum(map(len, read_recordings(mhealth, tmp_path, keep_null=True))) == 1199
        return
    with pytest.raises(
        DataError, match=f"^{re.escape(str(path))}, line {line}: .*{message}.*; mend or remove that line$"
    ):
        read_recordings(mhealth, tmp_path)


def test_errors_that_cancel_each_other_are_found(tmp_path, mhealth, log):
    lines = log.split(b"\n")
    first, _, rest = lines[4].rpartition(b"\t")
    lines[4], lines[5] = first, rest + b"\t" + lines[5]
    (tmp_path / NAME).write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match="line 5: 23 columns"):
        read_recordings(mhealth, tmp_path)


@pytest.mark.parametrize(
    "change", [lambda log: log.replace(b"\n", b"\r\n"), lambda log: log + b"\n\n", lambda log: log[:-1]]
)
def test_line_ends_of_other_systems_are_the_same(tmp_path, mhealth, log, numbers, change):
    (tmp_path / NAME).write_bytes(change(log))
    (recording,) = read_recordings(mhealth, tmp_path, keep_null=True)
    np.testing.assert_array_equal(recording.samples["chest"], numbers[0][:, :5])


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path, mhealth, content):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(DataError, match="no rows, expected lines of numbers"):
        read_recordings(mhealth, tmp_path)


def test_a_place_without_recordings_is_refused(tmp_path, mhealth):
    (tmp_path / "notes.txt").write_text("nothing here")
    advice = "no recordings of mhealth, expected a folder, a zip or a file with names like .*har-edge data fetch"
    with pytest.raises(DataError, match=advice):
        read_recordings(mhealth, tmp_path)
    with pytest.raises(DataError, match=advice):
        read_recordings(mhealth, tmp_path / "notes.txt")
    with pytest.raises(DataError, match=advice):
        read_recordings(mhealth, put_zip(tmp_path / "other.zip", {"readme.txt": "no"}))
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        read_recordings(mhealth, tmp_path / "nowhere")


def test_a_damaged_zip_is_refused(tmp_path, mhealth, log):
    path = put_zip(tmp_path / "data.zip", {NAME: log})
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-40])
    with pytest.raises(DataError, match=r"data\.zip: not a readable zip"):
        read_recordings(mhealth, tmp_path)
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.zip:mHealth_subject7\.log: cannot be read"):
        read_recordings(mhealth, tmp_path)


def test_an_oversized_file_is_refused_before_it_is_read(tmp_path, mhealth, monkeypatch):
    path = put_zip(tmp_path / "bomb.zip", {NAME: b"0\t" * 3_000_000})
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 1_000_000)
    with pytest.raises(DataError, match="6000000 bytes, expected at most 1000000"):
        read_recordings(mhealth, path)


def test_names_in_a_zip_lead_nowhere(tmp_path, mhealth, log):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = put_zip(inner / "evil.zip", {f"../../{NAME}": log})
    (recording,) = read_recordings(mhealth, path)
    assert recording.stream == "subject7"
    assert not list(tmp_path.rglob("*.log"))


def test_hidden_files_are_left_alone(tmp_path, mhealth, log):
    (tmp_path / NAME).write_bytes(log)
    (tmp_path / ".fetch-x1").mkdir()
    (tmp_path / ".fetch-x1" / NAME).write_bytes(log[:100])
    assert len(read_recordings(mhealth, tmp_path)) == 1


def test_one_name_twice_is_refused(tmp_path, mhealth, log):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / NAME).write_bytes(log)
    with pytest.raises(DataError, match="have one name, expected each file once"):
        read_recordings(mhealth, tmp_path)


class TestCache:
    @pytest.fixture
    def parsed(self, monkeypatch):
        """Count how often a file is parsed."""
        calls = []
        parse = files_module.parse_table
        monkeypatch.setattr(files_module, "parse_table", lambda *args: calls.append(1) or parse(*args))
        return calls

    def entries(self):
        return sorted(cache.cache_folder().glob("*"))

    def test_a_file_is_parsed_once(self, tmp_path, mhealth, log, parsed):
        (tmp_path / NAME).write_bytes(log)
        first, second = (read_recordings(mhealth, tmp_path)[0] for _ in range(2))
        assert len(parsed) == 1
        assert (first.starts, first.stream) == (second.starts, second.stream)
        np.testing.assert_array_equal(first.labels, second.labels)
        for source in first.samples:
            np.testing.assert_array_equal(first.samples[source], second.samples[source])

    def test_a_changed_file_is_parsed_anew_whatever_its_time(self, tmp_path, mhealth, log, parsed):
        path = tmp_path / NAME
        path.write_bytes(log)
        times = path.stat()
        read_recordings(mhealth, tmp_path)
        lines = log.split(b"\n")
        lines[0] = lines[0][:-1] + b"2"
        path.write_bytes(b"\n".join(lines))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert read_recordings(mhealth, tmp_path)[0].labels[0] == 2
        assert len(parsed) == 2
        assert len(self.entries()) == 1

    @pytest.mark.parametrize("damage", [lambda entry: entry[:1000], lambda entry: b"", lambda entry: b"\x80\x04K\x01."])
    def test_a_damaged_entry_is_made_anew(self, tmp_path, mhealth, log, parsed, damage):
        (tmp_path / NAME).write_bytes(log)
        read_recordings(mhealth, tmp_path)
        (entry,) = self.entries()
        whole = entry.read_bytes()
        entry.write_bytes(damage(whole))
        (recording,) = read_recordings(mhealth, tmp_path)
        assert len(recording) == 1150
        assert len(parsed) == 2
        assert len(entry.read_bytes()) == len(whole)

    def test_flipped_bits_are_noticed(self, tmp_path, mhealth, log, parsed):
        (tmp_path / NAME).write_bytes(log)
        read_recordings(mhealth, tmp_path)
        (entry,) = self.entries()
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 1
        entry.write_bytes(content)
        read_recordings(mhealth, tmp_path)
        assert len(parsed) == 2

    def test_an_entry_of_another_shape_is_made_anew(self, tmp_path, mhealth, log, parsed):
        (tmp_path / NAME).write_bytes(log)
        read_recordings(mhealth, tmp_path)
        (entry,) = self.entries()
        np.savez(entry, values=np.zeros((2, 3), np.float32), labels=np.zeros(2, np.int16), starts=[0], streams=["a"])
        assert len(read_recordings(mhealth, tmp_path)[0]) == 1150
        assert len(parsed) == 2

    def test_a_folder_that_cannot_be_written_does_no_harm(self, tmp_path, mhealth, log, monkeypatch, caplog):
        (tmp_path / NAME).write_bytes(log)
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert len(read_recordings(mhealth, tmp_path)[0]) == 1150
        assert "cannot write the cache" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"all\.csv", "the name all.csv"),
        (r"(?P<stream>[a-z]+)\.csv", "names like STREAM.csv, where STREAM fits [a-z]+"),
        (r"mHealth_(?P<stream>subject\d+)\.log", r"names like mHealth_STREAM.log, where STREAM fits subject\d+"),
        (r"a.*b(?P<stream>x)", "names that fit the regular expression a.*b(?P<stream>x)"),
    ],
)
def test_a_pattern_is_said_in_words_where_it_can_be(pattern, said):
    assert describe_pattern(pattern) == said
