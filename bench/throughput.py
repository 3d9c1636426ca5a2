"""Throughput of the 3-stage int8 pipeline, all guarantees on, beside two bare relays in the same run.

    python bench/throughput.py [--repeats 5] [--windows 4000] [--client native|paho] [--batches 16,64] [--cuts 5,9]

Each repeat measures every candidate once, in turn; the table shows medians and ratios of medians. The relays pass on
bare bytes (bench/relay.py); the pipeline has envelope, joins, QoS 1 and an acknowledgement chain. Both get one message
a window with all three sources, already quantised; "3 sensors" sends one message a source instead, as three sensor
nodes do. Driver and pipeline share the cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

from rig import Relay, Staged, describe, open_rig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--windows", type=int, default=4000)
    parser.add_argument("--in-flight", type=int, default=200, help="windows (messages with --batches) on their way")
    parser.add_argument("--client", default="auto", choices=("auto", "paho", "native"))
    parser.add_argument("--batches", default="16,64", help="windows a message, for the batched runs")
    parser.add_argument("--cuts", help="cut before these two operators (default: stages of even time)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    batches = [int(size) for size in args.batches.split(",") if size]
    runs: dict[str, list[float]] = {}
    cuts = [int(cut) for cut in args.cuts.split(",")] if args.cuts else None
    with open_rig(cuts=cuts) as rig:
        print(describe(rig))
        for number in range(args.repeats + 1):
            for name, rate in candidates(rig, args, batches):
                value = rate()
                if number:  # the first round warms up
                    runs.setdefault(name, []).append(value)
    report(runs, args)


def candidates(rig, args, batches) -> list[tuple[str, Callable[[], float]]]:  # type: ignore[no-untyped-def]
    """Return each candidate; its processes live only while it is measured, so that nothing else runs beside it."""

    def relay(qos: int) -> float:
        relay = Relay(rig, qos)
        try:
            return relay.throughput(args.windows, args.in_flight)
        finally:
            relay.close()

    def staged(batch: int, *, apart: bool = False) -> float:
        pipeline = Staged(rig, args.client)
        try:
            pipeline.throughput(batch * 50, args.in_flight, batch, apart=apart)
            count = args.windows * (1 if batch == 1 else 8) // batch * batch
            in_flight = args.in_flight if batch == 1 else max(4, 1024 // batch)
            return pipeline.throughput(count, in_flight, batch, apart=apart)
        finally:
            pipeline.close()

    found: list[tuple[str, Callable[[], float]]] = [
        ("relay QoS 0", lambda: relay(0)),
        ("relay QoS 1", lambda: relay(1)),
        ("pipeline", lambda: staged(1)),
        ("pipeline, 3 sensors", lambda: staged(1, apart=True)),
    ]
    found += [(f"pipeline --batch {size}", lambda size=size: staged(size)) for size in batches]  # type: ignore[misc]
    return found


def report(runs: dict[str, list[float]], args: argparse.Namespace) -> None:
    middle = {name: median(values) for name, values in runs.items()}
    print(f"{'':<22}{'windows/s':>10}{'lowest':>10}{'highest':>10}{'of QoS 0':>10}{'of QoS 1':>10}")
    for name, values in runs.items():
        ratios = [middle[name] / middle[base] for base in ("relay QoS 0", "relay QoS 1")]
        print(
            f"{name:<22}{middle[name]:>10.0f}{min(values):>10.0f}{max(values):>10.0f}{ratios[0]:>10.2f}{ratios[1]:>10.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(runs, indent=2) + "\n")


if __name__ == "__main__":
    main()
