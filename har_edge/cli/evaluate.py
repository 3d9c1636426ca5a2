"""`har-edge evaluate`: how good a model is on recordings, whole and cut into slices."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli import options
from har_edge.errors import ModelError

if TYPE_CHECKING:
    from har_edge.evaluation.composition import Composition
    from har_edge.evaluation.prediction import Prediction
    from har_edge.inference.interpreter import Interpreter
    from har_edge.planning.catalog import FoundModel
    from har_edge.planning.task import Task
    from har_edge.streams.recording import Recording

NAME = "evaluate"
HELP = "Measure a model on recordings: accuracy, F1, confusion; the same for its slices."


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--model",
        default="int8",
        metavar="NAME|PATH",
        help="shipped model (float, int8, float-split, int8-split) or a .tflite file with its manifest (default: int8)",
    )
    options.add_data(parser)
    parser.add_argument(
        "--subjects", type=options.subjects, metavar="LIST", help="streams to score, such as 7,8 (default: all)"
    )
    slices = parser.add_mutually_exclusive_group()
    slices.add_argument("--slices", type=Path, metavar="DIR", help="score the slices of this folder too")
    slices.add_argument("--at", type=_indices, metavar="I[,J..]", help="cut before these operators; score that too")
    slices.add_argument("--stages", type=options.positive, metavar="N", help="cut into N slices, score them too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the confusion matrix (extra: evaluation)")


def run(args: argparse.Namespace) -> int:
    """Score, print, write; 1 when slices differ from the whole model."""
    from har_edge.cli import evaluate_report
    from har_edge.evaluation.chart import draw_confusion
    from har_edge.evaluation.comparison import compare_scores
    from har_edge.evaluation.report import evaluate, write_evaluation
    from har_edge.inference.interpreter import Interpreter
    from har_edge.planning.catalog import find_model
    from har_edge.streams.description import load_description

    found = find_model(args.model)
    if found.entry is None:
        raise ModelError(
            f"{found.path}: no manifest says which windows this model takes and what it answers; expected an entry "
            "with its hash in the manifest.json beside it, as 'har-edge train' writes it"
        )
    task = found.entry.task
    slices = _slices(found, args)
    recordings, origin = options.load_recordings(args, load_description(task.stream.description), args.subjects)
    whole = _predict(Interpreter(found.path), recordings, task)
    ways = {} if slices is None else {"slices": compare_scores(whole, _predict(slices, recordings, task))}
    # What came over MQTT is one more way: ways["mqtt"] = compare_answers(whole, {(stream, seq): class index}).
    evaluation = evaluate(found, whole, recordings, origin, ways)
    print(evaluate_report.format_evaluation(evaluation))
    if args.json is not None:
        write_evaluation(evaluation, args.json)
    if args.png is not None:
        draw_confusion(evaluation, args.png, f"{found.entry.name}: {origin}")
    return 0 if all(way.identical for way in ways.values()) else 1


def _slices(found: FoundModel, args: argparse.Namespace) -> Composition | None:
    from har_edge.evaluation.composition import balanced_cuts, cut_composition, load_composition

    if args.slices is not None:
        return load_composition(args.slices, found.sha256)
    if args.at is not None:
        return cut_composition(found.path, args.at)
    if args.stages is not None:
        return cut_composition(found.path, balanced_cuts(found.path, args.stages))
    return None


def _predict(model: Interpreter | Composition, recordings: Sequence[Recording], task: Task) -> list[Prediction]:
    from har_edge.evaluation.prediction import Classifier, predict_recordings

    return list(predict_recordings(Classifier(model.run, model.inputs, task), recordings, task))


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of operator indices such as 4 or 4,9") from None
