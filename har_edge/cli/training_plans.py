"""Profiles and plans of split training for the commands: `profile --train`, `plan --train`, `train --split`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from har_edge.cli.console import follow, say
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.planner.devices import BrokerLink
    from har_edge.planner.training_costs import TrainingProblem
    from har_edge.planner.training_devices import SplitDevice
    from har_edge.planner.training_profile import TrainingProfile
    from har_edge.tflite.model import Model

Item = TypeVar("Item")


def run_training_profile(args: argparse.Namespace) -> int:
    """Measure, store and print the training profile of a model."""
    import msgspec

    from har_edge.cli.commands.profile import device_name, measure_through_broker
    from har_edge.cli.reports.split_training import print_training_profile
    from har_edge.config.catalog import find_model
    from har_edge.planner.training_profile import (
        load_training_profile,
        store_training_profile,
        training_profile_path,
    )
    from har_edge.tflite.model import read_model

    if args.delegate not in (None, "xnnpack"):
        raise ConfigError("--train came with --delegate; a training has the delegate of the runtime: leave it out")
    device, remarks = device_name(args.device), list[str]()
    model = read_model(find_model(args.model).path)
    path = training_profile_path(device, model.sha256, args.threads)
    if path.is_file() and not args.again:
        profile = load_training_profile(path, model.sha256)
        remarks.append("measured before; --again measures anew")
    else:
        message, link = measure_through_broker(args, device, model, remarks)
        profile = measure_profile(model, device, args.loss, args.micro_batch, args.threads)
        profile = msgspec.structs.replace(profile, message=message, link=link)
        store_training_profile(profile, path)
    if args.out is not None:
        store_training_profile(profile, args.out)
    print_training_profile(profile, remarks, args.out or path, as_json=args.json)
    return 0


def measure_profile(model: Model, device: str, loss: str, batches: Sequence[int], threads: int = 1) -> TrainingProfile:
    """Measure the training profile of a model on this device."""
    from har_edge.learning.split.profiling import MeasuringJob, measure_training
    from har_edge.tflite.gradient.losses import Loss

    def watch(pieces: Iterable[Item], total: int) -> Iterable[Item]:
        return follow(pieces, total, "timing layers")

    job = MeasuringJob(model, Loss(loss), tuple(batches), threads=threads)
    return measure_training(job, device, watch=watch)


def find_training_profile(model: Model, path: Path | None, loss: str | None = None) -> TrainingProfile:
    """Return the named training profile, or this device's; one that is missing is measured now, without a broker.

    None as the loss takes a profile of any. Raises ConfigError for a profile of another model or loss.
    """
    from har_edge.cli.commands.profile import device_name
    from har_edge.planner.training_profile import (
        load_training_profile,
        store_training_profile,
        training_profile_path,
    )

    where = path or training_profile_path(device_name(None), model.sha256, 1)
    if path is not None or where.is_file():
        profile = load_training_profile(where, model.sha256)
    else:
        say(f"no training profile of {model.name} on this device: its layers are timed now")
        profile = measure_profile(model, device_name(None), loss or "cross-entropy", (1, 4))
        store_training_profile(profile, where)
        say(f"training profile kept in {where}")
    if loss not in (None, profile.loss):
        raise ConfigError(f"{where} was measured with --loss {profile.loss}, and {loss} came; profile the model anew")
    return profile


def make_problem(
    args: argparse.Namespace, profile: TrainingProfile, devices: Sequence[SplitDevice], broker: BrokerLink | None = None
) -> TrainingProblem:
    """Return what is to be planned, from the options of a command."""
    from har_edge.planner.devices import UNLIMITED
    from har_edge.planner.training_costs import TrainingProblem

    return TrainingProblem(
        profile,
        tuple(devices),
        args.batch,
        vectors=optimizer_vectors(args.optimizer),
        broker=broker or UNLIMITED,
        stages=args.stages,
        cuts=None if args.at is None else tuple(args.at),
        micro_batches=args.micro_batches,
        replicas=args.replicas,
        latency_s=profile.link.round_trip_s / 2 if profile.link else 0.0,
    )


def optimizer_vectors(spec: str) -> int:
    """Return how many values an optimizer keeps for each weight."""
    from har_edge.learning.optimizers.optimizers import make_optimizer
    from har_edge.learning.optimizers.rates import with_steps

    return len(make_optimizer(with_steps(spec, 1), 1).state()) - 1


def run_training_plan(args: argparse.Namespace) -> int:
    """Print the best plan of a training on the devices of a file."""
    import msgspec

    from har_edge.cli.reports.split_training import print_planned_training
    from har_edge.config.catalog import find_model
    from har_edge.planner.devices import load_devices
    from har_edge.planner.training_devices import split_devices
    from har_edge.planner.training_plan import plan_training
    from har_edge.tflite.model import read_model

    refused = {"--no-split": args.no_split, "--parity": args.parity, "--float-parity": args.float_parity}
    refused |= {"--pack": args.pack, "--delegate": args.delegate, "--drawing": args.drawing}
    came = [name for name, value in refused.items() if value]
    if came:
        raise ConfigError(f"--train came with {', '.join(came)}, which a training does not have; leave it out")
    file = load_devices(args.devices)
    model = read_model(find_model(args.model).path)
    profile = find_training_profile(model, args.profile)
    problem = make_problem(args, profile, split_devices(file, args.devices), file.broker)
    found = plan_training(problem)
    if args.out is not None:
        args.out.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    print_planned_training(found, problem, as_json=args.json)
    return 0
