"""`har-edge stage`: run one slice of the model on this device."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options, values
from har_edge.cli.console import say
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.config.pipeline import Pipeline
    from har_edge.config.wiring import Wiring
    from har_edge.mqtt.bus import Bus, PollableBus, Session

HELP = "run one slice of the model on this device"


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_config(parser)
    parser.add_argument("--index", type=int, required=True, metavar="N", help="index of the slice, from 0")
    parser.add_argument(
        "--turn",
        type=values.natural,
        metavar="K",
        help="let several processes take turns at this slice, each with a K of its own, from 0: the broker gives each "
        "window to one of them (sensors of several sources need --combine)",
    )
    parser.add_argument("--threads", type=values.threads, default=1, metavar="N", help="threads of the runtime")
    options.add_delegate(parser, "what the pipeline file says")
    options.add_sandbox(parser)
    options.add_reducer(parser, "what the sensors were told instead of what the pipeline file says")
    parser.add_argument(
        "--forget", action="store_true", help="on stopping, end the session: the broker keeps nothing for it"
    )
    options.add_broker(parser)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    options.one_thread()
    options.start_logging(args)
    from har_edge.config.message_sizes import sends_bytes
    from har_edge.config.pipeline import load_pipeline
    from har_edge.inference.sandbox import describe_sandbox
    from har_edge.mqtt.bus import Session, TakenOver
    from har_edge.runtime.build import build_setup, delegate_of, delegated, override, receive_max, topics_of
    from har_edge.runtime.stage.loop import Takers, await_ready, run_stage
    from har_edge.runtime.stage.neighbours import card_of, check_neighbours, stage_name
    from har_edge.runtime.stage.shard import make_stage
    from har_edge.runtime.stop import Stop

    stop = Stop().catch_signals()
    pipeline = load_pipeline(args.config)
    pipeline = override(pipeline, options.chosen_reducers(args.reducer, pipeline.task.inputs))
    pipeline = delegated(pipeline, args.delegate)
    wiring = pipeline.wiring(args.index)
    entry = wiring.entry
    if args.turn is not None and not wiring.may_take_turns:
        raise ConfigError(
            f"--turn came for slice {args.index}, which takes more than one message for a window: the broker would "
            "give its parts to different processes; leave it out, or cut elsewhere"
        )
    name = stage_name(args.index, args.turn or 0)
    setup = build_setup(
        pipeline, args.index, threads=args.threads, replicas=1 if args.turn is None else 2, sandbox=args.sandbox
    )
    if args.sandbox:
        say(describe_sandbox())
    stage = make_stage(setup, clock=time.time, monotonic=time.monotonic)
    card, dtypes = card_of(pipeline, args.index, setup.delegate), {spec.dtype for spec in pipeline.manifest.tensors}
    check_neighbours(
        lambda session: options.connect(args, pipeline, session),
        topics_of(pipeline),
        card,
        dtypes,
        delegate=delegate_of(pipeline.config),
    )
    detail = f"slice {args.index}: operators [{entry.start}, {entry.stop}) of {pipeline.manifest.model}"
    identity = options.identity_of(args, pipeline, name, "stage", detail, epoch=pipeline.config.epoch, card=card)
    session = identity.session(
        expiry_s=pipeline.config.session_expiry_s,
        receive_max=receive_max(wiring),
        max_payload_bytes=pipeline.payload_limit,
        sends_bytes=sends_bytes(entry, wiring.sends),
    )
    takers = None
    if len(wiring.takers) > 1 or (wiring.peers and wiring.takers):
        look = options.connect(args, pipeline, Session(f"{identity.instance}-look", clean_start=True))
        nodes = [f"stage-{taker}" for taker in wiring.takers]
        if wiring.peers:
            spared = [f"stage-{index}" for index in pipeline.manifest.spared]
            takers = Takers(look, nodes, identity.topics, spared)
        else:
            await_ready(look, nodes, identity.topics, stop)
    bus = _connect(args, pipeline, wiring, session)
    if wiring.sources:
        detail += f"; reducer: {options.listed_reducers(pipeline.task, wiring.sources)}"
    say(f"stage {args.index} connected: {detail}; MQTT client: {identity.client}")
    try:
        run_stage(bus, stage, identity, stop, forget=args.forget, takers=takers)
    except TakenOver:
        say(f"stage {args.index}: another process has taken over this stage; ending", file=sys.stderr)
        return options.EXIT_TAKEN_OVER
    counts = stage.counters
    say(f"stage {args.index} stopped: {counts.windows} windows, {counts.rejected} messages rejected")
    return 0


def _connect(args: argparse.Namespace, pipeline: Pipeline, wiring: Wiring, session: Session) -> Bus:
    """Connect the stage to the central broker, and to those that the pipeline file names for its flows."""
    from har_edge.mqtt.address import neighbour_address
    from har_edge.mqtt.link import link_opener
    from har_edge.mqtt.routed import RoutedBus
    from har_edge.protocol.flow_routes import fixed_routes
    from har_edge.runtime.build import topics_of

    home = options.connect(args, pipeline, session)
    if not pipeline.flows:
        return home
    central = options.find_address(args, pipeline.config.broker, pipeline.folder)

    def connect_to(url: str, beside: Session) -> PollableBus:
        return options.reach_address(args, neighbour_address(central, url), beside, pipeline.config.broker)

    opener = link_opener(session, lambda one: options.connect(args, pipeline, one), connect_to)
    return RoutedBus(home, opener, fixed_routes(topics_of(pipeline), pipeline.config.epoch, pipeline.flows, wiring))
