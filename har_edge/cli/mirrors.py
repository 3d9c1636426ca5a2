"""Files with a known hash, from the first of several mirrors that gives them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from har_edge.cli.download import Progress, StorageError, begun_at, download, forget
from har_edge.data.mnist import PackedFile
from har_edge.errors import DataError
from har_edge.units import plural

# How often a mirror is asked again after it broke off, as long as more bytes come each time.
ATTEMPTS = 5
Say = Callable[[str], None]


def fetch_files(
    files: Sequence[PackedFile],
    mirrors: Sequence[str],
    folder: Path,
    progress: Callable[[str], Progress],
    say: Say,
) -> None:
    """Download the files that are not in a folder yet; a file appears there whole and verified, or not at all.

    An interrupted download goes on, at the mirror where it began. `progress` returns what is told of each file's bytes;
    `say` is told of a mirror that failed. Raises DataError where no mirror gives a file, with the reason of each, and
    StorageError where the disk is full.
    """
    _make(folder)
    for file in files:
        place = folder / file.name
        if not file.is_at(place):
            _fetch(file, mirrors, place, progress(file.name), say)


def copy_files(files: Sequence[PackedFile], origin: Path, folder: Path) -> None:
    """Copy verified files from another folder. Raises DataError for one that is missing or holds something else."""
    if not origin.is_dir():
        raise DataError(
            f"--from {origin}: no such folder; expected one with {', '.join(file.name for file in files)}, or mirrors"
        )
    for file in files:
        if not (origin / file.name).is_file():
            raise DataError(f"--from {origin}: no {file.name} there; expected all of {len(files)} files")
        file.verify(origin / file.name)
    _make(folder)
    for file in files:
        part = _part(folder / file.name)
        try:
            shutil.copyfile(origin / file.name, part)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StorageError(f"{part}: {error.strerror}; make room or take another folder (--out)") from error
        part.replace(folder / file.name)


def _fetch(file: PackedFile, mirrors: Sequence[str], place: Path, progress: Progress, say: Say) -> None:
    part, faults = _part(place), []
    urls = [f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors]
    for url in sorted(urls, key=lambda url: not begun_at(part, url)):
        try:
            _download(url, part, progress)
            _verify(file, url, part)
        except StorageError:
            raise
        except DataError as error:
            faults.append(str(error))
            if len(faults) < len(urls):
                say(f"{error}; trying the next mirror")
        else:
            part.replace(place)
            forget(part)
            return
    reasons = "\n  ".join(faults)
    raise DataError(
        f"{file.name} came from none of {plural(len(urls), 'mirror')}; give others, or a folder with the file, with "
        f"--from:\n  {reasons}"
    )


def _download(url: str, part: Path, progress: Progress) -> None:
    """Download, and ask again after a broken connection as long as more bytes come each time."""
    for attempt in range(ATTEMPTS):
        before = part.stat().st_size if begun_at(part, url) else 0
        try:
            download(url, part, progress)
            return
        except StorageError:
            raise
        except DataError:
            after = part.stat().st_size if begun_at(part, url) else 0
            if after <= before or attempt + 1 == ATTEMPTS:
                raise


def _verify(file: PackedFile, url: str, part: Path) -> None:
    try:
        file.verify(part)
    except DataError as error:
        forget(part)
        raise DataError(f"{url}: {error}") from error


def _part(place: Path) -> Path:
    return place.with_name(f"{place.name}.part")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}; take another folder (--out)") from error
