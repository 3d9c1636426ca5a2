"""`har-edge train`: make the models that are shipped, and the figures that say how good they are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli import options
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.training.fit import Recipe

HELP = "train the network, measure it on subjects it never saw, write float32 and int8 .tflite"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the models and manifest.json"
    )
    options.add_data(parser)
    parser.add_argument(
        "--train-subjects",
        type=options.subjects,
        default="1-6",
        metavar="LIST",
        help="subjects to train the split on (default: 1-6)",
    )
    parser.add_argument(
        "--test-subjects",
        type=options.subjects,
        default="7,8",
        metavar="LIST",
        help="subjects to test the split on (default: 7,8)",
    )
    parser.add_argument(
        "--split-only", action="store_true", help="measure the split, but do not go on to train on all subjects"
    )
    parser.add_argument("--baseline", action="store_true", help="measure the extra-trees baseline on the same split")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same bytes (default: 0)")
    parser.add_argument(
        "--epochs", type=options.positive, metavar="N", help="passes over the training windows (default: 12)"
    )


def run(args: argparse.Namespace) -> int:
    """Train, print the figures as they come, and write the models."""
    from har_edge.training.backend import require_tensorflow

    require_tensorflow()
    from har_edge.planning.catalog import VERSION, Catalog, store_catalog
    from har_edge.streams.description import load_description
    from har_edge.streams.synthetic import SUBJECTS
    from har_edge.training.fit import Recipe
    from har_edge.training.run import Split, Workshop

    if not 0 <= args.seed < 1 << 32:
        raise ConfigError(f"--seed {args.seed}: expected 0 to {(1 << 32) - 1}")
    recipe = Recipe(epochs=args.epochs or Recipe().epochs, seed=args.seed)
    split = Split(args.train_subjects, args.test_subjects)
    description = load_description("mhealth")
    wanted = [*split.train, *split.test] if args.split_only else None
    recordings, origin = options.load_recordings(args, description, wanted)
    if not recordings[0].real and wanted is None:
        recordings, origin = options.load_recordings(args, description, SUBJECTS)
    _say(f"{origin}: {', '.join(recording.stream for recording in recordings)}")
    workshop = Workshop(recordings, description, split, recipe, command=_command(args, recipe), say=_say)
    files = workshop.make(final=not args.split_only, baseline=args.baseline)
    args.out.mkdir(parents=True, exist_ok=True)
    for file in files:
        (args.out / file.entry.file).write_bytes(file.content)
        _say(f"{args.out / file.entry.file}: {len(file.content)} bytes, sha256 {file.entry.sha256}")
    _say(str(store_catalog(Catalog(VERSION, [file.entry for file in files]), args.out)))
    return 0


def _command(args: argparse.Namespace, recipe: Recipe) -> str:
    """Return the command that makes the same models again, whatever the defaults are by then."""
    parts = ["har-edge train --out models", f"--train-subjects {','.join(args.train_subjects)}"]
    parts += [f"--test-subjects {','.join(args.test_subjects)}", f"--seed {recipe.seed} --epochs {recipe.epochs}"]
    parts += ["--baseline"] * args.baseline + ["--split-only"] * args.split_only
    return " ".join(parts)


def _say(line: str) -> None:
    print(line, flush=True)
