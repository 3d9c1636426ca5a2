"""The checks of `har-edge slice --check`: slices, shards and folders compared with the whole model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.console import follow

if TYPE_CHECKING:
    from har_edge.runtime.verify import CutCheck
    from har_edge.runtime.verify_split import SplitCheck
    from har_edge.tflite.cuts import Cut
    from har_edge.tflite.model import Model
    from har_edge.tflite.split.program import SplitLayout


def check_folder(args: argparse.Namespace) -> int:
    """Compare the slices of a folder with the whole model on this machine's runtime; return 1 when a bit differs."""
    from har_edge.config.catalog import find_model
    from har_edge.inference.slice_check import check_slices
    from har_edge.inference.wheels import installed

    found = find_model(args.model)
    checked = check_slices(found.path, args.slices, threads=args.threads, delegate=args.delegate or _told(args.slices))
    said = checked.difference or "equal, bit for bit"
    if checked.error and not checked.difference:
        said = f"integers equal, floats within {checked.error:.1e} of the largest value"
    if args.json:
        figures = {
            "runs": checked.runs,
            "slices": checked.slices,
            "runtime": installed(),
            "whole": checked.delegate.value,
        }
        print(json.dumps(figures | {"difference": checked.difference, "relative_error": checked.error}))
    else:
        print(f"check: {checked.slices} slices compared with the whole model in {checked.runs} runs: {said}")
        print(f"runtime: {installed()}; delegate of the whole: {checked.delegate.value}")
    return 1 if checked.difference else 0


def _told(folder: Path) -> str | None:
    """Return the delegate that the pipeline file of a folder names, None where it names none."""
    import msgspec

    from har_edge.config.pipeline import load_pipeline
    from har_edge.config.pipeline_config import FILE_NAME

    if not (folder / FILE_NAME).is_file():
        return None
    told = load_pipeline(folder).config.delegate
    return None if told is msgspec.UNSET else told


def check_split_layout(model: Model, layout: SplitLayout, folder: Path, args: argparse.Namespace) -> SplitCheck:
    """Compare the stages of a split with the whole model."""
    from har_edge.inference.interpreter import Delegate
    from har_edge.inference.load_check import default_check
    from har_edge.runtime.verify_split import check_split
    from har_edge.tflite.split.folder import write_split

    delegate = Delegate(args.delegate or Delegate.XNNPACK)
    default_check()(model.data, model.name, delegate.value)
    write_split(layout, folder)
    return check_split(model, folder, threads=args.threads, delegate=delegate)


def check_slices_of(
    model: Model, cuts: Sequence[Cut], chosen: Sequence[int] | None, args: argparse.Namespace
) -> list[CutCheck]:
    """Compare every legal cut, and the chosen ones together, with the whole model."""
    from har_edge.inference.interpreter import Delegate
    from har_edge.inference.load_check import default_check
    from har_edge.runtime.verify import check_cuts

    delegate = Delegate(args.delegate or Delegate.XNNPACK)
    default_check()(model.data, model.name, delegate.value)
    ways: list[tuple[int, ...]] = [(cut.index,) for cut in cuts if cut.refusal is None]
    together = tuple(sorted(set(chosen or ())))
    if together not in ways:
        ways.append(together)
    checks = check_cuts(model, ways, threads=args.threads, wire_version=args.wire, delegate=delegate)
    return list(follow(checks, len(ways), "checking cuts"))
