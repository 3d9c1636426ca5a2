"""Results and systems of a study on disk, so that long work can be stopped and gone on with.

The key of each is a hash of everything that decides it, so a stored one is never wrong. Each is written under another
name and renamed, so a crash leaves none in part.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from har_edge.config.task import Task
from har_edge.data.recording import Recording
from har_edge.errors import ModelError
from har_edge.evaluation.study import System
from har_edge.evaluation.trial import TrialResult
from har_edge.files import write_atomic

MODEL = "model.tflite"
_CARD = "system.json"
_log = logging.getLogger(__name__)


class _Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description in a system's folder; its task holds the hashes of the reducers' files."""

    task: Task
    model_sha256: str


class TrialStore:
    """The folder of a study: `cells/<key>.json` and `systems/<key>/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def result(self, key: str) -> TrialResult | None:
        """Return a stored result; None where there is none, or it is damaged, which is logged."""
        path = self.folder / "cells" / f"{key}.json"
        try:
            result = msgspec.json.decode(path.read_bytes(), type=TrialResult)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("%s is damaged (%s): measuring again", path, error)
            return None
        return result if result.key == key else None

    def put_result(self, result: TrialResult) -> None:
        """Store a result under its key."""
        write_atomic(self.folder / "cells" / f"{result.key}.json", msgspec.json.encode(result))

    def system_folder(self, key: str) -> Path:
        """Return where the files of a system lie."""
        return self.folder / "systems" / key

    def system(self, key: str) -> System | None:
        """Return a stored system, every file checked by hash; None where there is none, or it is damaged."""
        folder = self.system_folder(key)
        try:
            card = msgspec.json.decode((folder / _CARD).read_bytes(), type=_Card)
            expected = {MODEL: card.model_sha256, **card.task.files}
            content = {name: (folder / name).read_bytes() for name in expected}
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("%s is damaged (%s): fitting again", folder, error)
            return None
        for name, sha256 in expected.items():
            if hashlib.sha256(content[name]).hexdigest() != sha256:
                _log.warning("%s is damaged: %s has another hash; fitting again", folder, name)
                return None
        return System(card.task, content.pop(MODEL), content)

    def put_system(self, key: str, system: System) -> None:
        """Store a system; ModelError where its files are not those that its task names."""
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in system.files.items()}
        if hashes != system.task.files or MODEL in hashes:
            raise ModelError(f"a system has the files {hashes}, but its task names {system.task.files}")
        place = self.system_folder(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        card = _Card(system.task, hashlib.sha256(system.model).hexdigest())
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as temporary:
            made = Path(temporary) / "system"
            made.mkdir()
            for name, content in {**system.files, MODEL: system.model, _CARD: msgspec.json.encode(card)}.items():
                (made / name).write_bytes(content)
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)


def digest(*parts: object) -> str:
    """Return a hash of values that msgspec can write as JSON, the same on every machine."""
    return hashlib.blake2b(msgspec.json.encode(parts, order="deterministic"), digest_size=16).hexdigest()


def fingerprint(recording: Recording) -> str:
    """Return a hash of everything in a recording."""
    hasher = hashlib.blake2b(digest_size=16)
    head = (recording.stream, recording.rate_hz, recording.starts, recording.real, len(recording))
    hasher.update(repr(head).encode())
    hasher.update(np.ascontiguousarray(recording.labels).tobytes())
    for source, values in sorted(recording.samples.items()):
        hasher.update(repr((source, values.shape)).encode())
        hasher.update(np.ascontiguousarray(values).tobytes())
    return hasher.hexdigest()


def fingerprint_of(keys: Iterable[tuple[str, int]] | None) -> str | None:
    """Return a hash of a set of windows; None for all of them."""
    return None if keys is None else digest(sorted(keys))
