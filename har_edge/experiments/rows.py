"""The figures of one measurement on a test bed, as a row of a CSV file that grows as the measurements come."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec

from har_edge.errors import ConfigError


class MeasuredRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model on one test bed, once.

    `cpus` are the devices that the plan could use, in cores of this machine, `used` those of its stages in order,
    `cuts` the operators it cuts before; all three joined by spaces. `windows` were answered in `seconds`; `busy` is the
    part of its quota that each stage took, `stage_ms` its processor milliseconds a window. `latency_s` holds for
    `in_flight` windows under way. `predicted_s` is the planner's bottleneck, `link_s` that of the links alone;
    `speeds` are those that the devices in use showed just before, as factors on the profile.
    """

    model: str
    sha256: str
    cpus: str
    link_bits_per_s: int
    repeat: int
    used: str
    cuts: str
    crossing_bytes: str
    in_flight: int
    windows: int
    seconds: float
    period_s: float
    predicted_s: float
    link_s: float
    speeds: str
    busy: str
    stage_ms: str
    latency_s: float

    @property
    def key(self) -> tuple[str, str, int, int]:
        """The values that tell measurements apart."""
        return self.sha256, self.cpus, self.link_bits_per_s, self.repeat

    @property
    def devices(self) -> int:
        """How many devices the plan could use."""
        return len(self.cpus.split())

    @property
    def error(self) -> float:
        """How far the prediction was off, as a part of what was measured."""
        return self.predicted_s / self.period_s - 1


_FIELDS = MeasuredRow.__struct_fields__


def read_rows(path: Path) -> list[MeasuredRow]:
    """Return the rows of a file, none where there is no file; ConfigError for a file that holds something else."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [msgspec.convert(row, MeasuredRow, strict=False) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path} holds no measurements of this command: {error}; give another folder") from None


def append_row(row: MeasuredRow, path: Path) -> None:
    """Write a row at the end of a file, the names of its columns before the first."""
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(_FIELDS)
        writer.writerow([getattr(row, name) for name in _FIELDS])


class Gain(msgspec.Struct, frozen=True):
    """The gain of so many devices over one: medians of the rates, and of the ratios within each repeat."""

    model: str
    devices: int
    repeats: int
    windows_per_s: float
    speedup: float
    lowest: float
    highest: float
    stages: int
    cuts: str
    busy: str


def gains(rows: Sequence[MeasuredRow]) -> list[Gain]:
    """Return one entry a model and number of devices; repeats without a measurement on one device do not count."""
    found = []
    groups: dict[tuple[str, int], list[MeasuredRow]] = {}
    for row in rows:
        groups.setdefault((row.model, row.devices), []).append(row)
    for (model, devices), group in groups.items():
        alone = {row.repeat: row.period_s for row in groups.get((model, 1), [])}
        ratios = [alone[row.repeat] / row.period_s for row in group if row.repeat in alone]
        if ratios:
            rate = 1 / median(row.period_s for row in group)
            last = group[-1]
            found.append(
                Gain(
                    *(model, devices, len(ratios), rate, median(ratios), min(ratios), max(ratios)),
                    *(len(last.used.split()), last.cuts, last.busy),
                )
            )
    return found
