"""Slices and other files of a pipeline on the disk of a node, each under the SHA-256 of its content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from har_edge.errors import MessageError, NodeError
from har_edge.files import MAX_MODEL_BYTES, open_regular

_log = logging.getLogger(__name__)
LIMIT_BYTES = 2 * 1024**3
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DRAFT = ".draft-"
# A draft as old as this was left by a process that ended while it wrote.
_STALE_S = 3600.0
_READ_BYTES = 1024 * 1024


def default_folder() -> Path:
    """Return `$XDG_CACHE_HOME/har-edge/slices`, by default below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "har-edge" / "slices"


class Store:
    """Files by the SHA-256 of their content, at most `limit_bytes` in all; several processes may share a folder.

    A file appears whole or not at all. Each process hashes its content once before it uses it, and removes a damaged
    file as if it had never been there. At the limit, the store evicts the files that were not used for longest, but
    never one that is to be kept.
    """

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._kept: set[str] = set()
        # Files that this process has hashed, by their place on the disk and their size: another file is hashed anew.
        self._checked: dict[str, tuple[int, int]] = {}

    def keep(self, hashes: Collection[str]) -> None:
        """Never evict these contents from now on; earlier ones may be evicted again."""
        self._kept = set(hashes)

    def keep_also(self, hashes: Collection[str]) -> None:
        """Never evict these contents either."""
        self._kept.update(hashes)

    def release(self, hashes: Collection[str]) -> None:
        """Let files go when room is needed. They are not removed: other processes may share the folder."""
        self._kept.difference_update(hashes)

    def has(self, sha256: str) -> bool:
        """Return whether the content is here and whole; a damaged file is removed."""
        path = self._place(sha256)
        try:
            with open_regular(path, MAX_MODEL_BYTES) as file:
                place = _identity(os.fstat(file.fileno()))
                if self._checked.get(sha256) == place:
                    return True
                found = _hash_of(file)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            _log.warning("cannot read %s: %s", path, error.strerror or error)
            return False
        if found == sha256:
            self._checked[sha256] = place
            return True
        _log.warning("%s is damaged: its content is not what its name says; it is fetched anew", path)
        with contextlib.suppress(OSError):
            if _identity(path.stat()) == place:  # and not one that another process has put there by now
                path.unlink()
        return False

    def path(self, sha256: str) -> Path:
        """Return the file with this content, marked as used just now. Raises NodeError when it is not here."""
        if not self.has(sha256):
            raise NodeError(f"{sha256} is not in {self.folder}; expected a file that was fetched before: fetch it")
        path = self._place(sha256)
        _touch(path)
        return path

    def put(self, sha256: str, content: bytes | memoryview) -> Path:
        """Store content under its hash and return the file.

        Raises MessageError for content of another hash, and NodeError when the folder cannot be written, or the limit
        is lower than the files that must be kept.
        """
        path = self._place(sha256)
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise MessageError(
                f"{len(content)} bytes with sha256 {found} came for {sha256}: forged or corrupt; they are not used"
            )
        if self.has(sha256):
            _touch(path)
            return path
        self.make_room(len(content))
        draft = self.folder / f"{_DRAFT}{secrets.token_hex(8)}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(content)
            written = _identity(draft.stat())
            draft.replace(path)
        except OSError as error:
            _remove(draft)
            raise self._unable(len(content), error.strerror or str(error)) from None
        self._checked[sha256] = written
        return path

    def _unable(self, size: int, reason: str) -> NodeError:
        return NodeError(
            f"cannot keep {size} bytes in {self.folder}: {reason}; {_free_bytes(self.folder)} bytes are free: make "
            "room or permit writing there, or give another folder with --cache"
        )

    def _place(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise MessageError(f"{sha256!r} came as the hash of a file; expected a SHA-256 as 64 hex digits")
        return self.folder / sha256

    def make_room(self, size: int) -> None:
        """Evict the files that were not used for longest until so many bytes more fit into the limit.

        Raises NodeError when that is not enough, or the disk has less space.
        """
        try:
            there = self._contents()
        except OSError as error:
            raise self._unable(size, error.strerror or str(error)) from None
        self._evict(there, size, sum(bytes_ for _, bytes_, _ in there) + size - self.limit_bytes)
        if _free_bytes(self.folder) < size:
            raise self._unable(size, os.strerror(errno.ENOSPC))

    def _evict(self, there: list[tuple[float, int, Path]], size: int, excess: int) -> None:
        if excess <= 0:
            return
        evictable = sorted(one for one in there if one[2].name not in self._kept)
        if excess > sum(bytes_ for _, bytes_, _ in evictable):
            held = sum(bytes_ for _, bytes_, path in there if path.name in self._kept)
            raise NodeError(
                f"{size} bytes more do not fit into {self.folder}: {held} bytes there are in use and the limit is "
                f"{self.limit_bytes}; raise it with --cache-bytes to at least {held + size}"
            )
        for _, bytes_, path in evictable:
            if excess <= 0:
                return
            _remove(path)
            self._checked.pop(path.name, None)
            excess -= bytes_

    def _contents(self) -> list[tuple[float, int, Path]]:
        """Return when each file was used last, its size and path; drafts that nobody writes any more are removed."""
        contents = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            try:
                found = path.stat()
            except OSError:  # another process evicted it
                continue
            if _SHA256.fullmatch(path.name):
                contents.append((found.st_mtime, found.st_size, path))
            elif path.name.startswith(_DRAFT) and found.st_mtime < time.time() - _STALE_S:
                _remove(path)
        return contents


def _hash_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(_READ_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _identity(found: os.stat_result) -> tuple[int, int]:
    """Return what tells a file from another one of its name: where it is on the disk, and its size."""
    return found.st_ino, found.st_size


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that is only read has no order of use
        os.utime(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _free_bytes(folder: Path) -> int:
    """Return how much is free where a folder is, or would be."""
    there = next((one for one in (folder, *folder.parents) if one.is_dir()), Path("/"))
    return shutil.disk_usage(there).free
