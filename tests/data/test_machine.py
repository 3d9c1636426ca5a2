"""The second data set: another rate, other channels and labels, by data/machine.toml alone; made up, and it says so."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.data.description import load_description, parse_description
from har_edge.data.files import read_recordings
from har_edge.data.grouping import regroup
from har_edge.data.windows import default_window, windows

DATA = Path(__file__).parents[2] / "data"
TOML = str(DATA / "machine.toml")


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_machine", DATA / "make_machine.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_machine"] = module  # where dataclasses look for annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_machine"]


@pytest.fixture(scope="module")
def made(maker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine")
    maker.write(folder, machines=3, seed=1, seconds=24.0)
    return folder


def test_its_recordings_are_read_by_the_description_alone(made):
    recordings = read_recordings(load_description(TOML), made)
    assert [recording.stream for recording in recordings] == ["fan1", "fan2", "fan3"]
    for recording in recordings:
        assert (recording.rate_hz, len(recording), recording.real) == (100.0, 4 * 2400, False)
        assert {name: values.shape[1] for name, values in recording.samples.items()} == {"motor": 4, "bearing": 4}
        assert np.unique(recording.labels).tolist() == [1, 2, 3, 4]
        assert len(recording.starts) == 8  # every condition twice, standing still between
        assert len(list(windows(recording, *default_window(100.0), within_activity=True))) == 8 * 3


def test_standing_still_is_kept_where_it_is_asked_for(made):
    recording = read_recordings(load_description(TOML), made, ["fan2"], keep_null=True)[0]
    assert recording.starts == (0,) and (recording.labels == 0).sum() == 8 * 400


def test_the_same_seed_makes_the_same_bytes_and_another_one_others(maker, tmp_path):
    texts = []
    for place, seed in (("a", 5), ("b", 5), ("c", 6)):
        (path,) = maker.write(tmp_path / place, machines=1, seed=seed, seconds=2.0)
        texts.append(path.read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_a_fan_depends_on_its_name_alone_and_not_on_how_many_there_are(maker, made, tmp_path):
    maker.write(tmp_path, machines=1, seed=1, seconds=24.0)
    assert (tmp_path / "fan1.csv").read_bytes() == (made / "fan1.csv").read_bytes()


def test_conditions_do_what_they_are_called(maker):
    """Imbalance moves at the speed of the shaft, a worn bearing lets the mount ring, a blocked filter moves slowly."""
    rng = np.random.default_rng(3)
    fan = maker.draw_fan(rng)

    def power(condition, low_hz, high_hz):
        values = maker.run_fan(fan, condition, 60.0, rng)[:, 4:7]
        spectrum = np.abs(np.fft.rfft(values - values.mean(0), axis=0)) ** 2
        hz = np.fft.rfftfreq(len(values), 1 / maker.RATE_HZ)
        return spectrum[(hz >= low_hz) & (hz < high_hz)].sum()

    shaft = (fan.speed_hz * 0.9, fan.speed_hz * 1.1)
    mount = (fan.mount_hz * 0.9, fan.mount_hz * 1.1)
    assert power("imbalance", *shaft) > 1.5 * power("normal", *shaft)
    assert power("worn_bearing", *mount) > 2 * power("normal", *mount)
    assert power("blocked_filter", 0.2, 4.0) > 2 * power("normal", 0.2, 4.0)
    assert power("standing", *shaft) < 0.1 * power("normal", *shaft)


def test_it_can_be_grouped_by_type():
    grouped = regroup(load_description(TOML), "type")
    assert {source.name: len(source.channels) for source in grouped.sources} == {"acc": 6, "temp": 1, "mic": 1}


def test_data_info_calls_it_synthetic(made, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["data", "info", "--description", TOML, "--data", str(made)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"machine: synthetic data from {made}; 100 Hz; motor (4 channels), bearing (4 channels)"
    assert "fan1 0 standing 3,200 8 32.0" in lines and "4 blocked filter 2,400 2 24.0" in lines
    assert main(["data", "info", "--description", TOML, "--data", str(made), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["real"] is False and document["rows"] == 3 * 12_800


def test_descriptions_are_of_real_data_unless_they_say_otherwise():
    text = 'name = "d"\nrate_hz = 1.0\n[[sources]]\nname = "a"\ncolumns = ["x"]\n'
    assert not parse_description(text).synthetic and parse_description("synthetic = true\n" + text).synthetic
