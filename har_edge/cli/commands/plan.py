"""`har-edge plan`: find which device should run which slice."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options, values
from har_edge.cli.arguments.split_training import add_plan_options
from har_edge.cli.device_training import DEFAULT_OPTIMIZER
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.planner.profile import Profile
    from har_edge.tflite.model import Model

HELP = "plan the slices of a model for unequal devices and links"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=options.MODEL_HELP)
    parser.add_argument(
        "--devices",
        type=Path,
        metavar="FILE",
        required=True,
        help="devices file in TOML (docs/reference/devices-file.md)",
    )
    parser.add_argument(
        "--objective",
        choices=("throughput", "latency"),
        default="throughput",
        help="most windows a second, or the shortest latency of one (default: throughput)",
    )
    parser.add_argument(
        "--replicas", type=values.positive, default=4, metavar="N", help="devices that may share a stage (default: 4)"
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="profile that speeds refer to (default: that of this device, from the cache)",
    )
    options.add_delegate(parser)
    parser.add_argument(
        "--no-split", action="store_true", help="plan stages of whole layers only: no layer is shared by devices"
    )
    parser.add_argument(
        "--parity",
        action="store_true",
        help="share every layer with a parity shard, so that any one device but the last may be away or late",
    )
    parser.add_argument(
        "--float-parity",
        action="store_true",
        help="the same for models with floats, where the last bits of answers depend on which device is late",
    )
    parser.add_argument(
        "--pack",
        action="append",
        choices=("auto", "f2", "q8", "zstd", "f2+zstd", "q8+zstd"),
        help="way to pack activations that shared layers may use if it gains (zstd is lossless); repeatable; with "
        "auto, each tensor travels in the best of these ways, or by zstd, or as it is (default: as they are)",
    )
    parser.add_argument(
        "--own-brokers",
        action="store_true",
        help="devices may carry brokers of their own for what they send to others; the plan says which should",
    )
    parser.add_argument(
        "--drawing", type=values.writable_file, metavar="FILE", help="write the plan as a Mermaid flowchart"
    )
    parser.add_argument("--out", type=values.writable_file, metavar="FILE", help="write the plan as JSON")
    parser.add_argument("--json", action="store_true", help="print plan and alternatives as JSON instead of text")
    add_plan_options(parser, DEFAULT_OPTIMIZER)


def run(args: argparse.Namespace) -> int:
    """Print the best plan beside others."""
    options.one_thread()
    if args.train:
        from har_edge.cli.training_plans import run_training_plan

        return run_training_plan(args)
    if (args.parity or args.float_parity) and (args.pack or args.no_split or args.own_brokers):
        raise ConfigError(
            "--parity came with --no-split, --pack or --own-brokers; it shares every layer, and its sums travel as "
            "they are, through the central broker: leave these out"
        )
    if args.own_brokers and args.no_split:
        raise ConfigError(
            "--own-brokers came with --no-split; plans of whole layers alone are priced with the central broker: leave "
            "one of them out"
        )
    import msgspec

    from har_edge.cli.reports.plan import PlanReport, print_plan
    from har_edge.cli.reports.shared_layers import draw_mermaid, draw_stages
    from har_edge.config.catalog import find_model
    from har_edge.inference.tensor_observation import open_model
    from har_edge.planner.choice import choose_plan
    from har_edge.planner.devices import load_devices, make_devices
    from har_edge.planner.parity_plan import plan_parity
    from har_edge.planner.plan import Objective, make_planning_problem

    file = load_devices(args.devices)
    model = open_model(find_model(args.model).path, args.delegate)
    profile, remarks = _reference(model, args.profile, args.delegate)
    devices, more = make_devices(file, args.devices, profile)
    planning = make_planning_problem(
        model, profile.bounds, devices, replicas=args.replicas, sensors=file.sensors, broker=file.broker
    )
    objective = Objective(args.objective)
    choice = choose_plan(
        model,
        planning,
        profile,
        objective,
        args.pack or (),
        split=not args.no_split,
        own_brokers=args.own_brokers,
    )
    if args.parity or args.float_parity:
        choice = plan_parity(model, planning, profile.bounds, choice, objective, floats=args.float_parity)
    plan = choice.plan
    if args.drawing is not None:
        chart = draw_stages(plan) if choice.candidate is None else draw_mermaid(choice.candidate)
        args.drawing.write_text(chart, encoding="utf-8")
        if choice.candidate is None:
            shared = "every layer is shared, with a parity" if plan.has_parity else "no layer is shared in this plan"
            more.append(f"{shared}: {args.drawing} shows its stages")
    if args.out is not None:
        args.out.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")
    cut = f"{shlex.quote(args.model)}{_told(args.delegate)}"
    report = PlanReport(plan, choice.alternatives, [*remarks, *more, *choice.remarks])
    print_plan(report, cut, as_json=args.json, candidate=choice.candidate, out=args.out)
    return 0


def _reference(model: Model, path: Path | None, delegate: str | None) -> tuple[Profile, list[str]]:
    """Return the profile that speeds refer to: the named one, or this device's, estimated from others if missing."""
    from har_edge.cli.commands.profile import device_name
    from har_edge.planner.profile import cached_profiles, load_profile

    if path is not None:
        profile = load_profile(path, delegate)
        if profile.model_sha256 != model.sha256:
            raise ConfigError(f"{path} is the profile of {profile.model}, not of {model.name}; profile this model")
        return profile, _estimates(profile)
    device = device_name(None)
    known = cached_profiles(device, delegate)
    own = [profile for profile in known if profile.model_sha256 == model.sha256]
    if own:
        return min(own, key=lambda profile: profile.threads), _estimates(own[0])
    others = [profile for profile in known if profile.threads == 1]
    if not others:
        raise ConfigError(
            f"no profile of {model.name} on this device ({device}){_without(delegate)}; make one with 'har-edge "
            f"profile{_told(delegate)}', or name one with --profile"
        )
    from har_edge.runtime.profiling import estimate

    profile = estimate(model, device, others, delegate)
    return profile, [f"{model.name} was never measured here: profile it for a plan to rely on", *_estimates(profile)]


def _told(delegate: str | None) -> str:
    """Return the option to add to a command that shall compute in the same way."""
    return "" if delegate is None else f" --delegate {delegate}"


def _without(delegate: str | None) -> str:
    return " without XNNPACK" if delegate == "none" else ""


def _estimates(profile: Profile) -> list[str]:
    """Return remarks on the parts of a profile that are estimates."""
    count = sum(not segment.measured for segment in profile.segments)
    if not count or profile.fit is None:
        return []
    return [
        f"{count} of {len(profile.segments)} segments are estimated by regression on {profile.fit.samples} others "
        f"(median error {profile.fit.error:.0%})"
    ]
