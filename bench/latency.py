"""Latency of the 3-stage int8 pipeline at a steady 50 windows/s, beside the bare relays in the same run.

    python bench/latency.py [--rate 50] [--windows 500] [--repeats 3]

From the moment a window is handed to the client until its result is there, in one driver process. Candidates take
turns; the table shows percentiles over all repeats.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rig import Relay, Staged, describe, open_rig, percentiles

BASE = "relay QoS 1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50.0, help="windows per second")
    parser.add_argument("--windows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clients", default="auto,paho", help="MQTT clients to measure the pipeline with")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    runs: dict[str, list[float]] = {}
    with open_rig() as rig:
        print(f"{describe(rig)}; {args.rate:g} windows/s")
        makers = {"relay QoS 0": lambda: Relay(rig, 0), BASE: lambda: Relay(rig, 1)}
        for client in args.clients.split(","):
            makers[f"pipeline ({client})"] = lambda client=client: Staged(rig, client)  # type: ignore[misc]
        for _ in range(args.repeats):
            for name, make in makers.items():
                candidate = make()
                try:
                    candidate.latencies_ms(25, args.rate)  # warm-up
                    runs.setdefault(name, []).extend(candidate.latencies_ms(args.windows, args.rate))
                finally:
                    candidate.close()
    base = percentiles(runs[BASE])
    print(f"{'':<20}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'p50 of ' + BASE:>22}{'p95 of ' + BASE:>22}")
    for name, values in runs.items():
        p50, p95, p99 = percentiles(values)
        print(f"{name:<20}{p50:>9.2f}{p95:>9.2f}{p99:>9.2f}{p50 / base[0]:>22.2f}{p95 / base[1]:>22.2f}")
    if args.json:
        args.json.write_text(json.dumps(runs) + "\n")


if __name__ == "__main__":
    main()
