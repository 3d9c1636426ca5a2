"""The devices file: the devices that the planner may use, and the speed of each device and link."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from har_edge.errors import ConfigError
from har_edge.files import TOMLDecodeError, parse_toml, read_text
from har_edge.planner.profile import MessageRate, Profile, load_profile

MAX_DEVICES = 256
Number = TypeVar("Number", int, NDArray[np.int64])
_ZERO_ALLOWED = {"speed": False, "memory_bytes": False, "link_bytes_per_s": False, "latency_s": True, "message_s": True}


class SensorMessages(Enum):
    """How sensors send windows: one message for each source, or one with all of them."""

    APART = "apart"
    TOGETHER = "together"


class DeviceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device, or `count` equal devices called <name>-1, <name>-2, ...

    `speed` is a factor on the profile that the planner was given (2 is twice as fast). `profile` names a profile of the
    device itself instead, in a file beside this one. `link_bytes_per_s` and `latency_s` (one way) describe the link to
    the broker, and `message_s` is the processor time for one message in seconds. The profile fills in what is missing.
    With `duplex` the link carries its rate each way, as a switched cable does; without, both directions share it, as on
    Wi-Fi.
    """

    name: str
    count: int = 1
    speed: float | None = None
    profile: str | None = None
    memory_bytes: int | None = None
    link_bytes_per_s: float | None = None
    latency_s: float | None = None
    message_s: float | None = None
    duplex: bool = False


class BrokerLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The link of the broker's host: each byte enters it once, and leaves it once for each device that takes it.

    With `duplex` it carries `link_bytes_per_s` each way, without, both directions together. Without a rate it limits
    nothing.
    """

    link_bytes_per_s: float | None = None
    duplex: bool = True

    @property
    def byte_s(self) -> float:
        """Seconds of a byte in one direction."""
        return 0.0 if self.link_bytes_per_s is None else 1 / self.link_bytes_per_s

    def busy_bytes(self, entering: Number, leaving: Number) -> Number:
        """Return the bytes that the link waits for; no fewer leave than enter, since each has at least one taker."""
        return leaving if self.duplex else entering + leaving


UNLIMITED = BrokerLink()


class DevicesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the TOML file."""

    device: list[DeviceEntry]
    sensors: SensorMessages = SensorMessages.APART
    broker: BrokerLink = UNLIMITED


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """The costs on equal devices: seconds of each segment beyond `overhead_s`, of a message, and of each byte of it.

    A message costs `message_s` after a run of the whole model; `message_rates` says what it costs after less work, the
    least work first. A run takes at least `weight_byte_s` for each byte of its weights. `memory_bytes` is the limit for
    one process, None for none. A process takes `base_bytes` without a model, and `growth` bytes for each byte of
    tensors. The link carries both directions together, with `duplex` each direction apart.
    """

    work_s: tuple[float, ...]
    overhead_s: float
    message_s: float
    message_byte_s: float
    link_bytes_per_s: float
    latency_s: float
    memory_bytes: int | None
    base_bytes: int
    growth: float
    duplex: bool = False
    message_rates: tuple[MessageRate, ...] = ()
    weight_byte_s: float = 0.0

    def message_after(self, work_s: float) -> tuple[float, float]:
        """Return the seconds of a message, and of each byte of it, with so much work between two messages."""
        rates = self.message_rates
        if not rates or work_s >= rates[-1].work_s:
            return self.message_s, self.message_byte_s
        index = max(1, bisect_left(rates, work_s, key=attrgetter("work_s")))
        low, high = rates[index - 1], rates[index]
        part = (work_s - low.work_s) / (high.work_s - low.work_s)
        return (
            low.seconds + part * (high.seconds - low.seconds),
            low.seconds_per_byte + part * (high.seconds_per_byte - low.seconds_per_byte),
        )


@dataclass(frozen=True, slots=True)
class PlannerDevice:
    """One device by name, and its class."""

    name: str
    kind: DeviceClass


def load_devices(path: Path) -> DevicesFile:
    """Read a devices file. Raises ConfigError, which names the file and the error in it."""
    try:
        found = msgspec.convert(parse_toml(read_text(path)), DevicesFile)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; expected a devices file (docs/reference/devices-file.md)"
        ) from None
    except (TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}; see docs/reference/devices-file.md for every key") from None
    if not found.device:
        raise ConfigError(f"{path}: no device; expected at least one [[device]] with a name")
    for entry in found.device:
        _check(entry, path)
    rate = found.broker.link_bytes_per_s
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigError(f"{path}: link_bytes_per_s of the broker is {rate}; expected a number above 0")
    names = [name for entry in found.device for name in names_of(entry)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: the name {', '.join(twice)} comes twice; give each device a name of its own")
    if len(names) > MAX_DEVICES:
        raise ConfigError(f"{path}: {len(names)} devices; expected at most {MAX_DEVICES}")
    return found


def names_of(entry: DeviceEntry) -> list[str]:
    """Return the names of the devices that an entry stands for."""
    return [entry.name] if entry.count == 1 else [f"{entry.name}-{number}" for number in range(1, entry.count + 1)]


def _check(entry: DeviceEntry, path: Path) -> None:
    if not entry.name:
        raise ConfigError(f"{path}: a device has no name; expected one")
    if not 1 <= entry.count <= MAX_DEVICES:
        raise ConfigError(f"{path}: count of {entry.name} is {entry.count}; expected 1 to {MAX_DEVICES}")
    if entry.speed is not None and entry.profile is not None:
        raise ConfigError(f"{path}: {entry.name} has both speed and profile; its own profile needs no factor: drop one")
    for key, zero in _ZERO_ALLOWED.items():
        value = getattr(entry, key)
        if value is not None and not (0 < value < math.inf or (zero and value == 0)):
            wanted = "0 or more seconds" if zero else "a number above 0"
            raise ConfigError(f"{path}: {key} of {entry.name} is {value}; expected {wanted}")


def make_devices(file: DevicesFile, path: Path, reference: Profile) -> tuple[list[PlannerDevice], list[str]]:
    """Return the devices of a file, and remarks on the origin of their figures.

    Speeds refer to the profile `reference`. Raises ConfigError when a profile is of another model or delegate, or when
    neither the file nor a profile has a figure.
    """
    devices: list[PlannerDevice] = []
    unmeasured: list[str] = []
    for entry in file.device:
        own = reference if entry.profile is None else load_profile(path.parent / entry.profile, reference.computed_by)
        if own.model_sha256 != reference.model_sha256 or own.bounds != reference.bounds:
            raise ConfigError(
                f"{path}: the profile {entry.profile} of {entry.name} is of {own.model} with other operators or "
                f"weights than {reference.model}; profile this model there: har-edge profile"
            )
        kind = _kind(entry, own, path, foreign=entry.profile is None)
        devices += [PlannerDevice(name, kind) for name in names_of(entry)]
        if own.memory is None and entry.memory_bytes is not None:
            unmeasured.append(entry.name)
    remarks = []
    if unmeasured:
        remarks.append(
            f"no profile measured memory for {', '.join(unmeasured)}: their limits count the tensors of a slice alone"
        )
    return devices, remarks


def _kind(entry: DeviceEntry, profile: Profile, path: Path, *, foreign: bool) -> DeviceClass:
    """Combine an entry and its profile; the link of a `foreign` profile is another device's."""
    speed, message, memory = entry.speed or 1.0, profile.message, profile.memory
    link = None if foreign and entry.name != profile.device else profile.link
    known = {
        "link_bytes_per_s": link.bytes_per_s if link else None,
        "latency_s": link.round_trip_s / 2 if link else None,
        "message_s": message.seconds / speed if message else None,
    }
    figures: dict[str, float] = {}
    for key, measured in known.items():
        value = measured if getattr(entry, key) is None else getattr(entry, key)
        if value is None:
            raise ConfigError(
                f"{path}: {entry.name} has no {key}, and no profile of it has measured it; give {key}, or a profile "
                "made on that device with --broker"
            )
        figures[key] = value
    growth = 1.0 if memory is None else max(1.0, (memory.peak_bytes - memory.base_bytes) / max(1, memory.tensor_bytes))
    return DeviceClass(
        work_s=tuple(seconds / speed for seconds in _work_s(profile)),
        overhead_s=profile.overhead_s / speed,
        message_s=figures["message_s"],
        message_byte_s=message.seconds_per_byte / speed if message else 0.0,
        link_bytes_per_s=figures["link_bytes_per_s"],
        latency_s=figures["latency_s"],
        memory_bytes=entry.memory_bytes,
        base_bytes=memory.base_bytes if memory else 0,
        growth=growth,
        duplex=entry.duplex,
        message_rates=_message_rates(profile, speed) if entry.message_s is None else (),
        weight_byte_s=1 / (profile.weight_bytes_per_s * speed) if profile.weight_bytes_per_s else 0.0,
    )


def _message_rates(profile: Profile, speed: float) -> tuple[MessageRate, ...]:
    """Return what messages cost by the work between them, up to the work of the whole model; none if not measured."""
    message = profile.message
    if message is None or message.shorter is msgspec.UNSET or not message.shorter:
        return ()
    whole_s = profile.whole_s or sum(segment.seconds for segment in profile.segments)
    shorter = [rate for rate in message.shorter if rate.work_s < whole_s]
    rates = [*shorter, MessageRate(whole_s, message.seconds, message.seconds_per_byte)]
    return tuple(
        MessageRate(rate.work_s / speed, rate.seconds / speed, rate.seconds_per_byte / speed)
        for rate in (rates if len(rates) > 1 else [])
    )


def _work_s(profile: Profile) -> list[float]:
    """Return the seconds of each segment beyond the overhead of a run; measured segments add up to the whole model."""
    each = profile.overhead_s
    work = [max(0.0, segment.seconds - each) for segment in profile.segments]
    if profile.whole_s is None or not sum(work) or not all(segment.measured for segment in profile.segments):
        return work
    share = max(0.0, profile.whole_s - each) / sum(work)
    return [seconds * share for seconds in work]


def group_by_class(devices: Sequence[PlannerDevice]) -> dict[DeviceClass, list[str]]:
    """Return the names of the devices of each class."""
    found: dict[DeviceClass, list[str]] = {}
    for device in devices:
        found.setdefault(device.kind, []).append(device.name)
    return found
