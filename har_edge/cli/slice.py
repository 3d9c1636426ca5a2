"""`har-edge slice`: cut a .tflite model into slices."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.graph.cuts import Cut
    from har_edge.graph.model import Model
    from har_edge.inference.verify import CutCheck

NAME = "slice"
HELP = "cut a .tflite model into slices, each for a device of its own"

Item = TypeVar("Item")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="the .tflite file, or the name of a shipped model (float, int8)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for slices, manifest.json, pipeline.toml")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print every cut with the tensors and bytes that cross it")
    what.add_argument("--at", type=_indices, metavar="I[,J..]", help="cut before these operators")
    what.add_argument("--stages", type=int, metavar="N", help="cut into N slices, balanced by time measured here")
    parser.add_argument(
        "--check", action="store_true", help="prove for every cut that the slices give the same bits as the whole model"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the runtime (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Cut, list or check; 1 when a check finds slices that differ from the whole."""
    from har_edge.cli import slice_report
    from har_edge.graph.cuts import list_cuts
    from har_edge.graph.folder import check_folder, write_folder
    from har_edge.graph.model import read_model
    from har_edge.graph.slices import slice_model
    from har_edge.planning.catalog import find_model
    from har_edge.planning.pipeline import write_pipeline

    _refuse_contradictions(args)
    if args.at is not None or args.stages is not None:
        check_folder(args.out)  # before minutes of measuring, not after
    found = find_model(args.model)
    model = read_model(found.path)
    cuts = list_cuts(model)
    report = slice_report.start(model, cuts)
    if args.list:
        report.add_cuts(cuts)
    chosen, predicted = _choose(model, args)
    slices = slice_model(model, chosen) if chosen is not None else []
    equal = True
    if args.check:
        checks = _check(model, cuts, chosen, args.threads)
        equal = report.add_checks(checks, cuts)
    if args.out is not None and chosen is not None:
        if args.check and report.differs(chosen):
            report.say(f"nothing written to {args.out}: these slices do not give what the whole model gives")
        else:
            manifest = write_folder(model, slices, args.out)
            report.add_slices(manifest, args.out, predicted)
            if found.entry is not None:
                write_pipeline(args.out, found.entry.task)
                report.say(f"run each slice with: har-edge stage --config {args.out} --index N")
            else:
                report.say(
                    "no manifest says what this model is for; to run the slices write pipeline.toml (docs/pipeline.md)"
                )
    report.print(as_json=args.json)
    return 0 if equal else 1


def _refuse_contradictions(args: argparse.Namespace) -> None:
    cutting = args.at is not None or args.stages is not None
    if not (cutting or args.list or args.check):
        raise ConfigError("nothing to do; give --list, --at, --stages or --check")
    if cutting and args.out is None:
        raise ConfigError("--at and --stages write slices; give the folder for them with --out DIR")
    if args.stages is not None and args.stages < 1:
        raise ConfigError(f"--stages {args.stages}: expected at least 1")
    if args.threads < 1:
        raise ConfigError(f"--threads {args.threads}: expected at least 1")


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of operator indices such as 4 or 4,9") from None


def _choose(model: Model, args: argparse.Namespace) -> tuple[list[int] | None, list[float]]:
    """Return the cuts to make, None when only looking, and the predicted seconds of each slice where measured."""
    if args.at is not None:
        return list(args.at), []
    if args.stages is None:
        return None, []
    from har_edge.inference.measure import measure_segments, overhead_s, segment_bounds, time_whole
    from har_edge.planning.partition import balance, plan_stages

    total = len(segment_bounds(model)) - 1
    balance([1.0] * total, args.stages, [0] * (total - 1))  # too many stages: say so before measuring
    segments = list(_progress(measure_segments(model, threads=args.threads), total, "timing segments"))
    plan = plan_stages(segments, overhead_s(segments, time_whole(model, threads=args.threads)), args.stages)
    return list(plan.cuts), list(plan.seconds)


def _check(model: Model, cuts: Sequence[Cut], chosen: Sequence[int] | None, threads: int) -> list[CutCheck]:
    """Compare every legal cut, and the chosen ones together, with the whole model."""
    from har_edge.inference.verify import check_cuts

    ways: list[tuple[int, ...]] = [(cut.index,) for cut in cuts if cut.refusal is None]
    together = tuple(sorted(set(chosen or ())))
    if together not in ways:
        ways.append(together)
    return list(_progress(check_cuts(model, ways, threads=threads), len(ways), "checking cuts"))


def _progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Show how far it is, on a terminal only."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=what, total=total, console=Console(stderr=True), transient=True)
