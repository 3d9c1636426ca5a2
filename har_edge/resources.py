"""Find the folders beside the package: `brokers` and `models`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from har_edge.errors import ConfigError


def find_folder(name: str) -> Path:
    """Return the folder of that name, inside an installed package, or beside the package in a clone."""
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"no folder {name!r} in {package} or beside it; install har-edge again, or name the file yourself"
    )


def closed_to(path: Path, uid: int | None, groups: Collection[int] = ()) -> Path | None:
    """Return the file, or the first folder above it, that a user cannot read; None if the user can read the file.

    `uid` None stands for a user who owns nothing and is in no group. A missing file is not closed.
    """
    for place in (path, *path.absolute().parents):
        if not place.exists():
            continue
        status = place.stat()
        need = 0o1 if place.is_dir() else 0o4
        shift = 6 if status.st_uid == uid else 3 if status.st_gid in groups else 0
        if uid != 0 and not status.st_mode >> shift & need:
            return place
    return None
