"""`har-edge train`: train the models that are shipped, and measure how good they are."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import model_task, options, values
from har_edge.cli.arguments.split_training import add_split_options
from har_edge.cli.console import say
from har_edge.errors import ConfigError
from har_edge.files import write_atomic
from har_edge.units import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from har_edge.data.description import StreamDescription
    from har_edge.data.recording import Recording
    from har_edge.training.fit import Recipe
    from har_edge.training.run import ModelRequest, Split

HELP = "train a network, score it on unseen subjects, write .tflite files and the files of their reducers"
DEFAULT_SPLIT = (("--train-subjects", "1-6"), ("--test-subjects", "7,8"))
# Streams with other names: the last names, this share of them, are the test.
TEST_SHARE = 0.25


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the models and manifest.json"
    )
    options.add_data(parser)
    parser.add_argument(
        "--stream", default="mhealth", metavar="NAME|TOML", help="the data set's description (default: mhealth)"
    )
    for option, default in DEFAULT_SPLIT:
        purpose = option[2:].partition("-")[0]
        parser.add_argument(
            option,
            type=values.subjects,
            metavar="LIST",
            help=f"streams to {purpose} the split on (default: {default}; the "
            f"{'first' if purpose == 'train' else 'last'} of another data set)",
        )
    parser.add_argument(
        "--reducer",
        metavar="SPEC",
        help="train for these codes instead, such as bottleneck:16, pca:8 or paa:5; none: the float32 network for "
        "windows as they are (default: float32 and int8 networks of early fusion)",
    )
    parser.add_argument(
        "--downstream",
        choices=("codes", "restore"),
        default="codes",
        help="input of the network: codes, or windows restored from them (default: codes)",
    )
    parser.add_argument(
        "--precision",
        choices=("int8", "float"),
        help="precision of the network with --reducer (default: int8 for codes, float for windows)",
    )
    parser.add_argument(
        "--grouping",
        choices=("location", "all", "type"),
        default="location",
        help="channels that one source has: of a location, all, or of a sensor type (default: location)",
    )
    parser.add_argument("--split-only", action="store_true", help="stop after the split; do not train on all subjects")
    parser.add_argument("--baseline", action="store_true", help="measure the extra-trees baseline on the same split")
    parser.add_argument(
        "--seed",
        type=values.seed,
        default=0,
        metavar="N",
        help="seed of all random choices; the same seed gives the same bytes (default: 0)",
    )
    parser.add_argument(
        "--epochs",
        type=values.positive,
        metavar="N",
        help="passes over the training windows (default: 12; on devices 10; for anomalies 30)",
    )
    add_anomaly(parser)
    add_on_devices(parser)
    add_split_options(parser)


def add_anomaly(parser: argparse.ArgumentParser) -> None:
    """Add the options of a detector of anomalies in pictures."""
    from har_edge.cli.anomaly_training import AUTO, METHODS

    group = parser.add_argument_group("anomalies in pictures (docs/how-to/anomalies.md)")
    group.add_argument(
        "--task", choices=("anomaly",), help="learn what normal pictures look like: --data has train/good, as MVTec AD"
    )
    group.add_argument(
        "--method",
        choices=(AUTO, *METHODS),
        default=AUTO,
        help="how anomalies are found (default: auto, the best on synthetic defects of normal pictures)",
    )
    group.add_argument(
        "--features", type=Path, metavar="FILE", help="the .tflite whose layers the other methods take as features"
    )
    group.add_argument(
        "--layers", metavar="NAMES", help="tensors of --features (default: the last layers of three resolutions)"
    )
    group.add_argument(
        "--normalize",
        type=model_task.normalization,
        metavar="MEAN,STD",
        help="pictures enter --features as (byte - MEAN) / STD (default: as its scale or its metadata say)",
    )
    group.add_argument(
        "--normal", metavar="CLASS", help="the class that is normal in labelled data; all others are anomalies"
    )
    group.add_argument(
        "--size", type=values.positive, default=64, metavar="N", help="pixels of a side of a picture (default: 64)"
    )
    group.add_argument("--grey", action="store_true", help="take pictures as grey ones")
    group.add_argument(
        "--fit",
        choices=model_task.FITS,
        default=model_task.FITS[0],
        help="how pictures of another aspect ratio come to size (default: stretch)",
    )
    group.add_argument(
        "--held-out",
        type=values.probability,
        default=0.2,
        metavar="SHARE",
        help="share of the normal pictures that set the threshold and choose the method (default: 0.2)",
    )
    group.add_argument(
        "--quantile",
        type=values.probability,
        default=0.99,
        metavar="Q",
        help="the threshold is this quantile of the scores of held-out normal pictures (default: 0.99)",
    )
    group.add_argument(
        "--filters", type=values.positive, default=16, metavar="N", help="width of the networks (default: 16)"
    )
    group.add_argument(
        "--code", type=values.positive, default=16, metavar="N", help="values of an autoencoder's code (default: 16)"
    )


def add_on_devices(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training on devices."""
    group = parser.add_argument_group("training on devices (docs/how-to/train-on-devices.md)")
    group.add_argument("--on-devices", action="store_true", help="train --model with the nodes that are there")
    group.add_argument(
        "--model",
        metavar="FILE|NAME",
        help="a float .tflite file, a shipped float model, lenet5 (made for the data), or a network of the zoo",
    )
    group.add_argument("--from-scratch", action="store_true", help="begin with new weights, not those of the model")
    group.add_argument(
        "--own-data",
        action="store_true",
        help="each node trains on its own samples (node --data); --data is for the test alone",
    )
    group.add_argument(
        "--workers", type=values.positive, default=1, metavar="N", help="begin when so many are ready (default: 1)"
    )
    group.add_argument(
        "--wait",
        type=values.seconds,
        default=10.0,
        metavar="S",
        help="begin after S seconds with those that are (default: 10)",
    )
    _add_method(group)
    _add_privacy(group)
    _add_run(group)
    options.add_pipeline(parser)
    options.add_quiet(parser)


def _add_method(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how updates are made, packed and joined."""
    group.add_argument(
        "--mode",
        default="auto",
        metavar="MODE",
        help="auto, sync, local[:STEPS] or stale[:ROUNDS] (default: auto, by measured step time and link)",
    )
    group.add_argument("--local-steps", type=values.positive, metavar="N", help="steps of a round with --mode stale")
    group.add_argument("--batch", type=values.positive, default=32, metavar="N", help="samples of a step (default: 32)")
    group.add_argument(
        "--global-batch", type=values.positive, metavar="N", help="samples of a step of all (default: a batch each)"
    )
    group.add_argument(
        "--optimizer",
        metavar="SPEC",
        help="sgd, momentum, adam or adamw with options (default: auto: momentum, its rate by the global batch)",
    )
    group.add_argument(
        "--server-optimizer",
        default="",
        metavar="SPEC",
        help="one that steps by the mean change of workers with local steps (default: momentum where --optimizer is "
        "auto, else it is added)",
    )
    group.add_argument(
        "--compress",
        default="auto",
        metavar="SPEC",
        help="updates as none, float16, int8 or topk:0.01 (default: float16 for local steps, else none)",
    )


def _add_privacy(group: argparse._ArgumentGroup) -> None:
    """Add the options that hide what a device sends."""
    group.add_argument(
        "--clip",
        type=values.amount,
        metavar="NORM",
        help="scale each update of a worker to at most this Euclidean norm",
    )
    group.add_argument(
        "--noise",
        type=values.amount,
        default=0.0,
        metavar="MULTIPLE",
        help="Gaussian noise in the sum of the --workers updates, in multiples of --clip; the workers add it, and the "
        "privacy spent is printed (extra privacy; docs/how-to/private-updates.md)",
    )
    group.add_argument(
        "--delta", type=values.probability, default=1e-5, metavar="D", help="delta of the privacy spent (default: 1e-5)"
    )
    group.add_argument(
        "--secure",
        action="store_true",
        help="mask each update, so that server and broker see the sum alone; needs 3 workers or more, and the extra "
        "secure on all of them (docs/how-to/private-updates.md)",
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    """Add the options of the loss, the shares and the run itself."""
    group.add_argument("--loss", choices=("cross-entropy", "mean-squared"), default="cross-entropy", help="the loss")
    group.add_argument(
        "--budget",
        type=values.seconds,
        default=1.0,
        metavar="S",
        help="seconds that a worker has for a round at least, before it sends what it has (default: 1)",
    )
    group.add_argument(
        "--shares",
        choices=("speed", "equal"),
        default="speed",
        help="shares of workers: by measured speed where it differs by a quarter, or equal (default: speed)",
    )
    group.add_argument(
        "--int8",
        action="store_true",
        help="also write an int8 model; each node measures the ranges of tensors on its own samples (extra quantize)",
    )
    group.add_argument(
        "--deploy",
        nargs="?",
        const="float",
        choices=("float", "int8"),
        help="roll the result out into the pipeline that runs, through its coordinator, without losing a window; int8: "
        "that of --int8 (default: float)",
    )
    group.add_argument(
        "--least-gain",
        type=values.amount,
        default=0.0,
        metavar="X",
        help="with --deploy: only what is better than the deployed model on held-out samples is rolled out, by X at "
        "least in accuracy (default: 0); both are kept (`har-edge versions`)",
    )
    group.add_argument(
        "--trial",
        type=values.positive,
        metavar="N",
        help="with --deploy: after the rollout, go back if fewer of N live windows with a known truth are right than "
        "before, by more than chance",
    )
    group.add_argument("--run-name", metavar="ID", help="name of the training (default: that of the model)")
    group.add_argument("--fresh", action="store_true", help="begin anew, though there is a checkpoint")
    group.add_argument(
        "--checkpoint-every", type=values.seconds, default=30.0, metavar="S", help="seconds (default: 30)"
    )
    group.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="folder for blocks of samples (default: ~/.cache/har-edge/slices)"
    )


def run(args: argparse.Namespace) -> int:
    """Train, print the figures as they come, and write the models."""
    if args.split and not args.on_devices:
        raise ConfigError("--split trains on devices; give --on-devices with it")
    if args.split and args.task is not None:
        raise ConfigError(f"--split came with --task {args.task}, which is not trained in stages; leave one out")
    if args.task is not None:
        from har_edge.cli import anomaly_training

        args.optimizer = args.optimizer or anomaly_training.DEFAULT_OPTIMIZER
        return anomaly_training.run_anomaly(args)
    if args.on_devices:
        from har_edge.cli.device_training import DEFAULT_OPTIMIZER, run_on_devices

        args.optimizer = args.optimizer or DEFAULT_OPTIMIZER
        if args.split:
            from har_edge.cli.split_training import run_split

            return run_split(args)
        return run_on_devices(args)
    from har_edge.codecs.catalog import check_libraries
    from har_edge.training.backend import require_tensorflow

    check_libraries(args.reducer or "none")
    require_tensorflow()
    from har_edge.config.catalog import merge_catalog, store_catalog
    from har_edge.data.description import load_description
    from har_edge.training.fit import Recipe
    from har_edge.training.run import ModelBuilder

    recipe = Recipe(epochs=args.epochs or Recipe().epochs, seed=args.seed)
    description = load_description(args.stream)
    recordings, split = _load(args, description)
    request = _request(args)
    builder = ModelBuilder(
        recordings,
        description,
        split,
        recipe,
        command=_command(args, split, recipe),
        log=say,
        request=request,
        described=Path(args.stream).name,
    )
    files = builder.make(final=not args.split_only, baseline=args.baseline)
    args.out.mkdir(parents=True, exist_ok=True)
    if Path(args.stream).is_file():
        write_atomic(args.out / Path(args.stream).name, Path(args.stream).read_bytes())
    for file in files:
        for name, content in {file.entry.file: file.content, **file.files}.items():
            write_atomic(args.out / name, content)
            say(f"{args.out / name}: {size(len(content))}, sha256 {hashlib.sha256(content).hexdigest()}")
    say(str(store_catalog(merge_catalog(args.out, [file.entry for file in files]), args.out)))
    return 0


def _load(args: argparse.Namespace, description: StreamDescription) -> tuple[Sequence[Recording], Split]:
    """Return the recordings, and the split by their names."""
    from har_edge.data.synthetic import SUBJECTS
    from har_edge.training.run import Split

    mhealth = description.name == "mhealth"
    train, test = (
        getattr(args, option[2:].replace("-", "_")) or (values.subjects(default) if mhealth else None)
        for option, default in DEFAULT_SPLIT
    )
    wanted = [*train, *test] if args.split_only and train and test else None
    recordings, origin = options.load_recordings(args, description, wanted)
    if mhealth and not recordings[0].real and wanted is None:
        recordings, origin = options.load_recordings(args, description, SUBJECTS)
    names = [recording.stream for recording in recordings]
    say(f"{origin}: {', '.join(names)}")
    if not (train and test):
        train, test = _divide(names, train, test)
    return recordings, Split(train, test)


def _divide(
    names: Sequence[str], train: Sequence[str] | None, test: Sequence[str] | None
) -> tuple[Sequence[str], Sequence[str]]:
    """Return the streams to train and to test with, when only one of them or none was named."""
    if len(names) < 2:
        raise ConfigError(f"{', '.join(names) or 'no stream'} came; expected at least two, one to train, one to test")
    if test is None and train is None:
        test = names[-max(1, round(TEST_SHARE * len(names))) :]
    if test is None:
        test = [name for name in names if name not in (train or ())]
    return train or [name for name in names if name not in test], test


def _request(args: argparse.Namespace) -> ModelRequest:
    """Return what to train. Raises ConfigError for options that need --reducer."""
    from har_edge.evaluation.study import NO_REDUCTION, Downstream, Variant
    from har_edge.training.run import ModelRequest

    if args.reducer is None:
        if args.precision or args.downstream != "codes":
            raise ConfigError("--precision and --downstream say what to train for a --reducer; name one")
        return ModelRequest(None, args.grouping)
    windows = args.reducer == NO_REDUCTION or args.downstream == "restore"
    precision = args.precision or ("float" if windows else "int8")
    return ModelRequest(Variant(args.reducer, Downstream(args.downstream), args.grouping, precision), args.grouping)


def _command(args: argparse.Namespace, split: Split, recipe: Recipe) -> str:
    """Return the command that makes the same models again, whatever the defaults are by then."""
    parts = ["har-edge train --out models"]
    parts += [f"--stream {args.stream}"] * (args.stream != "mhealth")
    parts += [f"--train-subjects {','.join(split.train)}", f"--test-subjects {','.join(split.test)}"]
    if args.reducer is not None:
        parts += [f"--reducer {args.reducer} --downstream {args.downstream}"]
        parts += [f"--precision {args.precision}"] * (args.precision is not None)
    parts += [f"--grouping {args.grouping}"] * (args.grouping != "location")
    parts += [f"--seed {recipe.seed} --epochs {recipe.epochs}"]
    parts += ["--baseline"] * args.baseline + ["--split-only"] * args.split_only
    return " ".join(parts)
