"""`har-edge zoo`: write well-known networks with random weights, to try har-edge with and to measure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import values
from har_edge.cli.console import say
from har_edge.errors import ConfigError
from har_edge.files import write_atomic
from har_edge.units import size

if TYPE_CHECKING:
    from har_edge.training.zoo.catalog import Architecture

HELP = "write a well-known network with random weights as .tflite, to try har-edge with"
MAX_CLASSES, MAX_SIZE = 10_000, 1024


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="the network; --list has their names")
    parser.add_argument("--list", action="store_true", help="print the networks, their inputs, parameters and papers")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the .tflite file; manifest.json and the description of the images are written beside it",
    )
    parser.add_argument("--int8", action="store_true", help="integers of 8 bits, input and output too, not float32")
    parser.add_argument(
        "--size", type=values.positive, metavar="N", help="height and width of the images (default: those of the paper)"
    )
    parser.add_argument(
        "--classes", type=values.positive, metavar="N", help="number of classes (default: that of the paper)"
    )
    parser.add_argument(
        "--seed", type=values.seed, default=0, metavar="N", help="seed of weights and calibration (default: 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the list, or write one network and its entry in the manifest beside it."""
    from har_edge.training.zoo.catalog import find_network

    if args.list:
        return _list()
    if args.name is None or args.out is None:
        raise ConfigError("expected a network and --out FILE, or --list; har-edge zoo --list has the names")
    network = find_network(args.name)
    side, classes = args.size or network.size, args.classes or network.classes
    _check(args, network, side, classes)
    from har_edge.training.backend import require_tensorflow

    require_tensorflow("making a network of the zoo", also=())
    return _write(args, network, side, classes)


def _list() -> int:
    from har_edge.training.zoo.catalog import ZOO

    print(f"{'name':12} {'parameters':>12}  {'classes':>7}  input")
    for network in ZOO.values():
        shape = " x ".join(map(str, network.shape(network.size)))
        print(f"{network.name:12} {network.parameters:>12,}  {network.classes:>7}  {shape}")
    for network in ZOO.values():
        print()
        say(f"{network.name}: {network.source}", 4)
    return 0


def _check(args: argparse.Namespace, network: Architecture, side: int, classes: int) -> None:
    """Raise ConfigError for what cannot be made, before the minute that making it takes."""
    if not network.smallest <= side <= MAX_SIZE:
        raise ConfigError(f"--size {side} came; {network.title} takes images of {network.smallest} to {MAX_SIZE}")
    if not 2 <= classes <= MAX_CLASSES:
        raise ConfigError(f"--classes {classes} came; expected 2 to {MAX_CLASSES}")
    if args.out.suffix != ".tflite":
        raise ConfigError(f"--out {args.out} came; expected a file whose name ends in .tflite")
    if args.out.is_dir():
        raise ConfigError(f"--out {args.out} is a folder; expected the name of a file")
    from har_edge.config.catalog import merge_catalog

    merge_catalog(args.out.parent, [])


def _write(args: argparse.Namespace, network: Architecture, side: int, classes: int) -> int:
    from har_edge.config.catalog import merge_catalog, store_catalog
    from har_edge.training.zoo.convert import make
    from har_edge.training.zoo.files import Origin, describe_model

    content = make(network, int8=args.int8, size=side, classes=classes, seed=args.seed, log=say)
    parts = [f"har-edge zoo {network.name} --out {args.out.name}", "--int8" if args.int8 else ""]
    parts += [f"--size {side} --classes {classes} --seed {args.seed}"]
    origin = Origin(network.title, args.seed, " ".join(filter(None, parts)))
    entry, texts = describe_model(content, args.out.name, origin)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, content)
    for name, text in texts.items():
        write_atomic(args.out.parent / name, text.encode())
    say(f"{args.out}: {size(len(content))}, sha256 {entry.sha256}")
    say(f"{store_catalog(merge_catalog(args.out.parent, [entry]), args.out.parent)}: {entry.data}")
    return 0
