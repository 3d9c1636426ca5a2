"""Sources grouped anew: one a location (as described), one for everything, or one a sensor type."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TypeVar

import numpy as np

from har_edge.data.description import NAME, StreamDescription
from har_edge.data.recording import Recording, Samples, Source, Window
from har_edge.errors import ConfigError, DataError


class Grouping(str, Enum):
    """How channels are put together to sources."""

    LOCATION = "location"
    ALL = "all"
    TYPE = "type"


GROUPINGS = tuple(grouping.value for grouping in Grouping)
ALL_CHANNELS = "all"

_Sampled = TypeVar("_Sampled", Recording, Window)
# A channel where the description has it: index of its source, and of the channel there.
_Place = tuple[int, int]


def regroup(description: StreamDescription, grouping: str) -> StreamDescription:
    """Return the description with its channels grouped anew, and the columns of files with them.

    `location` changes nothing; `all` makes one source `all`; `type` makes one source for each sensor type, which is
    the name of a channel up to its last underscore (`acc_x` -> `acc`). Channels of the latter two are named
    `<location>_<channel>` and keep the order of the description. ConfigError for another grouping, or a type that
    cannot be a source's name.
    """
    if _known(grouping) is Grouping.LOCATION:
        return description
    columns = description.files.columns
    groups = _groups(description, grouping)
    sources = tuple(_source(description, name, places) for name, places in groups.items())
    grouped = tuple(tuple(columns[source][channel] for source, channel in places) for places in groups.values())
    files = dataclasses.replace(description.files, columns=grouped)
    return dataclasses.replace(description, sources=sources, files=files)


def regroup_recording(recording: _Sampled, description: StreamDescription, grouping: str) -> _Sampled:
    """Return a recording or window, whose sources are those of `description`, with its channels grouped anew.

    Its arrays are views where a group is a run of channels of one source, copies otherwise. DataError where the
    recording has not the sources and channels of the description; ConfigError as from `regroup`.
    """
    if _known(grouping) is Grouping.LOCATION:
        return recording
    _check(recording, description)
    samples = {name: _gather(recording, description, places) for name, places in _groups(description, grouping).items()}
    return dataclasses.replace(recording, samples=samples)


def _known(grouping: str) -> Grouping:
    try:
        return Grouping(grouping)
    except ValueError:
        raise ConfigError(f"grouping is {grouping!r}; expected one of {', '.join(GROUPINGS)}") from None


def _groups(description: StreamDescription, grouping: str) -> Mapping[str, list[_Place]]:
    """Return the places of each group's channels, in the order of the description."""
    groups: dict[str, list[_Place]] = {}
    for index, source in enumerate(description.sources):
        for number, channel in enumerate(source.channels):
            name = ALL_CHANNELS
            if grouping == Grouping.TYPE:
                name = channel.rpartition("_")[0] or channel
                if not NAME.fullmatch(name):
                    raise ConfigError(
                        f"channel {channel!r} of source {source.name} gives the sensor type {name!r}; expected "
                        "letters, digits, _ and -; name the channels <type>_<axis> in the description"
                    )
            groups.setdefault(name, []).append((index, number))
    return groups


def _source(description: StreamDescription, name: str, places: list[_Place]) -> Source:
    sources = description.sources
    channels = tuple(f"{sources[index].name}_{sources[index].channels[number]}" for index, number in places)
    for channel in channels:
        if channels.count(channel) > 1:
            raise ConfigError(
                f"two channels of group {name} would be named {channel!r}; rename a source or channel of "
                f"{description.name} so that <source>_<channel> is said once"
            )
    return Source(name, channels)


def _gather(recording: Recording | Window, description: StreamDescription, places: list[_Place]) -> Samples:
    parts = [recording.samples[description.sources[index].name][:, first:stop] for index, first, stop in _runs(places)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _runs(places: list[_Place]) -> Iterator[tuple[int, int, int]]:
    """Yield the runs of neighbouring channels: index of the source, first and stop."""
    first = 0
    for after in range(1, len(places) + 1):
        index, number = places[after - 1]
        if after == len(places) or places[after] != (index, number + 1):
            yield index, places[first][1], number + 1
            first = after


def _check(recording: Recording | Window, description: StreamDescription) -> None:
    came = {name: values.shape[1] for name, values in recording.samples.items()}
    expected = {source.name: len(source.channels) for source in description.sources}
    if came != expected:
        raise DataError(
            f"samples of {recording.stream} have channels {came}, expected {expected} as {description.name} describes; "
            "group them once, and with the description they were read by"
        )
