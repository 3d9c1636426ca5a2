"""`har-edge adapt`: fine-tune a float model on a few labelled windows of one person, on this device."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options, values
from har_edge.cli.arguments.model_task import ResolvedModel, add_flags, resolve_model
from har_edge.cli.console import fold, say
from har_edge.errors import ConfigError, DataError

if TYPE_CHECKING:
    from har_edge.data.recording import Recording
    from har_edge.learning.personal.model import PersonalModel

HELP = "fine-tune a float model on a few labelled windows of one person, on this device"
WIDTH = 11


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help="a shipped float model, such as bottleneck-float, or a .tflite")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the adapted model: a new .tflite")
    options.add_data(parser)
    parser.add_argument("--subject", metavar="NAME", help="the person (default: the only one of the recordings)")
    parser.add_argument(
        "--windows",
        type=values.positive,
        default=3,
        metavar="N",
        help="labelled windows of each activity to train on: the first ones that do not overlap (default: 3)",
    )
    parser.add_argument(
        "--train",
        choices=("output", "head", "all"),
        default="all",
        help="weights that change: the last layer, all behind the last convolution (the trunk is frozen), or all "
        "(default: all)",
    )
    parser.add_argument(
        "--epochs",
        type=values.positive,
        metavar="N",
        help="passes over the labelled windows (default: chosen by early stopping with 3 windows or more, else 30)",
    )
    parser.add_argument(
        "--rate", type=positive_float, default=0.0003, metavar="R", help="learning rate of Adam (default: 0.0003)"
    )
    parser.add_argument(
        "--anchor",
        type=positive_float,
        default=0.0,
        metavar="A",
        help="pull each weight back to where it began, with this strength (default: not at all)",
    )
    parser.add_argument("--seed", type=values.seed, default=0, metavar="N", help="order of the windows (default: 0)")
    add_flags(parser)


def positive_float(text: str) -> float:
    """Read a number above 0 and at most 1000."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} came; expected a number above 0 and at most 1000")
    return number


def run(args: argparse.Namespace) -> int:
    """Adapt, measure on windows that were not trained on, and write; return 1 when the model became worse."""
    options.one_thread()
    from har_edge.config.catalog import find_model
    from har_edge.learning.personal.adaptation import AdaptationRecipe, Trained
    from har_edge.learning.personal.model import adapt_to_person, check_trainable, store_personal

    if args.out.suffix != ".tflite":
        raise ConfigError(f"--out {args.out} came; expected a file that ends in .tflite")
    known = resolve_model(args, find_model(args.model))
    check_trainable(known.found)
    recording, origin = _person(args, known)
    recipe = AdaptationRecipe(Trained(args.train), args.rate, args.epochs or AdaptationRecipe().epochs, args.anchor,
                              args.seed)  # fmt: skip
    personal = adapt_to_person(
        known.found, known.task, known.described, recording, recipe, windows=args.windows,
        early_stopping=None if args.epochs is None else False,
    )  # fmt: skip
    _print(args, known, personal, origin)
    entry = store_personal(personal, known.found, known.task, args.out, command=_command(args, personal))
    say(fold(f"written    {args.out} and its entry {entry.name!r} in {args.out.parent / 'manifest.json'}", WIDTH))
    return _judge(known, personal)


def _person(args: argparse.Namespace, known: ResolvedModel) -> tuple[Recording, str]:
    """Return the recording of the person. Raises DataError where nobody says which of several."""
    names = [args.subject] if args.subject else None
    recordings, origin = options.load_recordings(args, known.described, names)
    if len(recordings) != 1:
        there = ", ".join(recording.stream for recording in recordings)
        raise DataError(f"{origin} holds {there}; name the person to adapt to with --subject")
    return recordings[0], origin


def _print(args: argparse.Namespace, known: ResolvedModel, personal: PersonalModel, origin: str) -> None:
    adapted, labels = personal.adapted, known.task.labels
    frozen = {"output": "the last layer alone", "head": "the head; the trunk is frozen", "all": "all layers"}
    chosen = "chosen by early stopping" if adapted.stopped_early else "a fixed number"
    lines = [
        f"model      {known.name} (sha256 {known.found.sha256[:12]})",
        f"person     {personal.person}: {origin}",
        f"labelled   {personal.labelled} windows of {personal.activities} activities; {len(personal.y)} others, which "
        "share no row with these, are held out",
        f"trained    {adapted.weights:,} weights ({frozen[args.train]}), {adapted.epochs} passes ({chosen})",
        f"accuracy   {personal.accuracy_before:.4f} before, {personal.accuracy_after:.4f} after, on the held-out ones",
    ]
    for number, label in enumerate(labels):
        own = personal.y == number
        right = [int((answers[own] == number).sum()) for answers in (personal.before, personal.after)]
        if right[0] != right[1]:
            lines.append(f"           {label}: {right[0]} of {int(own.sum())} right before, {right[1]} after")
    for line in lines:
        say(fold(line, WIDTH))


def _judge(known: ResolvedModel, personal: PersonalModel) -> int:
    """Say aloud where adapting did not help, or cannot be judged so; return the exit code."""
    entry = known.found.entry
    if entry is not None and personal.person in entry.trained_on:
        say(
            fold(f"note: {known.name} has seen {personal.person} in training; the figure before is too good, and the "
                 "gain says nothing about a new person", 6),
            file=sys.stderr,
        )  # fmt: skip
    if not personal.real:
        say("note: the recordings are synthetic; the figures say nothing about people", file=sys.stderr)
    if personal.accuracy_after > personal.accuracy_before:
        return 0
    if personal.accuracy_after == personal.accuracy_before:
        say("NO GAIN: adapting changed nothing for the better; keep the model as it was", file=sys.stderr)
        return 0
    say(
        fold("WORSE: the adapted model answers fewer held-out windows rightly; do not deploy it. More windows, a "
             "smaller --rate, an --anchor or fewer --epochs may help", 7),
        file=sys.stderr,
    )  # fmt: skip
    return 1


def _command(args: argparse.Namespace, personal: PersonalModel) -> str:
    parts = [f"har-edge adapt {args.model} --out {args.out.name} --subject {personal.person}"]
    parts += [f"--windows {args.windows} --train {args.train} --epochs {personal.adapted.epochs} --rate {args.rate!r}"]
    parts += [f"--anchor {args.anchor!r}"] * bool(args.anchor)
    return " ".join([*parts, f"--seed {args.seed}"])
