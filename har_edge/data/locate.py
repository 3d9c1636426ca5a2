"""Find the recordings: at the path given, else at HAR_EDGE_DATA, else in ./data."""

from __future__ import annotations

import os
from pathlib import Path

from har_edge.data.archive import find_files, list_files
from har_edge.data.description import StreamDescription, load_description
from har_edge.errors import DataError

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
