"""Read regular files of bounded size, never a FIFO or a device, and replace files as a whole."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

TOMLDecodeError = tomllib.TOMLDecodeError
# A flatbuffer holds no more: its offsets are signed 32-bit numbers.
MAX_MODEL_BYTES = 2**31 - 1
# Text for people to edit: stream descriptions and pipeline files.
MAX_TEXT_BYTES = 4 * 1024 * 1024
# How the name of a file ends that is being written; one that stays behind is of no use.
DRAFT = ".part"
# The manifest of a model with some thousands of slices.
MAX_MANIFEST_BYTES = 256 * 1024 * 1024


# Those of which zipfile unpacks no more at a time than it is asked for; bzip2 and LZMA unpack all of a block at once.
_UNPACKED_IN_STEPS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def open_member(archive: zipfile.ZipFile, member: str | zipfile.ZipInfo) -> IO[bytes]:
    """Open a member of a zip; reading so many bytes of it takes no more memory than these.

    Raises zipfile.BadZipFile for a method of packing of which that is not so.
    """
    info = archive.getinfo(member) if isinstance(member, str) else member
    if info.compress_type not in _UNPACKED_IN_STEPS:
        raise zipfile.BadZipFile(
            f"{info.filename[:200]!r} is packed by method {info.compress_type}, which has no bounds; "
            "expected it stored or deflated: pack it anew"
        )
    return archive.open(info)


def read_member(archive: zipfile.ZipFile, member: str | zipfile.ZipInfo, limit: int) -> bytes:
    """Return the content of a member of at most `limit` bytes; never unpack more, whatever it says of itself.

    Raises zipfile.BadZipFile for a larger one, and as `open_member` does.
    """
    info = archive.getinfo(member) if isinstance(member, str) else member
    if info.file_size > limit:
        raise zipfile.BadZipFile(f"{info.filename[:200]!r} unpacks to {info.file_size} bytes; expected at most {limit}")
    with open_member(archive, info) as file:
        return file.read(info.file_size + 1)


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
def replacing(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `path` when the block ends, and vanishes if the block fails.

    A reader, meanwhile or after a crash, finds the old file or the new one, never a part: the content goes to another
    name in the same folder, which ends with DRAFT and is then renamed (rename(2) is atomic). Missing folders are made.
    `mode` is that of the file, by default what the umask leaves of 0666. Raise OSError that names `path`.
    """
    draft = path.with_name(f".{path.name[:64]}.{secrets.token_hex(4)}{DRAFT}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        created = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else mode)
        with os.fdopen(created, "wb") as file:
            yield file
            if mode is not None:
                os.fchmod(created, mode)  # the umask may have taken some of it
        draft.replace(path)
    except OSError as error:
        # An error of writing, unlike one of opening, names no file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            draft.unlink()


def write_atomic(path: Path, content: bytes | bytearray | memoryview, mode: int | None = None) -> None:
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
