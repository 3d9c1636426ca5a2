"""The profile of one model on one device: measured once, kept as JSON, and read by the planner."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from har_edge.errors import ConfigError
from har_edge.files import write_atomic

VERSION = 1


class OperatorWork(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The work of all operators of one kind in a segment: number, arithmetic operations, bytes of their tensors."""

    kind: str
    operators: int
    operations: int
    bytes: int


class SegmentCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Operators [start, stop): seconds of one run by itself, measured or estimated by regression."""

    start: int
    stop: int
    seconds: float
    measured: bool
    work: tuple[OperatorWork, ...]


class MemoryCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Resident memory of a process in bytes: with bus and runtime, growth by the whole model, and its peak.

    `tensor_bytes` counts the weights and the largest set of activations alive at once, to compare with the growth.
    """

    base_bytes: int
    growth_bytes: int
    peak_bytes: int
    tensor_bytes: int


class MessageRate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Processor seconds of a message, and of each byte of it, with `work_s` of other work between two messages."""

    work_s: float
    seconds: float
    seconds_per_byte: float


class MessageCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Processor seconds to pack and publish one message, or to receive and unpack it, and the same for each byte.

    They are those of a stage that runs the whole model between two messages. `shorter` has those with less work between
    them, the least work first: the processor's caches still hold more of what messages need. Nobody measured them where
    it is left out.
    """

    seconds: float
    seconds_per_byte: float
    broker: str
    shorter: tuple[MessageRate, ...] | UnsetType = UNSET


class LinkCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The link between device and broker: seconds there and back, and bytes per second, both directions together."""

    round_trip_s: float
    bytes_per_s: float


class PackingFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A way to pack activations (tflite/packing.py, q8 without its figures): how many times fewer bytes travel, and the
    processor seconds of both ends together for each byte before packing. `data` says what the activations are from.
    """

    packing: str
    ratio: float
    seconds_per_byte: float
    data: str


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The quality of the regression: the number of segments, and the median relative error on segments left out."""

    samples: int
    error: float


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All measurements of one model on one device; None stands for a measurement that failed or was not asked for.

    `overhead_s` is the time that each run costs, however few operators it has. `weight_bytes_per_s` says how fast a run
    brings its weights from memory, all of them for a single row, too. `delegate` is left out where XNNPACK ran the
    model, `packings` and `weight_bytes_per_s` where nobody measured them.
    """

    version: int
    device: str
    machine: str
    model: str
    model_sha256: str
    threads: int
    segments: tuple[SegmentCost, ...]
    overhead_s: float
    whole_s: float | None = None
    memory: MemoryCost | None = None
    message: MessageCost | None = None
    link: LinkCost | None = None
    fit: Fit | None = None
    weight_bytes_per_s: float | UnsetType = UNSET
    delegate: Literal["none"] | UnsetType = UNSET
    packings: tuple[PackingFigures, ...] | UnsetType = UNSET

    def packing(self, name: str) -> PackingFigures | None:
        """Return the figures of a way to pack, None where they were not measured."""
        known = () if self.packings is UNSET else self.packings
        return next((one for one in known if one.packing == name), None)

    @property
    def computed_by(self) -> str:
        """The delegate that ran the model: "xnnpack", where the runtime hands operators to it, or "none"."""
        return "xnnpack" if self.delegate is UNSET else self.delegate

    @property
    def bounds(self) -> tuple[int, ...]:
        """The operators at which segments begin, and the number of operators."""
        return (*(segment.start for segment in self.segments), self.segments[-1].stop)


def cache_folder() -> Path:
    """Return the folder of profiles: `$XDG_CACHE_HOME/har-edge/profiles`, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "har-edge" / "profiles"


def profile_path(device: str, model_sha256: str, threads: int, delegate: str | None = None) -> Path:
    """Return the path of the profile of a model on a device."""
    return _folder(delegate) / f"{device}-{model_sha256[:16]}-{threads}.json"


def _folder(delegate: str | None) -> Path:
    """Return the folder of profiles; those made without XNNPACK have a folder of their own."""
    return cache_folder() / "none" if delegate == "none" else cache_folder()


def store_profile(profile: Profile, path: Path) -> None:
    """Write a profile as readable JSON. Raises ConfigError when the file cannot be written."""
    try:
        write_atomic(path, msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write the profile {path}: {error.strerror}; give another file with --out") from None


def load_profile(path: Path, delegate: str | None = None) -> Profile:
    """Read a profile. Raises ConfigError when it is missing, malformed, or of another version or delegate."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise ConfigError(
            f"cannot read the profile {path}: {error.strerror}; make it with 'har-edge profile MODEL'"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no profile: {error}; make it anew with 'har-edge profile MODEL'") from None
    if profile.version != VERSION:
        raise ConfigError(f"{path} has version {profile.version}, expected {VERSION}; make it anew")
    _check(profile, path)
    wanted = delegate or "xnnpack"
    if profile.computed_by != wanted:
        raise ConfigError(
            f"{path} was measured with --delegate {profile.computed_by}, but {wanted} will compute; expected a profile "
            f"of 'har-edge profile --delegate {wanted}', or --delegate {profile.computed_by} here"
        )
    return profile


def cached_profiles(device: str, delegate: str | None = None) -> list[Profile]:
    """Return every readable profile of a device in the cache that was made with this delegate, of any model."""
    found = []
    for path in sorted(_folder(delegate).glob("*.json")):
        try:
            profile = load_profile(path, delegate)
        except ConfigError:  # of an older version, or damaged: it is made anew when it is asked for by name
            continue
        if profile.device == device:
            found.append(profile)
    return found


def _check(profile: Profile, path: Path) -> None:
    """Raise ConfigError for figures that no measurement gives: negative, not finite, or with gaps between segments."""
    numbers = [profile.overhead_s, *(segment.seconds for segment in profile.segments)]
    numbers += [profile.message.seconds, profile.message.seconds_per_byte] if profile.message else []
    if profile.link is not None:
        numbers += [profile.link.round_trip_s, profile.link.bytes_per_s or -1.0]
    ends = [0, *(segment.stop for segment in profile.segments)]
    joined = all(segment.start == end < segment.stop for segment, end in zip(profile.segments, ends, strict=False))
    if not profile.segments or not joined or not all(0 <= number < float("inf") for number in numbers):
        raise ConfigError(
            f"{path} is no profile of a whole model: expected segments one after the other, and figures of 0 or above; "
            "make it anew with 'har-edge profile MODEL'"
        )
