"""Download a file over HTTP and survive interruptions: keep the bytes that came, and ask for the rest."""

from __future__ import annotations

import errno
import http.client
import json
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from har_edge.errors import DataError
from har_edge.units import size

MAX_BYTES = 1 << 31
TIMEOUT_S = 60.0
_BLOCK = 1 << 16
# Faults of this machine, for which another server is no remedy.
_OWN_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

Progress = Callable[[int, "int | None"], None]


class StorageError(DataError):
    """The bytes that came cannot be stored on this machine."""


def download(url: str, part: Path, progress: Progress) -> None:
    """Download a URL into the file `part`, and go on where an earlier call stopped.

    The request uses Range, with If-Range (RFC 9110, sections 13.1.5 and 14.2) if the server gave a validator. The
    download begins anew when the file changed meanwhile, or the server knows no ranges. The function calls `progress`
    with the bytes so far and in all (None if the server does not say). Raises DataError for a failure; `part` then
    holds the bytes that came.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url}: expected an address that begins with https:// or http://")
    done = part.stat().st_size if part.exists() else 0
    validator = _load_validator(part, url) if done else None
    if done and validator is None:
        done = 0
    try:
        with _open(url, done, validator) as response:
            _receive(url, response, part, done, progress)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not done:
                raise DataError(
                    f"{url}: the server answers {error.code} {error.reason}; is the address right?"
                ) from error
            complete = error.headers.get("Content-Range") == f"bytes */{done}"
        if not complete:
            forget(part)
            download(url, part, progress)
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in _OWN_FAULTS and not isinstance(error, urllib.error.URLError):
            raise StorageError(
                f"{part}: {getattr(error, 'strerror', error)}; what came is kept: make room or take another folder "
                "(--out), and run again"
            ) from error
        reason = _reason(error, url)
        kept = part.stat().st_size if part.exists() else 0
        came = (
            f"the {size(kept)} that came are kept, and the same command goes on from there" if kept else "nothing came"
        )
        raise DataError(f"{url}: {reason}; {came}") from error


def _reason(error: Exception, url: str) -> object:
    """Return why a server was not reached, as a person says it."""
    reason = getattr(error, "reason", None) or error
    host = urllib.parse.urlsplit(url).hostname
    if isinstance(reason, socket.gaierror):
        return f"the address of {host} was not found (is this machine online?)"
    if isinstance(reason, TimeoutError):
        return f"{host} does not answer (is this machine online?)"
    if isinstance(reason, OSError) and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return f"no network leads to {host} (is this machine online?)"
    return getattr(reason, "strerror", None) or reason


def begun_at(part: Path, url: str) -> bool:
    """Return whether a part of this URL's file is here, so that its download can go on."""
    return part.is_file() and part.stat().st_size > 0 and _load_validator(part, url) is not None


def forget(part: Path) -> None:
    """Remove an unfinished download, so that the next one begins anew."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _open(url: str, done: int, validator: str | None) -> http.client.HTTPResponse:
    # Compressed on the way, a byte range would not be one of the file.
    headers = {"User-Agent": "har-edge", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
        if validator:
            headers["If-Range"] = validator
    response: http.client.HTTPResponse = urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S
    )
    return response


def _receive(url: str, response: http.client.HTTPResponse, part: Path, done: int, progress: Progress) -> None:
    total: int | None
    if response.status == http.client.PARTIAL_CONTENT:
        came = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if not came or int(came[1]) != done:
            raise DataError(f"{url}: the server sends another range than {done} to the end; run again")
        total = int(came[2])
    else:
        done = 0
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
    if (total or 0) > MAX_BYTES:
        raise DataError(f"{url}: {total} bytes, expected at most {MAX_BYTES}; is the address right?")
    with part.open("ab" if done else "wb") as file:
        _store_validator(part, url, response)
        done = _copy(response, file, done, total, progress)
    if done > MAX_BYTES:
        forget(part)  # an answer without an end is no beginning of the file
        raise DataError(f"{url}: more than {MAX_BYTES} bytes; is the address right?")
    if total is not None and done < total:
        raise DataError(f"{url}: the connection ended after {done} of {total} bytes; run again to go on from there")


def _copy(response: http.client.HTTPResponse, file: IO[bytes], done: int, total: int | None, progress: Progress) -> int:
    progress(done, total)
    while block := response.read(_BLOCK):
        done += len(block)
        if done > MAX_BYTES:
            break
        file.write(block)
        progress(done, total)
    return done


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _store_validator(part: Path, url: str, response: http.client.HTTPResponse) -> None:
    etag = response.headers.get("ETag", "")
    # A weak ETag promises the same meaning, not the same bytes.
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    _note(part).write_text(json.dumps({"url": url, "validator": validator}), "utf-8")


def _load_validator(part: Path, url: str) -> str | None:
    """Return the validator of an unfinished download, "" where it has none, None where it belongs to another URL."""
    try:
        note = json.loads(_note(part).read_text("utf-8"))
        return str(note["validator"]) if note["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
