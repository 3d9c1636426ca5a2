"""The file of a plan: which devices compute which operators, and how the devices of a group share them.

`har-edge plan --out FILE` writes it, with figures that this reader leaves aside; `har-edge slice --plan FILE` cuts the
model accordingly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from har_edge.errors import CutError
from har_edge.files import MAX_MANIFEST_BYTES, read_regular
from har_edge.tflite.manifest import MAX_SHARDS
from har_edge.tflite.split.plan import SplitPlan

_Operator = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Name = Annotated[str, msgspec.Meta(max_length=4096)]


class PlannedGroup(msgspec.Struct, frozen=True, omit_defaults=True):
    """Operators [start, stop) and their devices.

    With `split`, shard k of the group runs on device k. Without it, one device computes all of them, or several take
    turns (replicas).
    """

    start: _Operator
    stop: _Operator
    devices: tuple[str, ...] = ()
    split: SplitPlan | None = None


class PlanFile(msgspec.Struct, frozen=True):
    """The groups of a plan in the order in which they run, and the SHA-256 of the model that it is for.

    `max_payload_bytes` is the size of the largest message of the plan, 0 where it is not known. `packings` say how
    tensors travel, by name, and `brokers` through whose own broker the flows of a slice go, by its number; others
    travel as they are, through the central broker.
    """

    model_sha256: str
    stages: Annotated[tuple[PlannedGroup, ...], msgspec.Meta(min_length=1, max_length=1024)]
    max_payload_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**28)] = 0
    packings: dict[_Name, _Name] = msgspec.field(default_factory=dict)
    brokers: dict[_Name, _Name] = msgspec.field(default_factory=dict)


def homes_of(plan: PlanFile) -> tuple[tuple[str, ...], ...]:
    """Return the devices of each stage, in the manifest's order: several take turns; none where the plan names none."""
    homes = list[tuple[str, ...]]()
    for group in plan.stages:
        if group.split is not None:
            homes += [(name,) for name in group.devices] or [()] * group.split.shards
        else:
            homes.append(tuple(dict.fromkeys(group.devices)))
    return tuple(homes)


def load_plan(path: Path) -> PlanFile:
    """Read the plan of a file.

    Raises CutError when it cannot be read, is no plan, or has groups with gaps or with shares for other operators.
    """
    try:
        found = msgspec.json.decode(read_regular(path, MAX_MANIFEST_BYTES), type=PlanFile)
    except OSError as error:
        raise CutError(
            f"cannot read the plan {path}: {error.strerror}; make it with 'har-edge plan --out FILE'"
        ) from None
    except CutError as error:
        raise CutError(f"{path} is no plan: {error}; make it anew with 'har-edge plan --out FILE'") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CutError(f"{path} is no plan: {error}; make it anew with 'har-edge plan --out FILE'") from None
    flaw = _find_flaw(found)
    if flaw:
        raise CutError(f"{path} {flaw}; make it anew with 'har-edge plan --out FILE'")
    return found


def _find_flaw(plan: PlanFile) -> str:
    """Return the first error in a plan, an empty text where there is none."""
    at = 0
    for number, group in enumerate(plan.stages):
        operators = f"operators [{group.start}, {group.stop})"
        if group.start != at or group.stop <= group.start:
            return f"gives stage {number} the {operators}, expected some from {at} on"
        at = group.stop
        if group.split is None:
            continue
        if (group.split.start, group.split.stop) != (group.start, group.stop):
            return (
                f"splits operators [{group.split.start}, {group.split.stop}) in stage {number}, which has {operators}"
            )
        if not 2 <= group.split.shards <= MAX_SHARDS:
            return f"splits stage {number} into {group.split.shards} shards, expected 2 to {MAX_SHARDS}"
        if group.devices and len(group.devices) != group.split.shards:
            return f"gives stage {number} {len(group.devices)} devices for {group.split.shards} shards"
    return ""
