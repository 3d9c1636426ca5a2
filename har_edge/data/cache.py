"""Parsed files, kept as arrays, so that 200 MB of text are read once.

An entry is found by the content of the file it was made from, so it can be too old never, and missing at worst. It is
written to another name and renamed, so it can be half-written never; one that is damaged all the same is made anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from har_edge.data.tabular import Table
from har_edge.files import replacing

FORMAT = b"har-edge table 2"
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return where entries live: `$XDG_CACHE_HOME/har-edge`, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "har-edge" / "streams"


def entry_path(name: str, layout: str, digest: str) -> Path:
    """Return the path of the entry for a file of this name and digest of its content, read by this layout.

    The name starts with a digest of name and layout, so that a newer version of the same file replaces the older one.
    """
    place = hashlib.blake2b(b"\0".join((FORMAT, name.encode(), layout.encode())), digest_size=8).hexdigest()
    return cache_folder() / f"{place}-{digest}.npz"


def load_table(path: Path, channels: int) -> Table | None:
    """Return the entry, or None where there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as entry:
            values, labels, starts = entry["values"], entry["labels"], entry["starts"]
            streams = tuple(str(name) for name in entry["streams"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        _log.warning("%s is damaged (%s); reading the recording itself", path, error)
        return None
    shape = (len(labels), channels)
    if values.dtype != np.float32 or labels.dtype != np.int16 or values.shape != shape or len(starts) != len(streams):
        _log.warning("%s does not hold what it should; reading the recording itself", path)
        return None
    return Table(values, labels, tuple(starts.tolist()), streams)


def store_table(path: Path, table: Table) -> None:
    """Write an entry and remove its older versions; a cache that cannot be written is logged and left alone."""
    try:
        with replacing(path, 0o600) as file:  # recordings of people
            np.savez(
                file,
                values=table.values,
                labels=table.labels,
                starts=np.array(table.starts, np.int64),
                streams=np.array(table.streams, np.str_),
            )
        for other in path.parent.glob(f"{path.name.partition('-')[0]}-*.npz"):
            if other != path:
                other.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot write the cache %s: %s", path, error)
