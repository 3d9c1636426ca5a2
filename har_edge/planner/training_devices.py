"""The devices of a split training, as the planner sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from har_edge.errors import ConfigError
from har_edge.planner.devices import DevicesFile, names_of


@dataclass(frozen=True, slots=True)
class SplitDevice:
    """A device that may train a stage.

    Attributes:
        slowdown: Its seconds for the same work, in those of the device that the profile was measured on.
        memory_bytes: The limit of the process; 0 for no limit.
        link_bytes_per_s: The rate of its link to the broker, each way; 0 for no limit.
    """

    name: str
    slowdown: float = 1.0
    memory_bytes: int = 0
    link_bytes_per_s: float = 0.0

    @property
    def kind(self) -> tuple[float, int, float]:
        """Return what makes two devices equal for the planner."""
        return self.slowdown, self.memory_bytes, self.link_bytes_per_s


def split_devices(file: DevicesFile, path: Path) -> list[SplitDevice]:
    """Return the devices of a devices file. Raises ConfigError for one that refers to a profile of inference."""
    found = []
    for entry in file.device:
        if entry.profile is not None:
            raise ConfigError(
                f"{path}: {entry.name} names {entry.profile}, a profile of inference; for a training expected "
                "speed = FACTOR on the training profile, which --profile names"
            )
        found += [
            SplitDevice(name, 1 / (entry.speed or 1.0), entry.memory_bytes or 0, entry.link_bytes_per_s or 0.0)
            for name in names_of(entry)
        ]
    return found


def group_devices(devices: Sequence[SplitDevice]) -> list[list[int]]:
    """Return the numbers of equal devices together, the fastest first."""
    kinds: dict[tuple[float, int, float], list[int]] = {}
    for number, device in enumerate(devices):
        kinds.setdefault(device.kind, []).append(number)
    return [kinds[kind] for kind in sorted(kinds, key=lambda kind: (kind[0], -kind[1], -kind[2]))]
