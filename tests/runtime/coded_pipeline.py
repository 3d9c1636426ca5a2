"""A group of shards with a parity shard, for the faulty pipeline: two layers, and a last stage that answers.

    chest, arm -> shares of h -> all shards -> shares of g -> last stage -> result

Each of the shards doubles some of the five channels, the parity shard the sum of all shares; all make h of any of
these but one, and then some channels of g, which is half of h. The numbers are whole, so that all sums are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from har_edge.tflite.manifest import ShardStep, SliceEntry, SliceManifest, TensorRegion, TensorSpec, versioned
from tests.runtime.faulty_pipeline import HASH, Array, Group, Values
from tests.runtime.rig import LENGTH

AXIS = 2
SOURCES = tuple(TensorSpec(name, (-1, LENGTH, width), "float32") for name, width in (("c", 2), ("a", 3)))
Run = Callable[[Values], Values]


def whole(name: str) -> TensorSpec:
    return TensorSpec(name, (-1, LENGTH, 5), "float32")


def share(name: str, low: int, high: int, flow: int = 0) -> TensorSpec:
    region = TensorRegion(name, AXIS, low, high)
    return TensorSpec(f"{name}[2:{low}:{high}]", (-1, LENGTH, high - low), "float32", region=region, flow=flow)


def parity(name: str, bounds: Sequence[int], flow: int = 0) -> TensorSpec:
    size = max(high - low for low, high in pairwise(bounds))
    region = TensorRegion(name, AXIS, 0, size, parity=tuple(bounds))
    return TensorSpec(f"{name}/parity", (-1, LENGTH, size), "float32", region=region, flow=flow)


def make_coded_group(*bounds: int) -> Group:
    """Return shards with these shares of the five channels, the parity shard, and the last stage."""
    pieces = [
        [*(share(name, low, high, flow) for low, high in pairwise(bounds)), parity(name, bounds, flow)]
        for name, flow in (("h+sums", 0), ("g+sums", 1))
    ]
    parts: list[list[tuple[int, int]]] = [[one] for one in pairwise(bounds)]
    parts.append(list(pairwise(bounds)))
    entries, runs = list[SliceEntry](), list[tuple[Run, ...]]()
    for k, own in enumerate(parts):
        first, last = (made[k] for made in pieces)
        steps = (
            ShardStep("f", HASH, SOURCES, (first,)),
            ShardStep("g", HASH, (whole("h+sums"),), (whole("h"),)),
            ShardStep("h", HASH, (whole("h"),), (last,)),
        )
        taken = tuple(one for number, one in enumerate(pieces[0]) if number != k)
        entries.append(SliceEntry("f", HASH, 0, 1, (*SOURCES, *taken), (first, last), steps=steps))
        runs.append((_layer(first.name, own, 2.0), lambda values: {"h": values["h+sums"]}, _layer(last.name, own, 0.5)))
    steps = (
        ShardStep("i", HASH, (whole("g+sums"),), (whole("g"),)),
        ShardStep("j", HASH, (whole("g"),), (TensorSpec("scores", (-1, 2), "float32"),)),
    )
    entries.append(SliceEntry("i", HASH, 1, 2, tuple(pieces[1]), steps[1].outputs, steps=steps))
    runs.append((lambda values: {"g": values["g+sums"]}, _scores))
    coded = [frozenset(f"{k}-{flow}" if flow else str(k) for k in range(len(parts))) for flow in (0, 1)]
    return Group(versioned(SliceManifest(0, "m", HASH, tuple(entries))), tuple(runs), tuple(coded))


def _layer(name: str, shares: Sequence[tuple[int, int]], factor: float) -> Run:
    """Return what makes a share of the channels, or the sum of several."""
    size = max(high - low for low, high in shares)

    def run(values: Values) -> Values:
        taken = values["h"] if "h" in values else np.concatenate([values["c"], values["a"]], axis=AXIS)
        total: Array = np.zeros((*taken.shape[:AXIS], size), np.float32)
        for low, high in shares:
            total[..., : high - low] += taken[..., low:high] * np.float32(factor)
        return {name: total}

    return run


def _scores(values: Values) -> Values:
    g = values["g"]
    return {"scores": np.stack([g[:, :, :2].sum(axis=(1, 2)), g[:, :, 2:].sum(axis=(1, 2))], axis=1)}
