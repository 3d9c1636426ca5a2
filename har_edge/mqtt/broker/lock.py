"""Allow one broker for each folder: two would overwrite each other's configuration and database (flock(2))."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from har_edge.errors import BrokerError

FILE_NAME = "broker.lock"
# A broker that was just stopped still writes its database.
PATIENCE_S = 3.0
_POLL_S = 0.05
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MOST_BYTES = 200


@contextlib.contextmanager
def locked(folder: Path, who: str, patience_s: float = PATIENCE_S) -> Iterator[int]:
    """Hold the lock of a folder and yield its descriptor; a process that inherits the descriptor holds the lock, too.

    `who` names the purpose in one line. Raises BrokerError when another process holds the lock for longer than
    `patience_s` seconds, OSError when the file cannot be written. A file system without locks gives no protection.
    """
    file = os.open(folder / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + patience_s
        while not _take(file):
            if time.monotonic() > deadline:
                holder = os.pread(file, _MOST_BYTES, 0).decode("utf-8", "replace").strip() or "another broker"
                raise BrokerError(
                    f"{holder} keeps its files in {folder}: two brokers in one folder destroy each other's database; "
                    "give this one a folder of its own with --directory"
                )
            time.sleep(_POLL_S)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{who}\n".encode()[:_MOST_BYTES], 0)
        yield file
    finally:
        os.close(file)


def _take(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    return True
