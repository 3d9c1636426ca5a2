"""Decide whether the devices of a pipeline give the same bits, by runtime, machine, delegate and the model's numbers.

The rules here follow measurements: docs/reference/runtimes.md has the tables.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec

from har_edge.inference.wheels import TFLITE
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.status import NodeCapabilities, NodeStatus, SliceInfo
from har_edge.protocol.text import listed, printable

PAGE = "docs/reference/runtimes.md"
MAX_NAMED = 8


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """How a device computes: its runtime with version, machine, and delegate ("xnnpack", "none", "" unknown)."""

    runtime: str
    machine: str
    delegate: str

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.runtime, self.machine, self.delegate and f"delegate {self.delegate}")))


def way_of(card: NodeCapabilities | SliceInfo | None) -> RuntimeInfo | None:
    """Return how a device computes, by its own report; None where it does not report it."""
    if card is None or not card.runtime:
        return None
    words = card.system.partition(",")[0].split()  # "Linux aarch64, Python 3.11.2"
    return RuntimeInfo(
        printable(card.runtime, 40), printable(words[-1], 16) if words else "", printable(card.delegate, 16)
    )


def kind_of(dtypes: Collection[str]) -> str:
    """Return the least exact kind of number that enters or leaves a slice."""
    for kind in ("float", "uint8"):
        found = sorted(dtype for dtype in dtypes if dtype.startswith(kind))
        if found:
            return found[-1]
    return "int8"


def disagreement(
    ways: Mapping[str, RuntimeInfo | None], dtypes: Collection[str], *, delegate: str | None = None
) -> str:
    """Return why results may depend on the node that computes them, an empty text when all nodes agree.

    `ways` maps the names of nodes to their runtimes; `delegate` is the one that the whole pipeline was told to use.
    """
    kind, known = kind_of(dtypes), {name: way for name, way in sorted(ways.items()) if way is not None}
    if _differ(known.values(), kind):
        named = listed([f"{name} ({way})" for name, way in known.items()], MAX_NAMED)
        much = "in the last bits" if kind.startswith("float") else "by some steps of their scale"
        return (
            f"this model computes in {kind}, and its nodes in different ways: answers may differ {much} by where a "
            f"slice runs: {named} ({PAGE})"
        )
    partly = [name for name, way in known.items() if way.runtime.startswith(TFLITE)]
    if partly and kind.startswith("float") and delegate != "none":
        return (
            f"{', '.join(partly[:MAX_NAMED])} run {TFLITE}, which gives some {kind} slices no XNNPACK: answers may "
            f"differ in the last bits from those of the whole model; --delegate none prevents it ({PAGE})"
        )
    return ""


def plan_disagreement(deployment: Deployment, statuses: Mapping[str, NodeStatus]) -> str:
    """Return why results may depend on which node of a plan computes them, an empty text when all nodes agree.

    `statuses` are those of living nodes, by name; the ones that the plan does not name are passed over.
    """
    named = {placement.node for one in deployment.generations for placement in one.placements}
    ways = {printable(name, 40): way_of(status.device) for name, status in statuses.items() if name in named}
    told = deployment.config.delegate
    dtypes = {spec.dtype for one in deployment.generations for spec in one.manifest.tensors}
    return disagreement(ways, dtypes, delegate=None if told is msgspec.UNSET else told)


def _differ(ways: Collection[RuntimeInfo], kind: str) -> bool:
    if not kind.startswith("float") and all(way.delegate == "xnnpack" for way in ways):
        return len({way.runtime for way in ways}) > 1  # in integers XNNPACK gives the same bits on every machine
    return len(set(ways)) > 1
