"""The versions of a model that a training made: which one is deployed, and which figures decided so.

A folder holds them: `versions.json`, and each model below `versions/` by its hash. Each file is written as a whole.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import msgspec

from har_edge.errors import DataError, ModelError
from har_edge.files import MAX_MODEL_BYTES, MAX_TEXT_BYTES, read_regular, write_atomic
from har_edge.protocol.text import with_origin

FILE_NAME, FOLDER = "versions.json", "versions"
_VERSION = 1
# Versions that a folder keeps; of more, the oldest that nobody runs go, with their files.
MAX_VERSIONS = 100
MAX_FIGURES = 32
# The figures that decide, in this order, and whether the higher one is better.
DECIDING: Mapping[str, bool] = {"image_auroc": True, "synthetic_auroc": True, "accuracy": True, "loss": False}
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
_Text = Annotated[str, msgspec.Meta(max_length=1000)]
_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class VersionState(Enum):
    """The state of a version: a candidate is refused, or deployed until another takes its place, or rolled back."""

    CANDIDATE = "candidate"
    DEPLOYED = "deployed"
    REFUSED = "refused"
    REPLACED = "replaced"
    ROLLED_BACK = "rolled back"


class ModelVersion(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One version of a model: its hash, and its figures on `samples` held-out samples of `data`.

    `made` is when it was stored, `changed` when it got its state, both in seconds since 1970; `reason` says why it has
    it. `epoch` is the generation that ran it last; 0 where none did.
    """

    sha256: _Sha256
    run: _Name
    figures: Annotated[dict[_Name, float], msgspec.Meta(max_length=MAX_FIGURES)]
    samples: Annotated[int, msgspec.Meta(ge=0)]
    data: _Text
    real: bool
    made: float
    state: VersionState
    changed: float
    reason: _Text = ""
    epoch: Annotated[int, msgspec.Meta(ge=0)] = 0

    @property
    def held_out(self) -> str:
        """The held-out samples in words."""
        return f"{self.samples} held-out samples of {with_origin(self.data, real=self.real)}"


class _VersionFile(msgspec.Struct, frozen=True):
    version: int
    versions: Annotated[list[ModelVersion], msgspec.Meta(max_length=MAX_VERSIONS)]


@dataclass(frozen=True, slots=True)
class VersionComparison:
    """Whether a candidate is better than the deployed version, and both figures in words."""

    better: bool
    text: str


def compare(candidate: Mapping[str, float], deployed: Mapping[str, float], margin: float = 0.0) -> VersionComparison:
    """Compare figures on the same held-out samples: the first of DECIDING that both have, and at a tie the next.

    `margin` is how much better the candidate must be in the first of them. Raises DataError where they share none.
    """
    shared = [name for name in DECIDING if name in candidate and name in deployed]
    if not shared:
        raise DataError(
            f"the figures {', '.join(candidate) or 'none'} of the candidate and {', '.join(deployed) or 'none'} of the "
            f"deployed version cannot be compared; expected one of {', '.join(DECIDING)} in both"
        )
    name = shared[0]
    for name in shared:
        if candidate[name] != deployed[name]:
            break
    gain = (candidate[name] - deployed[name]) * (1 if DECIDING[name] else -1)
    needed = margin if name == shared[0] else 0.0
    better = gain > 0 and gain >= needed
    text = f"{name} {candidate[name]:.4f} against {deployed[name]:.4f} of the deployed version"
    if gain > 0 and not better:
        text += f", less than {margin:g} better"
    return VersionComparison(better, text)


class VersionRegistry:
    """The versions of a folder. Raises ModelError for a versions.json that is damaged, naming the file."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._clock = folder, clock
        self.versions: list[ModelVersion] = self._read()

    @property
    def deployed(self) -> ModelVersion | None:
        """The version that is deployed; None where none is."""
        return next((one for one in reversed(self.versions) if one.state is VersionState.DEPLOYED), None)

    @property
    def previous(self) -> ModelVersion | None:
        """The version that the deployed one took the place of; None where there is none."""
        replaced = [one for one in self.versions if one.state is VersionState.REPLACED]
        return max(replaced, key=lambda one: one.changed, default=None)

    def find(self, name: str) -> ModelVersion:
        """Return a version by the first digits of its hash. Raises DataError where no version, or several, have it."""
        found = [one for one in self.versions if one.sha256.startswith(name.lower())]
        if len(found) != 1:
            there = ", ".join(one.sha256[:12] for one in self.versions) or "none"
            raise DataError(f"{'no version' if not found else 'several versions'} {name!r}; expected one of {there}")
        return found[0]

    def path(self, sha256: str) -> Path:
        """Return where the model of a version is."""
        return self.folder / FOLDER / f"{sha256[:16]}.tflite"

    def content(self, sha256: str) -> bytes:
        """Return the model of a version. Raises ModelError where its file is gone, or is another one."""
        path = self.path(sha256)
        try:
            content = read_regular(path, MAX_MODEL_BYTES)
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}; this version cannot be deployed again") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ModelError(
                f"{path} is not the version {sha256[:12]} that it was; this version cannot be deployed again"
            )
        return content

    def add(
        self,
        content: bytes,
        run: str,
        figures: Mapping[str, float],
        *,
        samples: int,
        data: str,
        real: bool,
        state: VersionState,
        reason: str = "",
    ) -> ModelVersion:
        """Keep a version with its figures; the deployed one before is replaced by another that is deployed.

        A version that is there already gets these figures. Raises DataError where the disk is full.
        """
        now, sha256 = self._clock(), hashlib.sha256(content).hexdigest()
        one = ModelVersion(
            sha256=sha256,
            run=run,
            figures={name: value for name, value in figures.items() if math.isfinite(value)},
            samples=samples,
            data=data[:1000],
            real=real,
            made=now,
            state=state,
            changed=now,
            reason=reason[:1000],
        )
        kept = [other for other in self.versions if other.sha256 != sha256]
        if state is VersionState.DEPLOYED:
            kept = [_replaced(other, now, f"{sha256[:12]} took its place") for other in kept]
        self._store([*kept, one], {sha256: content})
        return one

    def change(self, sha256: str, state: VersionState, reason: str, epoch: int = 0) -> ModelVersion:
        """Give a version another state; the deployed one before is replaced by another that is deployed."""
        now, kept, found = self._clock(), list[ModelVersion](), self.find(sha256)
        for other in self.versions:
            if other.sha256 == found.sha256:
                found = msgspec.structs.replace(
                    other, state=state, reason=reason[:1000], changed=now, epoch=epoch or other.epoch
                )
                other = found
            elif state is VersionState.DEPLOYED:
                other = _replaced(other, now, f"{found.sha256[:12]} took its place")
            kept.append(other)
        self._store(kept, {})
        return found

    def _read(self) -> list[ModelVersion]:
        path = self.folder / FILE_NAME
        try:
            found = msgspec.json.decode(read_regular(path, MAX_TEXT_BYTES), type=_VersionFile)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(f"{path} is no list of versions: {error}; move it away, and begin anew") from None
        if found.version != _VERSION:
            raise ModelError(f"{path} has version {found.version}, expected {_VERSION}; update this machine")
        return found.versions

    def _store(self, versions: list[ModelVersion], contents: Mapping[str, bytes]) -> None:
        """Write models first, then the list that names them, and then remove what it names no more."""
        kept, gone = _bounded(versions)
        path = self.folder / FILE_NAME
        try:
            for sha256, content in contents.items():
                path = self.path(sha256)
                write_atomic(path, content)
            path = self.folder / FILE_NAME
            write_atomic(path, msgspec.json.format(msgspec.json.encode(_VersionFile(_VERSION, kept)), indent=2) + b"\n")
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}; make room, or take another folder") from error
        for one in gone:
            self.path(one.sha256).unlink(missing_ok=True)
        self.versions = kept


def _replaced(one: ModelVersion, now: float, reason: str) -> ModelVersion:
    if one.state is not VersionState.DEPLOYED:
        return one
    return msgspec.structs.replace(one, state=VersionState.REPLACED, changed=now, reason=reason)


def _bounded(versions: list[ModelVersion]) -> tuple[list[ModelVersion], list[ModelVersion]]:
    """Return the versions to keep, at most MAX_VERSIONS, and the others: the oldest that are not deployed."""
    spare = [one for one in versions if one.state is not VersionState.DEPLOYED]
    gone = spare[: max(0, len(versions) - MAX_VERSIONS)]
    return [one for one in versions if one not in gone], gone
