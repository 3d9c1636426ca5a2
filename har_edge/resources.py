"""Where the folders that stand beside the package are: `brokers` and `models`."""

from __future__ import annotations

from pathlib import Path

from har_edge.errors import ConfigError


def find_folder(name: str) -> Path:
    """Return the folder of that name: inside an installed package, or beside the package in a clone."""
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"no folder {name!r} in {package} or beside it; install har-edge again, or name the file yourself"
    )
