"""Picture files that a sensor reads: some that are named, or those of a folder, which is watched for new ones."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from har_edge.data.picture_stream import PictureFile
from har_edge.data.pictures import MAX_FILE_BYTES, PictureFault
from har_edge.errors import ConfigError, NodeError
from har_edge.files import read_regular
from har_edge.protocol.text import escape

# How often a folder is looked at, and for how long a file must not have changed before it is read.
LOOK_S = 0.25
SETTLED_S = 0.5
# A folder with many files is looked at less often: a pause is at least so many times as long as the look before it.
LOOK_SHARE = 4.0
MAX_FILES = 100_000

Clock = Callable[[], float]


@dataclass(slots=True)
class _SeenFile:
    """A file of a folder: its size and time of change, since when it has had them, and whether it was read so."""

    version: tuple[int, int]
    since: float
    done: bool = False


class PictureFiles:
    """Files, one a read, in their order. Nothing is lost while they are not read."""

    keeps = True

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raise ConfigError for a file that is not there."""
        for path in paths:
            if not path.is_file():
                raise ConfigError(f"cannot read {path}: it is no file; expected picture files, a folder of them, or -")
        self._left = deque(paths)

    def read(self) -> tuple[PictureFile, ...] | None:
        """Return the next file, None after the last."""
        return (_read(self._left.popleft()),) if self._left else None

    def reopen(self) -> bool:
        """Return False: the end is the end."""
        return False


class PictureFolder:
    """The files of a folder by their names, then new ones, and ones that have changed, once they are settled.

    A file counts as written when its size and time of change have not changed for SETTLED_S. Hidden files and folders
    in the folder are passed over. `clock` is monotonic.
    """

    keeps = True

    def __init__(self, folder: Path, clock: Clock = time.monotonic) -> None:
        """Raise ConfigError for a folder that cannot be read."""
        self._folder, self._clock = folder, clock
        self._seen: dict[str, _SeenFile] = {}
        self._ready = deque[str]()
        self._look_at = 0.0
        try:
            self._look(clock(), settled=True)
        except OSError as error:
            raise ConfigError(f"cannot read {folder}: {error.strerror}; expected a folder of pictures") from None

    def read(self) -> tuple[PictureFile, ...]:
        """Return the next file, or nothing; NodeError where the folder is gone, or has more than MAX_FILES files."""
        now = self._clock()
        if not self._ready and now >= self._look_at:
            try:
                self._look(now, settled=False)
            except OSError as error:
                raise NodeError(f"{self._folder} can no longer be read: {error.strerror}") from None
        if not self._ready:
            return ()
        name = self._ready.popleft()
        return (_read(self._folder / name),)

    def reopen(self) -> bool:
        """Return True: a folder has no end."""
        return True

    def _look(self, now: float, *, settled: bool) -> None:
        """Note what is in the folder; with `settled`, files that have not changed for long count as written."""
        there = dict[str, tuple[int, int]]()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    status = entry.stat()
                except OSError:  # it went meanwhile, or is a link to nothing
                    continue
                if stat.S_ISREG(status.st_mode):
                    there[entry.name] = status.st_size, status.st_mtime_ns
                if len(there) > MAX_FILES:
                    raise NodeError(f"{self._folder} has more than {MAX_FILES} files; expected fewer: move some away")
        self._seen = {name: seen for name, seen in self._seen.items() if name in there}
        for name, version in sorted(there.items()):
            seen = self._seen.get(name)
            if seen is None or seen.version != version:
                old = settled and time.time() - version[1] / 1e9 > SETTLED_S
                seen = self._seen[name] = _SeenFile(version, now - SETTLED_S if old else now)
            if not seen.done and now - seen.since >= SETTLED_S:
                seen.done = True
                self._ready.append(name)
        ended = self._clock()
        self._look_at = ended + max(LOOK_S, LOOK_SHARE * (ended - now))


def shown(path: Path | str) -> str:
    """Return the name of a file as text that any output takes: who puts files into a folder chooses their names."""
    return escape(os.fsencode(path).decode("utf-8", "backslashreplace"))


def _read(path: Path) -> PictureFile:
    try:
        return PictureFile(shown(path), read_regular(path, MAX_FILE_BYTES))
    except OSError as error:
        fault = PictureFault.HUGE if error.errno == errno.EFBIG else PictureFault.UNREADABLE
        return PictureFile(shown(path), b"", f"it cannot be read: {error.strerror}", fault)
