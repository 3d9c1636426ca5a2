"""Data sets of other shapes by description alone, and descriptions that make no sense."""

import re
from pathlib import Path

import numpy as np
import pytest

from har_edge.data.description import load_description, parse_description
from har_edge.data.files import read_recordings
from har_edge.data.windows import windows
from har_edge.errors import ConfigError, DataError

README = Path(__file__).parents[2] / "data" / "README.md"

PLAIN = """
name = "pump"
rate_hz = 400
labels = ["idle", "pumping", "cavitating"]
[files]
pattern = 'run(?P<stream>\\d+)\\.txt'
delimiter = ";"
header = false
columns = 4
label = 3
[[sources]]
name = "housing"
columns = [2, 0]
"""


def test_mhealth_is_built_in():
    description = load_description("mhealth")
    assert description.rate_hz == 50
    assert [(source.name, len(source.channels)) for source in description.sources] == [
        ("chest", 5),
        ("ankle", 9),
        ("arm", 9),
    ]
    assert (len(description.labels), description.null_label) == (13, 0)
    assert description.labels[12] == "jump front and back"
    assert description.source("arm").channels[3] == "gyro_x"
    with pytest.raises(ConfigError, match="mhealth has no source 'leg'; expected one of chest, ankle, arm"):
        description.source("leg")


def test_the_example_of_the_readme_works(tmp_path):
    text = README.read_text("utf-8")
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    (sample,) = re.findall(r"beginning\n\n(.*?)\n\n", text, re.S)
    (tmp_path / "gym.toml").write_text(toml)
    lines = [line.strip() for line in sample.splitlines()]
    (tmp_path / "anna.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "ben.csv").write_text("\n".join([lines[0], *lines[2:] * 60]))
    description = load_description(tmp_path / "gym.toml")
    assert [source.channels for source in description.sources] == [("x", "y", "z"), ("4", "5", "6")]
    anna, ben = read_recordings(description, tmp_path, keep_null=True)
    assert (anna.stream, anna.rate_hz, anna.labels.tolist()) == ("anna", 25, [0, 1])
    np.testing.assert_array_equal(anna.samples["wrist"], np.array([[0.1, 9.7, 0.3], [0.2, 9.6, 0.3]], np.float32))
    np.testing.assert_array_equal(anna.samples["hip"], np.array([[0, 9.8, 0.1], [0.1, 9.8, 0.1]], np.float32))
    assert [window.label for window in windows(ben, 25, 25, within_activity=True)] == [1, 1]
    (anna, ben) = read_recordings(description, tmp_path)
    assert (anna.labels.tolist(), len(ben)) == ([1], 60)


def test_a_file_without_header_by_index(tmp_path):
    (tmp_path / "run12.txt").write_text("1;note;0.5;0\n2;1,5;-3e2; 2 \n")
    (run,) = read_recordings(parse_description(PLAIN), tmp_path)
    assert (run.stream, run.rate_hz, run.labels.tolist()) == ("12", 400, [0, 2])
    assert run.samples["housing"].tolist() == [[0.5, 1], [-300, 2]]


def test_unused_columns_may_hold_anything_but_must_be_there(tmp_path):
    (tmp_path / "run1.txt").write_text("1;a;1;0\n1;1;0\n1;a;b;1;0\n")
    with pytest.raises(DataError, match=r"run1\.txt, line 2: 3 columns \('1;1;0'\), expected 4 columns"):
        read_recordings(parse_description(PLAIN), tmp_path)


def test_several_files_of_one_stream_follow_each_other(tmp_path):
    text = PLAIN.replace(r"'run(?P<stream>\d+)\.txt'", r"'(?P<stream>[a-z]+)-\d+\.txt'")
    (tmp_path / "b-10.txt").write_text("3;;3;1\n")
    (tmp_path / "b-9.txt").write_text("1;;1;1\n2;;2;1\n")
    (run,) = read_recordings(parse_description(text), tmp_path)
    assert run.samples["housing"][:, 0].tolist() == [1, 2, 3]
    assert run.starts == (0, 2)


def test_a_column_may_name_the_stream(tmp_path):
    text = PLAIN.replace("label = 3", "label = 3\nstream = 1").replace("(?P<stream>\\d+)", "\\d+")
    (tmp_path / "run1.txt").write_text("1;b;1;0\n2;b;2;0\n3;a;3;0\n5;a;3;0\n6;a;3;0\n4;b;4;1\n")
    a, b = read_recordings(parse_description(text), tmp_path)
    assert (a.stream, a.samples["housing"][:, 0].tolist(), a.starts) == ("a", [3, 3, 3], (0,))
    assert (b.stream, b.samples["housing"][:, 0].tolist(), b.starts) == ("b", [1, 2, 4], (0, 2))
    assert [run.stream for run in read_recordings(parse_description(text), tmp_path, ["b"])] == ["b"]
    with pytest.raises(DataError, match="no stream c, expected some of a, b"):
        read_recordings(parse_description(text), tmp_path, ["c"])
    (tmp_path / "run1.txt").write_text("1;b;1;0\n2;b b;2;0\n")
    with pytest.raises(DataError, match=r"line 2: stream is 'b b' in 1 row of \d+, first in this one; expected"):
        read_recordings(parse_description(text), tmp_path)


def test_without_labels_nobody_knows_the_activity(tmp_path):
    text = PLAIN.replace("label = 3", "").replace('labels = ["idle", "pumping", "cavitating"]', "")
    (tmp_path / "run1.txt").write_text("1;;1;x\n" * 10)
    (run,) = read_recordings(parse_description(text), tmp_path)
    assert set(run.labels.tolist()) == {-1}
    assert [window.label for window in windows(run, 5, 5, within_activity=False)] == [None, None]
    assert list(windows(run, 5, 5, within_activity=True)) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "line 1: no column 'x' in the header, which has a, b"),
        ("x,x,label\n1,2,up\n", "line 1: column 'x' appears twice"),
        ("x,label\n", "no rows"),
        ("x,label\n1,up\n2,sideways\n", "line 3: label is 'sideways', expected one of up, down"),
        ('x,label\n"1,0",up\n', r"line 2: 3 columns .*, expected 2 columns"),
        ("x,label\n1,up\n\n2,up\n", "line 3: an empty line, expected 2 columns"),
        ("x,label\n1,up\ny,up\n", "line 3: column 0 is 'y', expected a finite number"),
    ],
)
def test_malformed_files_with_a_header(tmp_path, content, message):
    description = parse_description(
        'name = "a"\nrate_hz = 1\nlabels = ["u", "d"]\nlabel_values = ["up", "down"]\n'
        '[files]\nlabel = "label"\n[[sources]]\nname = "s"\ncolumns = ["x"]'
    )
    (tmp_path / "one.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_recordings(description, tmp_path)
    (tmp_path / "one.csv").write_bytes(b"\xef\xbb\xbf x ,label\r\n1, up \r\n")
    (one,) = read_recordings(description, tmp_path)
    assert (one.samples["s"].tolist(), one.labels.tolist()) == ([[1]], [0])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rate_hz", "rate", "unknown key `rate` in the top of the file; did you mean rate_hz?"),
        ("400", "0", "rate_hz is 0.0, expected a number above 0"),
        ("400", "nan", "rate_hz is nan, expected a number above 0"),
        ("400", "'fast'", "Expected `float`, got `str`"),
        ("400", "", "Invalid value"),
        ('"pump"', '"a pump"', "name is 'a pump', expected letters, digits, _ and -"),
        ('"housing"', '"a/b"', "source is named 'a/b', expected letters"),
        ("columns = [2, 0]", "columns = []", "source housing has no columns"),
        ("columns = [2, 0]", "columns = [2, 2]", "channels of source housing holds '2' twice, expected each once"),
        ("columns = [2, 0]", "columns = [2, 3]", "columns holds 3 twice, expected each once"),
        ("columns = [2, 0]", "columns = [2, 4]", r"column 4 is out of range, expected 0 to 4 \(exclusive\)"),
        ("columns = [2, 0]", "columns = [2, 'x']", "column 'x' is a name, expected an index from 0"),
        (
            "columns = [2, 0]",
            "columns = [2, 0]\nchannels = ['x']",
            "has 1 channels for 2 columns, expected one for each",
        ),
        ("columns = 4", "", "files.columns is missing: without a header, say how many columns a line has"),
        ('";"', '"::"', "delimiter is '::', expected one character"),
        ('";"', '"\\n"', "delimiter is '\\\\n', expected one character"),
        ("(?P<stream>", "(?P<subject>", r"expected a group \(\?P<stream>\.\.\.\), or the column files.stream"),
        ("(?P<stream>", "(", "expected a group"),
        ("\\d+)", "\\d+", "expected a regular expression: missing"),
        ('"idle", ', '"pumping", ', "labels holds 'pumping' twice"),
        ("[files]", "null_label = 3\n[files]", "null_label is 3, expected an index into the 3 labels"),
        ("[files]", "label_values = [1, 2]\n[files]", "2 label_values for 3 labels, expected one for each"),
        ("[files]", "label_values = [1, 2, 1]\n[files]", "label_values holds '1' twice"),
        ("labels = ", "#", "files.label is given but labels is not"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(tmp_path, old, new, message):
    path = tmp_path / "pump.toml"
    path.write_text(PLAIN.replace(old, new, 1))
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: .*{message}"):
        load_description(path)


def test_an_unknown_description_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no stream description 'pamap', expected .*|expected mhealth or the path"):
        load_description("pamap")
    (tmp_path / "x.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
        load_description(tmp_path / "x.toml")
