"""Recordings put in place: checked first, moved as one, so that a data folder never holds half of them."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

from har_edge.data.archive import DataFile, describe_pattern, is_zip, list_files, list_zip
from har_edge.data.description import StreamDescription
from har_edge.data.tabular import parse_table
from har_edge.errors import DataError
from har_edge.files import open_member

ARCHIVE = "MHEALTHDATASET.zip"
FOLDER = "MHEALTHDATASET"
MAX_ARCHIVE_BYTES = 1 << 31
_HEAD_LINES = 100
_BLOCK = 1 << 20


def install(source: Path, folder: Path, description: StreamDescription) -> Path:
    """Copy the recordings of a zip, folder or file into `folder`; return where they are now.

    A zip that holds them in another zip, as some downloads do, is unpacked once. Raises DataError where the source
    holds no recordings of the data set or damaged ones; `folder` is then as before.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder, expected the zip or folder of {description.name}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        workplace = Path(temporary)
        if is_zip(source):
            archive = _outer_or_inner(source, workplace, description)
            for file in list_files(archive, description):
                check_file(file, description)
            if archive == source:
                archive = Path(shutil.copyfile(source, workplace / ARCHIVE))
            return archive.replace(folder / ARCHIVE)
        files = list_files(source, description)
        for file in files:
            check_file(file, description)
        if any(file.member for file in files):
            return Path(shutil.copyfile(files[0].path, workplace / ARCHIVE)).replace(folder / ARCHIVE)
        (workplace / FOLDER).mkdir()
        for file in files:
            shutil.copyfile(file.path, workplace / FOLDER / file.name)
        return (workplace / FOLDER).replace(folder / FOLDER)


def check_file(file: DataFile, description: StreamDescription) -> None:
    """Refuse a file that cannot be read to its end, checksum included, or whose first lines are malformed."""
    content = file.read()
    head = b"\n".join(content.split(b"\n", _HEAD_LINES)[:_HEAD_LINES])
    parse_table(head, description, "any", str(file))


def _outer_or_inner(source: Path, workplace: Path, description: StreamDescription) -> Path:
    """Return the zip itself where it holds recordings, else the zip within it that does, unpacked."""
    pattern = description.files.pattern
    if list_zip(source, pattern):
        return source
    inner = workplace / ARCHIVE
    for file in list_zip(source, r"(?i).*\.zip"):
        if file.size > MAX_ARCHIVE_BYTES:
            raise DataError(f"{file}: {file.size} bytes, expected at most {MAX_ARCHIVE_BYTES}")
        try:
            with (
                zipfile.ZipFile(source) as archive,
                open_member(archive, file.member or "") as content,
                inner.open("wb") as out,
            ):
                shutil.copyfileobj(content, out, _BLOCK)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{file}: cannot be unpacked: {error}; fetch it anew") from error
        if is_zip(inner) and list_zip(inner, pattern):
            return inner
    raise DataError(f"{source}: no recordings of {description.name} in this zip, expected {describe_pattern(pattern)}")
