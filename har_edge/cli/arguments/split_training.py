"""The options of split training: of `train --split`, `plan --train` and `profile --train`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from har_edge.cli.arguments import values

Group = argparse._ActionsContainer


def add_stages(group: Group) -> None:
    """Add what a plan of a training may be told instead of choosing it."""
    group.add_argument(
        "--stages", type=values.positive, metavar="N", help="number of stages (default: the planner's choice)"
    )
    group.add_argument(
        "--at",
        type=values.operator_indices,
        metavar="I[,J..]",
        help="operators at which stages begin, but for the first (default: the planner's choice)",
    )
    group.add_argument(
        "--micro-batches",
        type=values.positive,
        metavar="N",
        help="parts of a step that follow each other through the stages (default: the planner's choice)",
    )


def add_plan_options(parser: argparse.ArgumentParser, optimizer: str) -> None:
    """Add the options of `har-edge plan --train`."""
    group = parser.add_argument_group("plan of a training in stages (docs/how-to/split-training.md)")
    group.add_argument("--train", action="store_true", help="plan a training with `train --on-devices --split`")
    group.add_argument("--batch", type=values.positive, default=32, metavar="N", help="samples of a step (default: 32)")
    group.add_argument(
        "--optimizer", default=optimizer, metavar="SPEC", help=f"the optimizer, for its memory (default: {optimizer})"
    )
    add_stages(group)


def add_profile_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `har-edge profile --train`."""
    group = parser.add_argument_group("profile of a training")
    group.add_argument("--train", action="store_true", help="measure forward and backward passes, for `plan --train`")
    group.add_argument(
        "--loss", choices=("cross-entropy", "mean-squared"), default="cross-entropy", help="the loss of the training"
    )
    group.add_argument(
        "--micro-batch",
        type=sizes,
        default=(1, 4),
        metavar="N[,N..]",
        help="samples of the micro-batches to measure; others lie on lines between them (default: 1,4)",
    )


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `har-edge train --on-devices --split`."""
    group = parser.add_argument_group("training in stages (docs/how-to/split-training.md)")
    group.add_argument(
        "--split",
        action="store_true",
        help="with --on-devices: each node holds some layers and trains them; --batch is what a step has in all",
    )
    add_stages(group)
    group.add_argument(
        "--replicas", type=values.positive, default=1, metavar="N", help="nodes that may share a stage (default: 1)"
    )
    group.add_argument(
        "--memory",
        type=values.size_bytes,
        default=0,
        metavar="BYTES",
        help="what a node may take that does not say it itself (default: no limit)",
    )
    group.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="training profile for the planner (default: that of this device, measured now if there is none)",
    )


def sizes(text: str) -> tuple[int, ...]:
    """Read sizes of micro-batches, such as 1,4."""
    found: Sequence[int] = sorted({values.positive(part) for part in text.split(",")})
    if found[-1] > values.MAX_BATCH or len(found) > 8:
        raise argparse.ArgumentTypeError(f"{text!r} came; expected up to 8 sizes of at most {values.MAX_BATCH} samples")
    return tuple(found)
