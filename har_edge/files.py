"""Read regular files of bounded size, never a FIFO or a device, and replace files as a whole."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

TOMLDecodeError = tomllib.TOMLDecodeError
# A flatbuffer holds no more: its offsets are signed 32-bit numbers.
MAX_MODEL_BYTES = 2**31 - 1
# Text for people to edit: stream descriptions and pipeline files.
MAX_TEXT_BYTES = 4 * 1024 * 1024
# The manifest of a model with some thousands of slices.
MAX_MANIFEST_BYTES = 256 * 1024 * 1024


def open_regular(path: Path, limit: int) -> BinaryIO:
    """Open a regular file of at most `limit` bytes for reading; never wait for the other end of a FIFO.

    Raises OSError with a readable `strerror` for any other file, and for a name that no file can have.
    """
    try:
        file = open(path, "rb", opener=_open)  # noqa: SIM115 (Path.open takes no opener; the caller closes it)
    except ValueError as error:  # a null character, or one that the file system cannot name
        raise OSError(errno.EINVAL, f"no file can have this name ({error})", repr(str(path))) from None
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is a FIFO, socket or device, expected a regular file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, expected at most {limit}", str(path))
    except BaseException:
        file.close()
        raise
    return file


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a FIFO waits for a writer, and no signal handler runs meanwhile.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def read_regular(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. Raises OSError as `open_regular` does."""
    with open_regular(path, limit) as file:
        content = file.read(os.fstat(file.fileno()).st_size)
        rest = file.read(limit + 1 - len(content))  # content that was added meanwhile, or has no size, as in /proc
    if len(content) + len(rest) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return content + rest if rest else content


@contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends, and vanishes if the block fails.

    A reader finds the old file or the new one, never a part of it, even after a crash. The content goes to another name
    in the same folder, which is then renamed (rename(2) is atomic). Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            os.fchmod(file.fileno(), mode)  # mkstemp lets only the owner read
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        with suppress(OSError):
            os.unlink(name)  # noqa: PTH108
        raise


def write_atomic(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a whole file, as `replacing` does."""
    with replacing(path, mode) as file:
        file.write(content)


def inside(path: Path, name: str) -> Path:
    """Return `path/name` if `path` is a folder, else `path`; a name that no file can have is no folder."""
    try:
        return path / name if path.is_dir() else path
    except (OSError, ValueError):
        return path


def read_text(path: Path) -> str:
    """Return a text file that people edit. Raises OSError as `open_regular` does, UnicodeDecodeError unless it is
    UTF-8.
    """
    return read_regular(path, MAX_TEXT_BYTES).decode("utf-8")


def parse_toml(text: str) -> dict[str, Any]:
    """Return a TOML document. Raises TOMLDecodeError also when it is too deep or too large for the parser."""
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise TOMLDecodeError("brackets are nested too deep; expected a few levels") from None
    except TOMLDecodeError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise TOMLDecodeError(str(error)) from None
    return document
