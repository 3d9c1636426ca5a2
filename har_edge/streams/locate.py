"""Where the recordings are: what was given, then HAR_EDGE_DATA, then ./data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from har_edge.errors import DataError
from har_edge.streams.archive import find_files, list_files
from har_edge.streams.description import StreamDescription, load_description
from har_edge.streams.files import read_recordings
from har_edge.streams.recording import Recording
from har_edge.streams.synthetic import SUBJECTS, synthesize

VARIABLE = "HAR_EDGE_DATA"
DEFAULT_FOLDER = Path("data")
SYNTHETIC_NOTICE = "no recordings found: using synthetic data; get the real ones with: har-edge data fetch"


def find_data(given: Path | None, description: StreamDescription | None = None) -> Path | None:
    """Return the folder, zip or file with recordings of the data set (mHealth by default).

    None where nothing was given and ./data is missing or holds no recordings: the caller then uses synthetic data and
    shows SYNTHETIC_NOTICE. Raises DataError where a place was named, by argument or HAR_EDGE_DATA, and holds none,
    and wherever a zip is damaged.
    """
    description = description or load_description("mhealth")
    variable = os.environ.get(VARIABLE)
    if given is not None or variable:
        where = given if given is not None else Path(variable or "")
        try:
            list_files(where, description)
        except DataError as error:
            raise DataError(f"{'--data' if given is not None else VARIABLE}: {error}") from error
        return where
    return DEFAULT_FOLDER if find_files(DEFAULT_FOLDER, description) else None


def load_recordings(
    given: Path | None,
    description: StreamDescription | None = None,
    streams: Sequence[str] | None = None,
    keep_null: bool = False,
) -> list[Recording]:
    """Read the recordings that `find_data` finds, or synthesise mHealth where there are none.

    Synthetic recordings have `real=False`: the caller shows SYNTHETIC_NOTICE then. Raises DataError as `find_data` and
    `read_recordings` do, and where the data set is another than mHealth, for which there is no stand-in.
    """
    description = description or load_description("mhealth")
    where = find_data(given, description)
    if where is not None:
        return read_recordings(description, where, streams, keep_null)
    if description != load_description("mhealth"):
        raise DataError(f"no recordings of {description.name}: name their place with --data or {VARIABLE}")
    return synthesize(SUBJECTS if streams is None else streams)
