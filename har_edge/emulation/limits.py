"""The limits of each emulated device, from options or a TOML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from har_edge.errors import ConfigError
from har_edge.files import TOMLDecodeError, parse_toml, read_text
from har_edge.units import size

MAX_DEVICES = 254
MIN_CPU, MAX_CPU = 0.01, 1024.0
MIN_LINK, MAX_LINK = 8_000, 40_000_000_000
MIN_MEMORY, MAX_MEMORY = 2**20, 2**44
HOST, BROKER = "host", "broker"
_RESERVED = (HOST, BROKER, "localhost")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,31}")
_RATES = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


class Limits(msgspec.Struct, frozen=True):
    """The limits of one device, None for none; `cpu` counts cores of this machine, the link's rate is per direction."""

    cpu: float | None = None
    link_bits_per_s: int | None = None
    memory_bytes: int | None = None

    @property
    def text(self) -> str:
        """The limits, fit to print."""
        cpu = "cpu unlimited" if self.cpu is None else f"cpu {self.cpu:g}"
        link = "link unlimited" if self.link_bits_per_s is None else f"link {self.link_bits_per_s / 1e6:g} Mbit/s"
        memory = "memory unlimited" if self.memory_bytes is None else f"memory {size(self.memory_bytes)}"
        return f"{cpu}, {link}, {memory}"


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Device:
    """A device to emulate, and what it may use."""

    name: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Layout:
    """The devices of a test bed, in order, and what the broker's host may use."""

    devices: tuple[Device, ...]
    broker: Limits = UNLIMITED

    def __post_init__(self) -> None:
        if not 1 <= len(self.devices) <= MAX_DEVICES:
            raise ConfigError(f"{len(self.devices)} devices came; expected 1 to {MAX_DEVICES}")
        names = [device.name for device in self.devices]
        for name in names:
            if not _NAME.fullmatch(name) or name in _RESERVED:
                raise ConfigError(
                    f"device name {name!r}; expected up to 32 letters, digits, - and _, "
                    f"and none of {', '.join(_RESERVED)}"
                )
            if names.count(name) > 1:
                raise ConfigError(f"two devices are named {name!r}; give each a name of its own")

    @property
    def limits(self) -> tuple[Limits, ...]:
        """The limits of every host."""
        return self.broker, *(device.limits for device in self.devices)


class _Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the TOML file."""

    cpu: float | None = None
    link: str | None = None
    memory: str | None = None


class _Device(_Host, frozen=True, forbid_unknown_fields=True):
    name: str | None = None


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    devices: Sequence[_Device]
    broker: _Host = _Host()


def equal_devices(count: int, limits: Limits) -> Layout:
    """Return device-1 to device-<count>, all alike."""
    return Layout(tuple(Device(f"device-{number}", limits) for number in range(1, count + 1)))


def read_layout(file: Path, default: Limits) -> Layout:
    """Read [[devices]] (name, cpu, link, memory) and [broker]; a device has `default` where it says nothing.

    Raises ConfigError.
    """
    try:
        document = msgspec.convert(parse_toml(read_text(file)), _Document)
        devices = [
            Device(entry.name or f"device-{number}", _limits_of(entry, default))
            for number, entry in enumerate(document.devices, 1)
        ]
        return Layout(tuple(devices), _limits_of(document.broker, UNLIMITED))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; expected a TOML file with [[devices]]") from None
    except (TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{file}: {error}") from None


def _limits_of(entry: _Host, default: Limits) -> Limits:
    return Limits(
        default.cpu if entry.cpu is None else check_cpu(entry.cpu),
        default.link_bits_per_s if entry.link is None else read_rate(entry.link),
        default.memory_bytes if entry.memory is None else read_size(entry.memory),
    )


def check_cpu(cores: float) -> float:
    """Return the share of the processor, in cores; raises ConfigError where no quota can say it."""
    if not MIN_CPU <= cores <= MAX_CPU:
        raise ConfigError(f"cpu is {cores:g}; expected {MIN_CPU:g} or more cores, such as 0.2")
    return cores


def read_cpu(text: str) -> float:
    """Read a share of the processor such as 0.2, in cores."""
    try:
        return check_cpu(float(text))
    except ValueError:
        raise ConfigError(f"cpu is {text!r}; expected cores such as 0.2") from None


def read_rate(text: str) -> int:
    """Read a rate such as 94mbit, in bits a second; kbit, mbit and gbit are powers of ten, as tc has them."""
    return _read(text, _RATES, MIN_LINK, MAX_LINK, "rate such as 94mbit (kbit, mbit, gbit; 8kbit to 40gbit)")


def read_size(text: str) -> int:
    """Read a size such as 512m or 1g, in bytes; k, m and g are powers of 1024."""
    return _read(text, _SIZES, MIN_MEMORY, MAX_MEMORY, "size such as 512m (k, m, g; 1m or more)")


def _read(text: str, units: dict[str, int], lowest: int, highest: int, expected: str) -> int:
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([a-z]*)", text.lower())
    value = round(float(found[1]) * units[found[2]]) if found and found[2] in units else 0
    if not lowest <= value <= highest:
        raise ConfigError(f"{text!r} came; expected a {expected}")
    return value
