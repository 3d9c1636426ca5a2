"""`har-edge bench`: measure the speedup of several devices, and compare it with the planner's forecast, on emulated
ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options, values
from har_edge.units import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from har_edge.experiments.bench import Bench
    from har_edge.experiments.model_under_test import ModelUnderTest
    from har_edge.experiments.rows import MeasuredRow
    from har_edge.planner.profile import Profile

HELP = "measure on emulated devices: throughput by number of devices, and the planner's forecasts"
_EPILOG = """MODEL is a shipped model (float, int8, ...), the path of a .tflite file, or a Keras model made once with
TensorFlow (xception, mobilenetv2, resnet50, nasnetmobile: random weights from a seed). Windows and images are made
up: good for times, not for accuracies. Every measurement is a row of DIR/measured.csv as soon as it is there; the
same command goes on where it was stopped. Needs root, iproute2 and Mosquitto (docs/how-to/emulated-devices.md)."""
# Throughput on two and three devices over one: Mohammed et al., 2021 (docs/results.md).
PUBLISHED = {2: 1.55, 3: 1.75}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add `speedup` and `planner`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("speedup", "throughput of slices on several equal devices over one that holds the whole model"),
        ("planner", "the planner's bottleneck beside the measured one, on devices that differ"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EPILOG)
        action.add_argument("--model", action="append", required=True, metavar="MODEL", help="model to cut; repeatable")
        if name == "speedup":
            action.add_argument(
                "--devices",
                type=numbers,
                default=[1, 2, 3, 4],
                metavar="LIST",
                help="numbers of devices (default: 1,2,3,4)",
            )
            action.add_argument(
                "--cpu", default="0.1", metavar="CORES", help="fraction of a core for each device (default: 0.1)"
            )
        else:
            action.add_argument(
                "--cpus",
                action="append",
                metavar="LIST",
                help="fractions of a core of the devices; repeatable (default: 0.2,0.1,0.05 0.1,0.05 0.05,0.2)",
            )
        action.add_argument(
            "--link", default="94mbit", metavar="RATE", help="rate of each link, in each direction (default: 94mbit)"
        )
        action.add_argument(
            "--repeats", type=values.positive, default=3, metavar="N", help="repetitions, in turns (default: 3)"
        )
        action.add_argument(
            "--seconds", type=values.positive, default=20, metavar="S", help="seconds of each measurement (default: 20)"
        )
        action.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="folder for rows, profiles and slices"
        )
        action.add_argument("--verbose", action="store_true", help="log more to standard error")


def numbers(text: str) -> list[int]:
    """Read numbers of devices such as 1,2,3."""
    return [values.positive(part) for part in text.split(",")]


def run(args: argparse.Namespace) -> int:
    """Run `har-edge bench`."""
    options.one_thread()
    import logging

    logging.basicConfig(level=logging.INFO if args.verbose else logging.ERROR)
    from har_edge.emulation.limits import read_rate
    from har_edge.emulation.machine import check_machine
    from har_edge.experiments.bench import Bench, Conditions

    check_machine()
    conditions = Conditions(read_rate(args.link), min(5.0, args.seconds), args.seconds, 10)
    bench = Bench(args.out, conditions, tell=_tell)
    tested = [_find(name, args.out) for name in args.model]
    print(f"{_machine()}; link {args.link} each way; made-up windows; {args.seconds} s each", flush=True)
    return {"speedup": _speedup, "planner": _planner}[args.action](args, bench, tested)


def _find(name: str, folder: Path) -> ModelUnderTest:
    from har_edge.experiments.model_under_test import find_model_under_test
    from har_edge.training.keras_cache import NAMES, find_keras

    return find_model_under_test(str(find_keras(name)) if name in NAMES else name, folder / "models" / Path(name).stem)


def _speedup(args: argparse.Namespace, bench: Bench, tested: Sequence[ModelUnderTest]) -> int:
    from har_edge.emulation.limits import read_cpu
    from har_edge.experiments.rows import gains
    from har_edge.extras import install_line, is_installed

    if not is_installed("matplotlib"):
        print(f"no picture will be drawn: matplotlib is not installed; {install_line('matplotlib')}", file=sys.stderr)
    cpu = read_cpu(args.cpu)
    counts = sorted({1, *args.devices})
    rows = _measure(args, bench, tested, [[cpu] * count for count in counts])
    found = gains(rows)
    print(
        f"\n{'model':34}{'devices':>8}{'windows/s':>11}{'speed-up':>10}{'lowest':>8}{'highest':>8}{'published':>11}"
        "  busy, cuts"
    )
    for gain in found:
        said = f"{PUBLISHED[gain.devices]:.2f}" if gain.devices in PUBLISHED else "-"
        print(
            f"{gain.model:34}{gain.devices:>8}{gain.windows_per_s:>11.2f}{gain.speedup:>10.2f}{gain.lowest:>8.2f}"
            f"{gain.highest:>8.2f}{said:>11}  {gain.busy}, at {gain.cuts or 'none'}"
        )
    return _draw(args, found)


def _draw(args: argparse.Namespace, found: Sequence[object]) -> int:
    from har_edge.evaluation.scaling import Point, draw_speedup
    from har_edge.experiments.rows import Gain
    from har_edge.extras import is_installed

    curves: dict[str, list[Point]] = {}
    for gain in found:
        assert isinstance(gain, Gain)
        curves.setdefault(gain.model, []).append(Point(gain.devices, gain.speedup, gain.lowest, gain.highest))
    published = [Point(1, 1.0, 1.0, 1.0), *(Point(count, value, value, value) for count, value in PUBLISHED.items())]
    path = args.out / "speedup.png"
    if not is_installed("matplotlib"):
        print(f"rows in {args.out / 'measured.csv'}; no picture, since matplotlib is not installed")
        return 0
    draw_speedup(curves, published, path, f"Emulated devices, {args.cpu} cores and {args.link} each")
    print(f"rows in {args.out / 'measured.csv'}, picture in {path}")
    return 0


def _planner(args: argparse.Namespace, bench: Bench, tested: Sequence[ModelUnderTest]) -> int:
    from statistics import median

    from har_edge.emulation.limits import read_cpu

    beds = [
        [read_cpu(part) for part in text.split(",")] for text in args.cpus or ("0.2,0.1,0.05", "0.1,0.05", "0.05,0.2")
    ]
    rows = _measure(args, bench, tested, beds)
    print(f"\n{'model':34}{'devices':>16}{'used':>16}{'predicted':>11}{'measured':>10}{'error':>8}  cuts")
    worst = 0.0
    groups: dict[tuple[str, str], list[MeasuredRow]] = {}
    for row in rows:
        groups.setdefault((row.model, row.cpus), []).append(row)
    for (model, cpus), group in groups.items():
        error = median(row.error for row in group)
        worst = max(worst, abs(error))
        print(
            f"{model:34}{cpus:>16}{group[-1].used:>16}{duration(median(row.predicted_s for row in group)):>11}"
            f"{duration(median(row.period_s for row in group)):>10}{error:>+8.0%}  {group[-1].cuts or 'none'}"
        )
    print(f"largest error {worst:.0%}; rows in {args.out / 'measured.csv'}")
    return 0


def _measure(
    args: argparse.Namespace, bench: Bench, tested: Sequence[ModelUnderTest], beds: Sequence[Sequence[float]]
) -> list[MeasuredRow]:
    """Measure every model on every emulation, in turns."""
    profiles: list[tuple[ModelUnderTest, Profile]] = [(under_test, bench.profile(under_test)) for under_test in tested]
    return [
        bench.measure(under_test, profile, cpus, repeat)
        for repeat in range(1, args.repeats + 1)
        for under_test, profile in profiles
        for cpus in beds
    ]


def _tell(row: MeasuredRow) -> None:
    print(
        f"{row.model} on {row.cpus}, repeat {row.repeat}: {1 / row.period_s:.2f} windows/s, {duration(row.period_s)} "
        f"(foreseen {duration(row.predicted_s)}), busy {row.busy}, cuts {row.cuts or 'none'}",
        flush=True,
    )


def _machine() -> str:
    import os
    import platform

    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, Linux {platform.release()}"
    )
