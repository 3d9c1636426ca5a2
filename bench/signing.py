"""Time to sign and verify a plan, and what a slice of 10 MB costs besides: medians of interleaved rounds.

    python bench/signing.py [--rounds N]

A slice has no signature of its own: the plan names its SHA-256, which every node computes with or without one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import time
from collections.abc import Callable

from har_edge.config.pipeline import PipelineConfig
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.deployment import (
    VERSION,
    Deployment,
    Generation,
    Placement,
    encode_deployment,
)
from har_edge.protocol.events import decode
from har_edge.protocol.topics import Topics
from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorSpec
from har_edge.trust.gate import PlanGate
from har_edge.trust.keys import make_key
from har_edge.trust.pins import MemoryPins
from har_edge.trust.signer import PlanSigner
from har_edge.trust.verdict import Pin

TOPICS = Topics("har", "har")
STAGES = 8
SLICE_BYTES = 10_000_000


def made_plan() -> Deployment:
    """Return a synthetic plan of eight stages in a chain."""

    def tensor(number: int) -> tuple[TensorSpec, ...]:
        return (TensorSpec(f"tensor-{number}", (-1, 64), "float32"),)

    slices = tuple(
        SliceEntry(f"slice-{k}.tflite", f"{k:064x}", k, k + 1, tensor(k), tensor(k + 1)) for k in range(STAGES)
    )
    manifest = SliceManifest(1, "model.tflite", "a" * 64, slices)
    task = Task(
        StreamTask("mhealth", 50.0, 250, 125), {"chest": SourceInput("tensor-0")}, f"tensor-{STAGES}", ["still"], [1]
    )
    places = tuple(Placement(k, f"pi-{k}") for k in range(STAGES))
    return Deployment(VERSION, 7, "bench", 1.0, PipelineConfig(task), 1000, {}, (Generation(1000, manifest, places),))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    key, plan, content = make_key(), encode_deployment(made_plan()), os.urandom(SLICE_BYTES)
    signer = PlanSigner(TOPICS, key)
    gate = PlanGate(TOPICS, MemoryPins(Pin(enrolled=key.public, key=key.public)), print)
    signatures = [signer.sign(plan)]

    def sign() -> None:
        signatures[0] = signer.sign(plan)

    def verify() -> None:
        gate.admit(Delivery(TOPICS.signature(), signatures[0].payload, (1, 1)))
        if not gate.admit(Delivery(TOPICS.plan(), plan, (1, 1))):
            raise SystemExit(f"the signature was refused: {gate.refusal}")

    cases: dict[str, Callable[[], object]] = {
        f"read a plan of {len(plan)} bytes (without signatures too)": lambda: decode(
            Delivery(TOPICS.plan(), plan, (1, 1)), TOPICS
        ),
        "sign it": sign,
        "verify it": verify,
        "SHA-256 of a slice of 10 MB (without signatures too)": lambda: hashlib.sha256(content).digest(),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) * 1e6)
    print(f"synthetic data, {rounds} interleaved rounds; us: median (quartiles)")
    for name, found in times.items():
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"{name:55} {middle:9.0f} ({low:.0f} to {high:.0f})")
    print(f"a signature at the broker: {len(signatures[0].payload)} bytes")


if __name__ == "__main__":
    main()
