"""The files of a data set: in a folder, in a zip, or one alone. Nothing is ever extracted to disk."""

from __future__ import annotations

import contextlib
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from har_edge.data.description import StreamDescription
from har_edge.errors import DataError
from har_edge.files import open_member

# An official mHealth log has about 21 MB; a file that claims more than this is refused before a byte of it is read.
MAX_FILE_BYTES = 1 << 30
DIGEST_BYTES = 16
_PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a data set; `member` is its name inside the zip `path`, or None for a plain file."""

    path: Path
    member: str | None
    size: int

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return PurePosixPath(self.member).name if self.member else self.path.name

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def read(self) -> bytes:
        """Return the content; DataError where it is too large or cannot be read."""
        return b"".join(self._pieces(MAX_FILE_BYTES))

    def digest(self) -> str:
        """Return a digest of the content, which is never held whole; DataError as from `read`."""
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for piece in self._pieces(_PIECE_BYTES):
            digest.update(piece)
        return digest.hexdigest()

    def _pieces(self, size: int) -> Iterator[bytes]:
        if self.size > MAX_FILE_BYTES:
            raise DataError(f"{self}: {self.size} bytes, expected at most {MAX_FILE_BYTES}; split the file")
        left = MAX_FILE_BYTES
        try:
            with contextlib.ExitStack() as stack:
                if self.member is None:
                    content: IO[bytes] = stack.enter_context(self.path.open("rb"))
                else:
                    # A member gives at most the size it declares, which is checked above, so a zip bomb stays small.
                    archive = stack.enter_context(zipfile.ZipFile(self.path))
                    content = stack.enter_context(open_member(archive, self.member))
                while left and (piece := content.read(min(size, left))):
                    left -= len(piece)
                    yield piece
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{self}: cannot be read: {error}; fetch or copy the file anew") from error


def find_files(where: Path, description: StreamDescription) -> list[DataFile]:
    """Return the recordings below a folder, in a zip, or the one file given; none where there are none.

    A folder is searched with its immediate subfolders; only where it holds no file of the data set, its zips are.
    Raises DataError where a zip is damaged, or where one file name appears twice.
    """
    pattern = description.files.pattern
    if where.is_dir():
        files = _list_folder(where, pattern)
    elif is_zip(where):
        files = list_zip(where, pattern)
    elif where.is_file() and re.fullmatch(pattern, where.name):
        files = [DataFile(where, None, where.stat().st_size)]
    else:
        files = []
    seen: dict[str, DataFile] = {}
    for file in files:
        if file.name in seen:
            raise DataError(f"{seen[file.name]} and {file} have one name, expected each file once; remove one of them")
        seen[file.name] = file
    return files


def list_files(where: Path, description: StreamDescription) -> list[DataFile]:
    """Return the recordings that `find_files` finds; DataError where there are none."""
    if not where.exists():
        raise DataError(f"{where}: no such file or folder, expected recordings of {description.name}")
    files = find_files(where, description)
    if not files:
        raise DataError(
            f"{where}: no recordings of {description.name}, expected a folder, a zip or a file with "
            f"{describe_pattern(description.files.pattern)}{_advice(description)}"
        )
    return files


def describe_pattern(pattern: str) -> str:
    """Return in words which names a pattern of files fits, as far as it can be read."""
    group = re.search(r"\(\?P<stream>((?:[^()\\]|\\.)*)\)", pattern)
    plain = pattern if group is None else pattern.replace(group[0], "STREAM")
    name = re.sub(r"\\([^\w\s])", r"\1", plain)
    if re.search(r"[\\()\[\]{}*+?|^$]", re.sub(r"\\[^\w\s]", "", plain)) or "." in re.sub(r"\\\.", "", plain):
        return f"names that fit the regular expression {pattern}"
    return f"the name {name}" if group is None else f"names like {name}, where STREAM fits {group[1]}"


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip, or was one before it was damaged."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" or path.suffix.lower() == ".zip"


def list_zip(path: Path, pattern: str) -> list[DataFile]:
    """Return the members of a zip whose own name matches the pattern; DataError where it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(f"{path}: not a readable zip: {error}; fetch it anew") from error
    names = [info for info in members if re.fullmatch(pattern, PurePosixPath(info.filename).name)]
    # Archives made on a Mac hold a shadow of every file there.
    return [DataFile(path, info.filename, info.file_size) for info in names if "__MACOSX" not in info.filename]


def _list_folder(folder: Path, pattern: str) -> list[DataFile]:
    found = (path for glob in ("*", "*/*") for path in folder.glob(glob) if path.is_file())
    # Hidden folders hold what a killed `har-edge data fetch` left behind.
    entries = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    plain = [DataFile(path, None, path.stat().st_size) for path in entries if re.fullmatch(pattern, path.name)]
    if plain:
        return plain
    zips = [path for path in entries if path.suffix.lower() == ".zip"]
    return [file for path in zips for file in list_zip(path, pattern)]


def _advice(description: StreamDescription) -> str:
    return "; get them with: har-edge data fetch" if description.name == "mhealth" else ""
