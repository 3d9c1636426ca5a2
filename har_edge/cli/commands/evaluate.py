"""`har-edge evaluate`: score a model on recordings, whole and cut into slices."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli import study
from har_edge.cli.arguments import options, values
from har_edge.cli.arguments.model_task import ResolvedModel, add_flags, resolve_model
from har_edge.cli.console import count, fold
from har_edge.cli.local_pipeline import check_client
from har_edge.cli.packed_slices import add_pack, find_packings
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.config.catalog import FoundModel
    from har_edge.config.task import Task
    from har_edge.evaluation.comparison import Answer
    from har_edge.evaluation.composition import Composition
    from har_edge.evaluation.prediction import Prediction
    from har_edge.inference.interpreter import Interpreter
    from har_edge.tflite.packing import TensorPacking

HELP = "score a model on recordings, whole and cut into slices; or methods of reduction on unseen people"
DEFAULT_STAGES = 3
# With more classes than this, the output also has the share of windows whose true class is among the best K.
MANY_CLASSES, DEFAULT_TOP_K = 20, 5
# Options that have no meaning for a study.
_OF_ONE_MODEL = ("model", "slices", "at", "json", "png", "delegate", "top_k", "labels", "input", "hop", "pack")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="a shipped model (those with -split never saw subjects 7 and 8), or a .tflite file "
        f"(default: {options.DEFAULT_MODEL})",
    )
    options.add_data(parser)
    parser.add_argument(
        "--subjects", type=values.subjects, metavar="LIST", help="streams to score, such as 7,8 (default: all)"
    )
    slices = parser.add_mutually_exclusive_group()
    slices.add_argument("--slices", type=Path, metavar="DIR", help="score the slices of this folder, too")
    slices.add_argument(
        "--at",
        type=values.operator_indices,
        metavar="I[,J..]",
        help="cut before these operators, and score the slices too",
    )
    slices.add_argument("--stages", type=values.positive, metavar="N", help="cut into N slices, and score them too")
    parser.add_argument(
        "--mqtt", action="store_true", help="send every window through a pipeline of processes, too (default: 3 slices)"
    )
    parser.add_argument("--missing", action="store_true", help="score with each source missing in turn, too")
    parser.add_argument("--json", type=values.writable_file, metavar="FILE", help="write the figures as JSON")
    parser.add_argument(
        "--png", type=values.writable_file, metavar="FILE", help="draw the confusion matrix (extra: evaluation)"
    )
    add_pack(parser)
    options.add_delegate(parser)
    parser.add_argument(
        "--top-k",
        type=values.positive,
        metavar="K",
        help="report also how often the true class is among the K best (default: 5 for more than 20 classes)",
    )
    add_flags(parser, stream=False)
    options.add_broker(parser, embedded=True, version="--mqtt-version")
    options.add_quiet(parser)
    parser.set_defaults(of_study=study.configure(parser))


def run(args: argparse.Namespace) -> int:
    """Score one model, or with --protocol many variants; return 1 when outputs differ or a trial failed."""
    options.one_thread()
    options.start_logging(args)
    study_only = [name for name in args.of_study if getattr(args, name) is not None and name != "stream"]
    if args.study in study.MQTT_VERSIONS:
        args.study, args.protocol = None, args.study
    if args.study is None:
        _refuse(study_only, "is for studies: add --protocol loso, split or random")
        return _measure_model(args)
    _refuse(
        [name for name in _OF_ONE_MODEL if getattr(args, name) is not None], "measures one model: leave out --protocol"
    )
    return study.run(args)


def _refuse(names: Sequence[str], reason: str) -> None:
    if names:
        raise ConfigError(f"--{names[0].replace('_', '-')} {reason}")


def _measure_model(args: argparse.Namespace) -> int:
    """Score, print and write; return 1 when slices differ from the whole model."""
    from har_edge.cli.reports import evaluation as evaluation_report
    from har_edge.config.catalog import find_model
    from har_edge.data.grouping import regroup, regroup_recording
    from har_edge.evaluation.chart import draw_confusion
    from har_edge.evaluation.comparison import compare_answers, compare_scores
    from har_edge.evaluation.composition import cut_composition, load_composition, load_whole
    from har_edge.evaluation.missing import score_without_each
    from har_edge.evaluation.packed import TensorWay
    from har_edge.evaluation.prediction import Classifier, predict_recordings
    from har_edge.evaluation.report import MAX_MATRIX, evaluate, write_evaluation
    from har_edge.extras import require
    from har_edge.inference.codecs import FolderFiles
    from har_edge.tflite.packing import Rounding

    if args.pack and (args.slices or args.mqtt or (args.at is None and args.stages is None)):
        raise ConfigError(
            "--pack came; expected it with --at or --stages, and without --mqtt: the slices of a folder travel as "
            "its manifest says"
        )
    if args.png is not None:
        require("--png", "matplotlib")
    if args.mqtt:
        check_client(args)
    known = resolve_model(args, find_model(args.model or options.DEFAULT_MODEL))
    found, task, described = known.found, known.task, known.described
    if args.png is not None and len(task.labels) > MAX_MATRIX:
        raise ConfigError(f"--png draws at most {MAX_MATRIX} classes; this model has {len(task.labels)}")
    if args.mqtt and args.slices is None and args.at is None and args.stages is None:
        args.stages = DEFAULT_STAGES
    cuts = _cuts(found, args)
    recordings, origin = options.load_recordings(args, described, args.subjects)
    recordings = [regroup_recording(recording, described, task.stream.grouping) for recording in recordings]
    interpreter = load_whole(found.path, task, args.delegate)
    sources = regroup(described, task.stream.grouping).sources

    def classify(model: Interpreter | Composition, *, watch: bool = False) -> Classifier:
        channels = {source.name: len(source.channels) for source in sources}
        files = FolderFiles(found.path.parent, task.files, args.delegate)
        return Classifier(model.run, model.inputs, task, channels=channels, files=files, watch=watch)

    watching = classify(interpreter, watch=True)
    whole = list(count(predict_recordings(watching, recordings, task), "windows of the whole model"))
    ways, packed = {}, None
    if cuts is not None:
        packings, calibrated = _packings(known, cuts, args)
        way = TensorWay(packings)
        if args.slices:
            slices = load_composition(args.slices, found.sha256, task, args.delegate, way)
        else:
            slices = cut_composition(found.path, cuts, task, args.delegate, way)
        answers = list(count(predict_recordings(classify(slices), recordings, task), "windows of the slices"))
        packed = way.score(whole, answers) if packings else None
        if all(one.rounding is Rounding.NONE for one in packings.values()):
            ways["slices"] = compare_scores(whole, answers)
        if calibrated:
            print(fold(f"calibrated int8 activations on {calibrated}", 11))
    if args.mqtt:
        output = next(port for port in interpreter.outputs if port.name == task.output)
        came, broker = _send_through(known, args, cuts or (), [recording.stream for recording in recordings])
        ways["mqtt"] = compare_answers(whole, came, output)
        print(fold(f"broker     {broker}", 11))
    top_k = _top_k(args, task, whole)
    evaluation = evaluate(found, task, whole, recordings, origin, ways, top_k, watching.saturations, packed)
    print(evaluation_report.format_evaluation(evaluation))
    if args.missing:
        print(evaluation_report.format_missing(score_without_each(classify(interpreter), recordings, task)))
    if args.json is not None:
        write_evaluation(evaluation, args.json)
    if args.png is not None:
        draw_confusion(evaluation, args.png, f"{known.name}: {origin}")
    return 0 if all(way.identical for way in ways.values()) else 1


def _top_k(args: argparse.Namespace, task: Task, predictions: Sequence[Prediction]) -> tuple[int, ...]:
    """Return the values of K, by default 5 if there are many classes, and scores to rank them by."""
    classes = len(task.labels)
    if args.top_k is not None:
        if args.top_k > classes:
            raise ConfigError(f"--top-k {args.top_k} came; expected at most {classes}, the classes of this model")
        return (args.top_k,)
    ranked = all(prediction.scores.size == classes for prediction in predictions[:1])
    return (DEFAULT_TOP_K,) if classes > MANY_CLASSES and ranked else ()


def _cuts(found: FoundModel, args: argparse.Namespace) -> Sequence[int] | None:
    """Return the operators to cut at, None for the whole model only."""
    from har_edge.inference.tensor_observation import open_model
    from har_edge.runtime.slicing import plan_cuts
    from har_edge.tflite.manifest import load_manifest

    if args.slices is not None:
        return [entry.start for entry in load_manifest(args.slices).slices[1:]]
    if args.stages is not None:
        return plan_cuts(open_model(found.path, args.delegate), args.stages, delegate=args.delegate).cuts
    return args.at  # type: ignore[no-any-return]


def _packings(
    known: ResolvedModel, cuts: Sequence[int], args: argparse.Namespace
) -> tuple[dict[str, TensorPacking], str]:
    """Return how the activations of the slices travel, and on what that was calibrated just now."""
    from har_edge.evaluation.composition import packings_of
    from har_edge.inference.tensor_observation import open_model
    from har_edge.tflite.folder import make_manifest
    from har_edge.tflite.manifest import NEWEST_WIRE, load_manifest
    from har_edge.tflite.slices import slice_model

    if args.slices is not None:
        return packings_of(load_manifest(args.slices)), ""
    if not args.pack:
        return {}, ""
    model = open_model(known.found.path, args.delegate)
    manifest = make_manifest(model, slice_model(model, cuts), wire=NEWEST_WIRE)
    return find_packings(model, manifest, known.task, known.beside, args)


def _send_through(
    known: ResolvedModel, args: argparse.Namespace, cuts: Sequence[int], names: Sequence[str]
) -> tuple[dict[tuple[str, int], Answer], str]:
    """Run the whole pipeline on this machine; return its results by (stream, seq), and the broker's name."""
    from har_edge.cli.local_pipeline import open_cluster, start_nodes
    from har_edge.evaluation.comparison import Answer

    index = {label: position for position, label in enumerate(known.task.label_ids)}
    with open_cluster(
        args, known.found, stages=len(cuts) + 1, cuts=cuts, task=known.task, delegate=args.delegate
    ) as cluster:
        start_nodes(cluster, args, names, speed=None)
        arrivals = (arrival for arrival in cluster.arrivals() if arrival is not None)
        results = [arrival.result for arrival in count(arrivals, "windows through the broker")]
    return {
        (result.stream, result.seq): Answer(index[result.label_id], result.confidence) for result in results
    }, cluster.described
