"""`har-edge train --task anomaly`: learn normal pictures, here or on devices, and write a detector of anomalies."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from har_edge.cli.arguments import options
from har_edge.cli.console import say
from har_edge.errors import ConfigError
from har_edge.files import write_atomic
from har_edge.protocol.text import origin_word
from har_edge.units import duration, plural, size

if TYPE_CHECKING:
    from har_edge.config.anomaly import AnomalyNote
    from har_edge.evaluation.anomaly_metrics import AnomalyFigures
    from har_edge.learning.anomaly.choosing import LearnedFeatures
    from har_edge.learning.anomaly.features import Features, NetworkFeatures
    from har_edge.learning.anomaly.finishing import DataOrigin, FinishedDetector
    from har_edge.learning.anomaly.pictures import AnomalyPictures, NormalSplit
    from har_edge.learning.anomaly.statistics import FeatureStatistics
    from har_edge.learning.data.datasets import Dataset
    from har_edge.learning.preparation import TrainableModel
    from har_edge.learning.updates.vectors import Vector
    from har_edge.protocol.topics import Topics

DEFAULT_NAME = "anomaly"
DEFAULT_OPTIMIZER = "adam:lr=0.002,schedule=cosine"
DEFAULT_EPOCHS = 30
AUTO = "auto"
METHODS = ("autoencoder", "padim", "padim-full", "student", "joint")

# How a network, or a sum of features, is trained: the model, its samples, the optimizer, passes, and a name for it.
Train = Callable[["TrainableModel", "Dataset", str, int, str], "Vector"]


@dataclass(frozen=True, slots=True)
class AnomalyReport:
    """The report of a training, as JSON."""

    method: str
    data: str
    real: bool
    normal_pictures: int
    held_out: int
    threshold: float
    quantile: float
    separation: dict[str, float]
    seconds: float
    sha256: str
    test: dict[str, object] | None


def run_anomaly(args: argparse.Namespace) -> int:
    """Train each method that was asked for, keep the best, and write it with its figures."""
    from har_edge.cli.anomaly_offer import check_offer
    from har_edge.cli.reports.training_files import EXIT_INCOMPLETE
    from har_edge.data.pictures import AspectRule
    from har_edge.learning.anomaly.finishing import DataOrigin, finish_detector
    from har_edge.learning.anomaly.pictures import split_normal
    from har_edge.protocol.topics import Topics, check_id

    if args.data is None:
        raise ConfigError("--task anomaly needs --data PATH, a folder with normal pictures in train/good")
    if args.int8 or args.own_data or args.deploy == "int8":
        raise ConfigError(
            "--int8, --deploy int8 or --own-data came with --task anomaly; a detector is float32, and its threshold "
            "needs normal pictures here"
        )
    name = check_id("name of the training", args.run_name or DEFAULT_NAME)
    pictures = load_pictures(args)
    for line in pictures.refused:
        say(line)
    say(pictures.origin)
    topics = Topics(args.base, args.pipeline)
    if args.deploy:
        options.one_thread()
        options.start_logging(args)
        check_offer(args, topics)
    split = split_normal(pictures.train, args.held_out, args.seed)
    origin = DataOrigin(pictures.name, pictures.real, AspectRule(args.fit))
    began, found = time.monotonic(), dict[str, "FinishedDetector"]()
    for method in _methods(args):
        learned = learn(args, method, split, origin, _trainer(args, name, method))
        one = found[method] = finish_detector(learned, split.held_out, origin, args.quantile, args.seed)
        say(f"{method}: AUROC {one.separation:.4f} on synthetic defects of {plural(len(split.held_out), 'picture')}")
    best = max(found.values(), key=lambda one: one.separation)
    say(threshold_line(best.note))
    figures = evaluate(args, name, best, pictures)
    report = AnomalyReport(
        method=best.note.method,
        data=pictures.name,
        real=pictures.real,
        normal_pictures=len(split.train),
        held_out=len(split.held_out),
        threshold=best.note.threshold,
        quantile=args.quantile,
        separation={method: one.separation for method, one in found.items()},
        seconds=round(time.monotonic() - began, 3),
        sha256=hashlib.sha256(best.content).hexdigest(),
        test=None if figures is None else asdict(figures),
    )
    write_files(args.out, name, best.content, report)
    return 0 if not args.deploy or _offer(args, topics, name, best.content, split, pictures) else EXIT_INCOMPLETE


def _offer(
    args: argparse.Namespace,
    topics: Topics,
    name: str,
    content: bytes,
    split: NormalSplit,
    pictures: AnomalyPictures,
) -> bool:
    """Offer a detector to the pipeline that runs; return whether it is deployed at the end."""
    from har_edge.cli.anomaly_offer import offer_detector
    from har_edge.cli.version_offer import LiveWatch
    from har_edge.runtime.stop import Stop

    live = LiveWatch(args, topics) if args.trial else None
    try:
        return offer_detector(args, topics, name, content, split, pictures, live, Stop().catch_signals())
    finally:
        if live is not None:
            live.close()


def threshold_line(note: AnomalyNote) -> str:
    """Return the method and the threshold, with the number of scores behind it: a quantile of few is their largest."""
    return (
        f"chosen: {note.method}; threshold {note.threshold:.4g}, quantile {note.quantile:g} "
        f"of {plural(note.held_out, 'held-out normal score')}"
    )


def write_files(out: Path, name: str, content: bytes, report: AnomalyReport) -> None:
    """Write the detector and the report, and say where they are."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.tflite"
    write_atomic(path, content)
    say(f"{path}: {size(len(content))}, sha256 {report.sha256}; made in {duration(report.seconds)}")
    write_atomic(path.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(report), indent=1))
    say(str(path.with_suffix(".json")))


def load_pictures(args: argparse.Namespace) -> AnomalyPictures:
    """Return the pictures below --data: one class of a labelled set with --normal, else folders as MVTec AD's."""
    from har_edge.data.pictures import AspectRule, PictureShape
    from har_edge.learning.anomaly.classes import one_class
    from har_edge.learning.anomaly.folders import read_anomaly_folder
    from har_edge.learning.data.dataset_files import ReadOptions, read_data

    shape = PictureShape(args.size, args.size, 1 if args.grey else 3)
    if args.normal is not None:
        return one_class(read_data(args.data, ReadOptions(shape=shape, seed=args.seed)), args.normal)
    return read_anomaly_folder(args.data, shape, AspectRule(args.fit))


def _methods(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the methods to try: with `auto` all, or the autoencoder alone where no network gives features."""
    if args.method == AUTO:
        return METHODS if args.features is not None else METHODS[:1]
    if args.method != METHODS[0] and args.features is None:
        raise ConfigError(
            f"--method {args.method} needs --features FILE.tflite, a network whose layers it takes, such as a "
            "MobileNet for ImageNet; --method autoencoder needs none"
        )
    return (args.method,)


def learn(
    args: argparse.Namespace, method: str, split: NormalSplit, origin: DataOrigin, train: Train
) -> LearnedFeatures:
    """Return the features of a method and their statistics over the training pictures."""
    from har_edge.learning.anomaly import methods
    from har_edge.learning.anomaly.choosing import LearnedFeatures
    from har_edge.learning.anomaly.networks import AutoencoderSize
    from har_edge.learning.anomaly.pictures import normal_dataset
    from har_edge.learning.anomaly.statistics import OPTIMIZER, prepare_statistics, read_statistics

    data, shape = normal_dataset(split.train, origin.name, real=origin.real), split.train.shape[1:]
    epochs, optimizer = args.epochs or DEFAULT_EPOCHS, args.optimizer

    def count(features: Features, what: str) -> FeatureStatistics:
        full = method in (methods.AnomalyMethod.PADIM_FULL.value, methods.AnomalyMethod.JOINT.value)
        sums = prepare_statistics(features, shape, args.batch, full=full)
        return read_statistics(train(sums, data, OPTIMIZER, 1, what), sums.spec)

    features: Features
    if method == methods.AnomalyMethod.AUTOENCODER.value:
        size_ = AutoencoderSize(args.filters, args.code)
        trainable = methods.prepare_autoencoder(shape, args.batch, size_, args.seed)
        features = methods.autoencoder_features(trainable, train(trainable, data, optimizer, epochs, "autoencoder"))
    else:
        features = network = network_features(args, shape, joint=method == methods.AnomalyMethod.JOINT.value)
        if method == methods.AnomalyMethod.STUDENT.value:
            teacher = methods.normalize(network, count(network, "teacher"))
            student = methods.prepare_student(teacher, shape, args.batch, args.filters, args.seed)
            features = student.features(train(student.trainable, data, optimizer, epochs, "student"))
    joint = method == methods.AnomalyMethod.JOINT.value
    if joint:
        features = methods.joint_features(features)
    return LearnedFeatures(method, features, count(features, "statistics"), shape, weighted=joint)


def network_features(args: argparse.Namespace, shape: tuple[int, ...], *, joint: bool = False) -> NetworkFeatures:
    """Return the layers of --features, for `joint` one more; small pictures are enlarged for it."""
    from har_edge.learning.anomaly.features import NetworkFeatures, pick_layers, pick_zoom
    from har_edge.tflite.model import read_model

    model = read_model(args.features)
    layers = tuple(args.layers.split(",")) if args.layers else pick_layers(model, *((4, 32) if joint else ()))
    scaling = None
    if args.normalize is not None:
        mean, std = args.normalize
        scaling = tuple(1 / one for one in std), tuple(-m / one for m, one in zip(mean, std, strict=True))
    return NetworkFeatures(model, layers, pick_zoom(shape), scaling)


def _trainer(args: argparse.Namespace, name: str, method: str) -> Train:
    """Return what trains: the devices, or this machine."""
    if args.on_devices:
        from har_edge.cli.device_anomaly import train_on_devices

        return lambda trainable, data, optimizer, epochs, what: train_on_devices(
            args, f"{name}-{method}-{what}", trainable, data, optimizer, epochs
        )
    from har_edge.learning.anomaly.local_run import train_here

    def here(trainable: TrainableModel, data: Dataset, optimizer: str, epochs: int, what: str) -> Vector:
        say(f"{what}: {trainable.spec.elements} values, passes over the pictures: {epochs}")
        return train_here(
            trainable,
            data,
            optimizer,
            epochs,
            args.seed,
            lambda one: say(f"  {what}: pass {one.epoch} of {epochs}, loss {one.loss:.6f}"),
        )

    return here


def evaluate(
    args: argparse.Namespace, name: str, best: FinishedDetector, pictures: AnomalyPictures
) -> AnomalyFigures | None:
    """Return the figures on the labelled test, say them, and draw the worst cases; None without a test."""
    from har_edge.evaluation.anomaly_chart import ScoredPictures, draw_worst_cases
    from har_edge.evaluation.anomaly_metrics import score_detector
    from har_edge.inference.anomaly import AnomalyDetector

    if not pictures.has_test:
        say("no AUROC: the pictures have no test with normal and anomalous ones")
        return None
    note, outcome = best.note, AnomalyDetector(best.content).run(pictures.test)
    try:
        figures = score_detector(
            outcome.scores, outcome.heat_maps, pictures.anomalous, pictures.kinds, pictures.masks, note.threshold
        )
    except ConfigError as error:
        say(f"no AUROC: {error}")
        return None
    pixels = "" if figures.pixel_auroc is None else f", pixel AUROC {figures.pixel_auroc:.4f}"
    kind = origin_word(pictures.name, real=pictures.real)
    say(f"image AUROC {figures.image_auroc:.4f}{pixels} on {plural(figures.pictures, 'test picture')} ({kind})")
    say(f"above the threshold: {figures.caught:.1%} of anomalous ones, {figures.false_alarms:.1%} of normal ones")
    scored = ScoredPictures(
        pictures.test,
        pictures.names,
        pictures.kinds,
        pictures.anomalous,
        pictures.masks,
        outcome.scores,
        outcome.heat_maps,
        note.heat_low,
        note.heat_high,
        note.threshold,
    )
    try:
        drawn = draw_worst_cases(args.out / f"{name}-worst", scored)
    except ConfigError as error:
        say(f"no pictures of the worst cases: {error}")
    else:
        drawings = plural(len(drawn), "drawing")
        say(f"{args.out / f'{name}-worst'}: {drawings}: anomalous pictures of lowest, normal ones of highest score")
    return figures
