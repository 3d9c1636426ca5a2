"""Find how the activations of `har-edge slice` and `har-edge evaluate` travel: --pack, calibrated on recordings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.config.catalog import FoundModel
    from har_edge.config.task import Task
    from har_edge.data.recording import Window
    from har_edge.evaluation.prediction import Array, Classifier, Run
    from har_edge.inference.interpreter import Interpreter
    from har_edge.tflite.manifest import SliceManifest
    from har_edge.tflite.model import Model
    from har_edge.tflite.packed_cuts import PackingRequest
    from har_edge.tflite.packing import TensorPacking

# Cuts and windows whose activations a profile packs.
SAMPLED_CUTS, SAMPLED_WINDOWS = 12, 4


def add_pack(parser: argparse._ActionsContainer) -> None:
    """Add `--pack`."""
    parser.add_argument(
        "--pack",
        type=_request,
        action="append",
        metavar="HOW[@CUT]",
        help="how activations travel: f2 (float16), q8 (int8, calibrated on --data), zstd (lossless), f2+zstd or "
        "q8+zstd; at all cuts, or at the one before operator CUT; repeatable; or auto, as the plan says (default: as "
        "they are)",
    )


def _request(text: str) -> PackingRequest:
    from har_edge.tflite.packed_cuts import parse_request

    try:
        return parse_request(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def find_packings(
    model: Model, manifest: SliceManifest, task: Task | None, beside: Path, args: argparse.Namespace
) -> tuple[dict[str, TensorPacking], str]:
    """Return the packings that --pack asks for, and on what they were calibrated; an empty text where nothing was.

    Raises ConfigError for what the slices cannot do, and where this machine lacks Zstandard.
    """
    from har_edge.config.model_state import starts_fresh
    from har_edge.evaluation.calibration import RANDOM_INPUTS, calibrate_on_random_inputs, open_packings, showing
    from har_edge.protocol.compression import is_available, missing_reason
    from har_edge.tflite.packed_cuts import choose_packings
    from har_edge.tflite.state import state_of

    packings = choose_packings(manifest, _requests(args))
    if any(one.zstd for one in packings.values()) and not is_available():
        raise ConfigError(f"--pack zstd: {missing_reason()}")
    if not open_packings(packings):
        return packings, ""
    fresh = task is not None and starts_fresh(state_of(model), task, model.name)
    shown = showing(model, open_packings(packings), fresh=fresh, delegate=args.delegate)
    if task is None or task.image is not None:
        said = f"{RANDOM_INPUTS} random inputs, for want of real ones, which may exceed the ranges"
        return calibrate_on_random_inputs(packings, shown), said
    return _on_recordings(packings, shown, task, beside, args)


def _requests(args: argparse.Namespace) -> list[PackingRequest]:
    """Return the packings that --pack asks for; with `auto`, those of the plan."""
    from har_edge.tflite.packed_cuts import planned_requests
    from har_edge.tflite.split.plan_file import load_plan

    given: list[PackingRequest] = args.pack or []
    if not any(request.planned for request in given):
        return given
    if len(given) > 1 or getattr(args, "plan", None) is None:
        raise ConfigError(
            "--pack auto came"
            + (" with other ways" if len(given) > 1 else "")
            + "; expected it alone and with --plan FILE, made by 'har-edge plan --pack auto': the plan has chosen how "
            "each tensor travels"
        )
    return planned_requests(load_plan(args.plan).packings)


def sample_activations(model: Model, found: FoundModel, args: argparse.Namespace) -> tuple[list[Array], str]:
    """Return activations that cross cuts of a model, for a few windows each, and what they were made from.

    At most SAMPLED_CUTS cuts count, evenly from all. Without recordings of the model's stream, the inputs are random.
    """
    from har_edge.config.model_state import starts_fresh
    from har_edge.evaluation.calibration import random_inputs, showing
    from har_edge.tflite.cuts import list_cuts
    from har_edge.tflite.state import state_of

    legal = [cut for cut in list_cuts(model) if cut.refusal is None]
    chosen = legal[:: max(1, -(-len(legal) // SAMPLED_CUTS))]
    names = list(dict.fromkeys(item.tensor.name for cut in chosen for item in cut.crossing))
    task = None if found.entry is None else found.entry.task
    fresh = task is not None and starts_fresh(state_of(model), task, model.name)
    shown = showing(model, names, fresh=fresh, delegate=args.delegate)
    if task is None or not _has_recordings(task, found.path.parent, args):
        inputs, data = random_inputs(shown, SAMPLED_WINDOWS), "random inputs"
        if task is not None and task.image is None:
            data = f"random inputs, for want of recordings of {task.stream.description!r}"
        return [array for values in inputs for name, array in shown.run(values).items() if name in names], data
    made: list[Array] = []

    def run(values: Mapping[str, Array]) -> Mapping[str, Array]:
        results = shown.run(values)
        made.extend(array for name, array in results.items() if name in names)
        return results

    windows, classifier, data = _windows(run, shown, task, found.path.parent, args, SAMPLED_WINDOWS)
    for window in windows:
        classifier.predict(window)
    return made, data


def _has_recordings(task: Task, beside: Path, args: argparse.Namespace) -> bool:
    """Return whether there are recordings of a task's stream, or synthetic ones in their place."""
    from har_edge.config.task import describe
    from har_edge.data.locate import find_data

    if task.image is not None:
        return False
    described = describe(task, beside)
    return described.name == "mhealth" or find_data(args.data, described) is not None


def _windows(
    run: Run, model: Interpreter, task: Task, beside: Path, args: argparse.Namespace, most: int
) -> tuple[list[Window], Classifier, str]:
    """Return at most so many windows of the recordings, a classifier that runs them, and what they are."""
    from har_edge.config.task import describe
    from har_edge.data.grouping import regroup, regroup_recording
    from har_edge.evaluation.packed import spread_windows
    from har_edge.evaluation.prediction import Classifier
    from har_edge.inference.codecs import FolderFiles

    described = describe(task, beside)
    recordings, origin = options.load_recordings(args, described, getattr(args, "subjects", None))
    recordings = [regroup_recording(one, described, task.stream.grouping) for one in recordings]
    windows = spread_windows(recordings, task.stream.length, task.stream.hop, most)
    sources = regroup(described, task.stream.grouping).sources
    channels = {source.name: len(source.channels) for source in sources}
    files = FolderFiles(beside, task.files, args.delegate)
    classifier = Classifier(run, model.inputs, task, channels=channels, files=files)
    return windows, classifier, f"{len(windows)} windows of {origin}"


def _on_recordings(
    packings: dict[str, TensorPacking],
    model: Interpreter,
    task: Task,
    beside: Path,
    args: argparse.Namespace,
) -> tuple[dict[str, TensorPacking], str]:
    from har_edge.evaluation.calibration import WINDOWS, calibrate_on_windows, observed, open_packings

    observer, run = observed(model, open_packings(packings))
    windows, classifier, said = _windows(run, model, task, beside, args, WINDOWS)
    return calibrate_on_windows(packings, observer, classifier, windows), said
