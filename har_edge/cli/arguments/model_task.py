"""Find the task of a model: from its manifest, or from options, its file and the description of its stream."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import values
from har_edge.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from har_edge.config.catalog import FoundModel
    from har_edge.config.task import Task
    from har_edge.data.description import StreamDescription

# The stream of pictures, and the rules of har_edge/data/pictures.py: its import brings NumPy.
IMAGES, FITS = "images", ("stretch", "crop", "pad")
FLAGS = ("stream", "labels", "input", "hop", "normalize", "fit", "arrays", "threshold", "heat_map")
# The heat map of results, as har_edge/config/task.py has it.
MAX_HEAT_MAP_SIDE, HEAT_MAP_SIDE = 128, 32


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model, its task, and its stream as recordings have it; `beside` is the folder of the task's files."""

    found: FoundModel
    task: Task
    described: StreamDescription
    beside: Path

    @property
    def name(self) -> str:
        return self.found.entry.name if self.found.entry else self.found.path.name


def add_flags(parser: argparse.ArgumentParser, *, stream: bool = True, deploys: bool = False) -> None:
    """Add the options for a model without a manifest; `stream=False` is for a command that already has `--stream`.

    A command that `deploys` the model takes those of pictures and of other outputs than classes too.
    """
    group = parser.add_argument_group("model without manifest", "for a .tflite file without a manifest.json")
    if stream:
        what = ", or `images` for pictures" if deploys else ""
        group.add_argument(
            "--stream", metavar="NAME|TOML", help=f"description of the stream of the model's windows{what}"
        )
    group.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="file with the classes, one label a line (default: labels in the model's file, else those of the stream)",
    )
    group.add_argument(
        "--input",
        type=assignment,
        action="append",
        metavar="NAME=SOURCE",
        help="the source of an input; repeatable (default: by equal names, or the only shape that fits)",
    )
    group.add_argument(
        "--hop", type=values.positive, metavar="N", help="samples from one window to the next (default: half a window)"
    )
    if not deploys:
        return
    group.add_argument(
        "--arrays", action="store_const", const=True, help="results carry the outputs as arrays: they are no classes"
    )
    group.add_argument(
        "--normalize",
        type=normalization,
        metavar="MEAN,STD",
        help="pictures enter as (byte - MEAN) / STD; R/G/B gives one figure a channel (default: the model's metadata; "
        "an uint8 input takes bytes as they are)",
    )
    group.add_argument(
        "--fit",
        choices=FITS,
        help="pictures of another aspect ratio are stretched, cropped or padded with black (default: stretch)",
    )
    group.add_argument(
        "--threshold",
        type=finite,
        metavar="SCORE",
        help="pictures with a score above it are anomalies (default: what the model says, if it finds anomalies)",
    )
    group.add_argument(
        "--heat-map",
        type=heat_map_side,
        metavar="SIDE",
        help="results of such a model carry heat maps of at most SIDE x SIDE cells, 0: none (default: "
        f"{HEAT_MAP_SIDE}; at most {MAX_HEAT_MAP_SIDE})",
    )


def finite(text: str) -> float:
    """Read a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= 1e30:  # NaN neither
        raise argparse.ArgumentTypeError(f"{text!r} came; expected a number such as 2.5")
    return value


def heat_map_side(text: str) -> int:
    """Read the largest side of a heat map."""
    if not text.isdecimal() or int(text) > MAX_HEAT_MAP_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} came; expected 0 to {MAX_HEAT_MAP_SIDE} cells")
    return int(text)


def normalization(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read MEAN,STD, each one number or one a channel with `/` between them."""
    try:
        mean, std = (tuple(float(one) for one in part.split("/")) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} came; expected MEAN,STD such as 127.5,127.5, or 123.7/116.8/103.9,58.4/57.1/57.4 by channel"
        ) from None
    return mean, std


def assignment(text: str) -> tuple[str, str]:
    """Read NAME=SOURCE; a name may contain `=`."""
    name, equals, source = text.rpartition("=")
    if not (name and equals and source):
        raise argparse.ArgumentTypeError(f"{text!r} came; expected NAME=SOURCE, an input of the model and a source")
    return name, source


def resolve_model(args: argparse.Namespace, found: FoundModel) -> ResolvedModel:
    """Return a model with its task and stream.

    Raises ConfigError for options that contradict its manifest, and ModelError when neither options nor files say
    enough.
    """
    from har_edge.config.task import describe
    from har_edge.runtime.slicing import check_description

    given = [flag for flag in FLAGS if getattr(args, flag, None) is not None]
    if found.entry is not None:
        if given:
            option = given[0].replace("_", "-")
            raise ConfigError(f"--{option} came, but a manifest says what {found.entry.name} is for; expected without")
        check_description(found.entry.task, found.path.parent)
        return ResolvedModel(found, found.entry.task, describe(found.entry.task, found.path.parent), found.path.parent)
    if args.stream is None:
        raise ModelError(
            f"{found.path}: no manifest says which windows this model takes and what it answers; name the stream with "
            "--stream (mhealth, or a TOML file: data/README.md), and where they cannot be told, the classes with "
            "--labels and the sources with --input NAME=SOURCE"
        )
    known = _derive_pictures(args, found) if args.stream == IMAGES else _derive(args, found)
    if not known.task.labels and not hasattr(args, "arrays"):
        names = ", ".join(one.tensor for one in known.task.arrays)
        raise ConfigError(
            f"no labels fit an output of the model ({names}), and this command shows classes; give --labels FILE, or "
            "run the model with `har-edge slice` or `coordinator`, whose results carry outputs as arrays"
        )
    return known


def _derive_pictures(args: argparse.Namespace, found: FoundModel) -> ResolvedModel:
    from har_edge.config.anomaly_task import derive_anomaly_task
    from har_edge.config.image_task import Normalization, derive_image_task
    from har_edge.config.task import describe
    from har_edge.config.unlisted_model import packed_labels, read_labels
    from har_edge.data.pictures import AspectRule
    from har_edge.tflite.model import read_model

    if not hasattr(args, "normalize"):
        raise ConfigError(
            "--stream images came; this command replays recordings, of which pictures have none; expected "
            "`har-edge slice` or `coordinator`, then `sensor --images` (docs/how-to/images.md)"
        )
    foreign = [f"--{flag}" for flag in ("input", "hop") if getattr(args, flag) is not None]
    if foreign:
        raise ConfigError(f"{', '.join(foreign)} came with --stream images; expected without: a picture is a window")
    model = read_model(found.path)
    normalization = None if args.normalize is None else Normalization(*args.normalize)
    rule = None if args.fit is None else AspectRule(args.fit)
    task = None
    if args.labels is None and not args.arrays:
        side = HEAT_MAP_SIDE if args.heat_map is None else args.heat_map
        task = derive_anomaly_task(model, threshold=args.threshold, side=side, normalization=normalization, fit=rule)
    if task is None:
        _refuse_anomaly_options(args)
        task = derive_image_task(
            model,
            labels=read_labels(args.labels) if args.labels is not None else packed_labels(found.path),
            asked=args.labels is not None,
            normalization=normalization,
            fit=rule or AspectRule.STRETCH,
            arrays=bool(args.arrays),
        )
    return ResolvedModel(found, task, describe(task, found.path.parent), found.path.parent)


def _refuse_anomaly_options(args: argparse.Namespace) -> None:
    """Raise ConfigError for options of a model that finds anomalies, where it is run as another one."""
    given = {"--threshold": args.threshold, "--heat-map": args.heat_map}
    came = [name for name, value in given.items() if value is not None]
    if came and (args.labels is not None or args.arrays):
        other = "--labels" if args.labels is not None else "--arrays"
        raise ConfigError(f"{came[0]} came with {other}; expected one of them: results say anomalies, or these")
    if came:
        raise ConfigError(
            f"{came[0]} came, and nothing says that the model finds anomalies; expected one that `har-edge train "
            "--task anomaly` made, or its --threshold"
        )


def _derive(args: argparse.Namespace, found: FoundModel) -> ResolvedModel:
    from har_edge.config.unlisted_model import derive_task, packed_labels, read_labels
    from har_edge.data.description import BUILT_IN, load_description
    from har_edge.tflite.model import read_model

    only = ("normalize", "fit", "threshold", "heat_map")
    pictures = [f"--{flag.replace('_', '-')}" for flag in only if getattr(args, flag, None) is not None]
    if pictures:
        raise ConfigError(f"{', '.join(pictures)} came without --stream images; expected both: these are for pictures")
    described = load_description(args.stream)
    name = args.stream if args.stream in BUILT_IN else str(Path(args.stream).absolute())
    labels = read_labels(args.labels) if args.labels is not None else packed_labels(found.path)
    inputs = dict(args.input or ())
    if len(inputs) < len(args.input or ()):
        raise ConfigError("--input names an input twice; expected each once")
    task = derive_task(
        read_model(found.path),
        described,
        name,
        inputs=inputs,
        labels=labels,
        hop=args.hop,
        arrays=bool(getattr(args, "arrays", None)),
        asked=args.labels is not None,
    )
    return ResolvedModel(found, task, described, found.path.parent)


def copy_with_files(known: ResolvedModel, folder: Path, files: Sequence[str] = ()) -> ResolvedModel:
    """Copy the stream's description and these files of the model into `folder`, and return the model with that folder.

    A pipeline can then carry them to its nodes under plain names.
    """
    import shutil

    import msgspec

    description = Path(known.task.stream.description)
    if not description.is_absolute():
        return known
    shutil.copy(description, folder / description.name)
    for name in files:
        if (known.beside / name).is_file():
            shutil.copy(known.beside / name, folder / name)
    stream = msgspec.structs.replace(known.task.stream, description=description.name)
    return ResolvedModel(known.found, msgspec.structs.replace(known.task, stream=stream), known.described, folder)
