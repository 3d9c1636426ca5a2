"""Channels grouped anew: nothing lost, nothing doubled, names that say where a channel is from."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.data.description import load_description, parse_description
from har_edge.data.files import read_recordings
from har_edge.data.grouping import GROUPINGS, regroup, regroup_recording
from har_edge.data.recording import Recording
from har_edge.data.synthetic import synthesize
from har_edge.data.windows import windows
from har_edge.errors import ConfigError, DataError

MHEALTH = load_description("mhealth")
NAMES = st.text("ab_-", min_size=1, max_size=4)


def described(sources):
    """Return a description of these channels by source; columns count up."""
    text, column = 'name = "d"\nrate_hz = 10.0\n[files]\nheader = false\ncolumns = 99\n', 0
    for name, channels in sources.items():
        columns = list(range(column, column + len(channels)))
        column += len(channels)
        text += f'[[sources]]\nname = "{name}"\ncolumns = {columns}\nchannels = {list(channels)}\n'
    return parse_description(text)


def recorded(description, rows=5):
    """Return a recording whose every value says which column it is from: column + row / 8."""
    samples = {
        source.name: (np.array(columns)[None] + np.arange(rows)[:, None] / 8).astype(np.float32)
        for source, columns in zip(description.sources, description.files.columns, strict=True)
    }
    return Recording("s", description.rate_hz, samples, np.full(rows, -1, np.int16))


def test_by_type_mhealth_has_one_source_a_kind_of_sensor():
    grouped = regroup(MHEALTH, "type")
    assert {source.name: len(source.channels) for source in grouped.sources} == {
        "acc": 9,
        "ecg": 2,
        "gyro": 6,
        "mag": 6,
    }
    assert grouped.source("ecg").channels == ("chest_ecg_1", "chest_ecg_2")
    assert grouped.source("acc").channels[2:5] == ("chest_acc_z", "ankle_acc_x", "ankle_acc_y")
    assert grouped.files.columns[0] == (0, 1, 2, 5, 6, 7, 14, 15, 16)
    assert (grouped.labels, grouped.rate_hz, grouped.name) == (MHEALTH.labels, 50.0, "mhealth")


def test_all_is_every_channel_in_the_order_of_the_file():
    grouped = regroup(MHEALTH, "all")
    assert [source.name for source in grouped.sources] == ["all"]
    assert grouped.sources[0].channels[4:6] == ("chest_ecg_2", "ankle_acc_x")
    assert grouped.files.columns == (tuple(range(23)),)


def test_location_is_the_description_and_the_recording_themselves():
    recording = synthesize(["subject1"], seconds_per_activity=1)[0]
    assert regroup(MHEALTH, "location") is MHEALTH
    assert regroup_recording(recording, MHEALTH, "location") is recording


@pytest.mark.parametrize("grouping", ["all", "type"])
def test_a_description_with_one_source_can_be_grouped(grouping):
    description = described({"wrist": ["acc_x", "acc_y", "heat"]})
    grouped, recording = regroup(description, grouping), recorded(description)
    result = regroup_recording(recording, description, grouping)
    assert {source.name: source.channels for source in grouped.sources} == {
        "all": {"all": ("wrist_acc_x", "wrist_acc_y", "wrist_heat")},
        "type": {"acc": ("wrist_acc_x", "wrist_acc_y"), "heat": ("wrist_heat",)},
    }[grouping]
    assert all(np.shares_memory(values, recording.samples["wrist"]) for values in result.samples.values())


@given(
    st.dictionaries(NAMES, st.lists(NAMES, min_size=1, max_size=5, unique=True), min_size=1, max_size=4),
    st.sampled_from(GROUPINGS),
)
def test_every_value_is_kept_once_and_stands_where_its_channel_is_named(sources, grouping):
    description = described(sources)
    recording = recorded(description)
    try:
        grouped = regroup(description, grouping)
    except ConfigError as error:
        names = [f"{source}_{channel}" for source, channels in sources.items() for channel in channels]
        assert len(set(names)) < len(names) and "so that <source>_<channel> is said once" in str(error)
        return
    result = regroup_recording(recording, description, grouping)
    assert list(result.samples) == [source.name for source in grouped.sources]
    for source, columns in zip(grouped.sources, grouped.files.columns, strict=True):
        assert result.samples[source.name].shape == (5, len(source.channels))
        np.testing.assert_array_equal(result.samples[source.name][0], np.array(columns, np.float32))
    came = np.concatenate(list(recording.samples.values()), axis=1)
    went = np.concatenate(list(result.samples.values()), axis=1)
    np.testing.assert_array_equal(np.sort(went, axis=None), np.sort(came, axis=None))
    if grouping != "location":
        named = {
            f"{source.name}_{channel}": column
            for source, columns in zip(description.sources, description.files.columns, strict=True)
            for channel, column in zip(source.channels, columns, strict=True)
        }
        for source, columns in zip(grouped.sources, grouped.files.columns, strict=True):
            assert tuple(named[channel] for channel in source.channels) == columns


def test_windows_of_a_grouped_recording_are_grouped_windows():
    recording = synthesize(["subject2"], seconds_per_activity=3)[0]
    before = windows(recording, 100, 50, within_activity=True)
    after = windows(regroup_recording(recording, MHEALTH, "type"), 100, 50, within_activity=True)
    for one, other in zip(before, after, strict=True):
        grouped = regroup_recording(one, MHEALTH, "type")
        assert dataclasses.replace(grouped, samples={}) == dataclasses.replace(other, samples={})
        assert list(grouped.samples) == ["acc", "ecg", "gyro", "mag"]
        for name, values in grouped.samples.items():
            np.testing.assert_array_equal(values, other.samples[name])


def test_files_read_by_a_grouped_description_are_grouped_recordings(tmp_path, log, mhealth):
    (tmp_path / "mHealth_subject1.log").write_bytes(log)
    direct = read_recordings(regroup(mhealth, "type"), tmp_path)[0]
    later = regroup_recording(read_recordings(mhealth, tmp_path)[0], mhealth, "type")
    assert direct.starts == later.starts and list(direct.samples) == list(later.samples)
    for name, values in direct.samples.items():
        np.testing.assert_array_equal(values, later.samples[name])


@pytest.mark.parametrize("grouping", ["", "Location", "person"])
def test_an_unknown_grouping_is_refused_by_name(grouping):
    expected = f"grouping is {grouping!r}; expected one of location, all, type"
    with pytest.raises(ConfigError, match=f"^{expected}$"):
        regroup(MHEALTH, grouping)
    with pytest.raises(ConfigError, match=f"^{expected}$"):
        regroup_recording(recorded(MHEALTH), MHEALTH, grouping)


def test_a_channel_whose_type_cannot_name_a_source_is_refused():
    text = 'name = "gym"\nrate_hz = 1.0\n[[sources]]\nname = "hip"\ncolumns = ["hip x", "y"]\n'
    with pytest.raises(ConfigError, match="channel 'hip x' of source hip gives the sensor type 'hip x'; expected"):
        regroup(parse_description(text), "type")
    assert regroup(parse_description(text), "all").sources[0].channels == ("hip_hip x", "hip_y")


def test_a_recording_of_other_channels_is_refused():
    recording = recorded(described({"wrist": ["acc_x"]}))
    with pytest.raises(DataError, match=r"s have channels {.wrist.: 1}, expected {.chest.: 5, .* as mhealth"):
        regroup_recording(recording, MHEALTH, "all")
