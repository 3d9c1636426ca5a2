"""`har-edge sensor`: send the windows of one source, or of all, from recordings or from a device."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli import built_sensor, live_sensor, picture_sensor
from har_edge.cli.arguments import options, values
from har_edge.cli.console import say
from har_edge.cli.trust import add_trust
from har_edge.timing import GIVE_UP_S

if TYPE_CHECKING:
    from har_edge.runtime.stop import Stop

HELP = "send the windows of recordings, as the sensors would, of a live device, or pictures"
CACHE = "with --pipeline, where files of the pipeline are kept (default: ~/.cache/har-edge/slices)"


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_source(parser)
    options.add_data(parser)
    parser.add_argument("--source", default="all", metavar="NAME", help="one source, or all (default: all)")
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="name of this node: one for each sensor that runs (default: sensor-SOURCE-STREAM)",
    )
    parser.add_argument(
        "--subjects", type=values.subjects, metavar="LIST", help="streams to replay, such as 7,8 (default: all)"
    )
    parser.add_argument(
        "--speed", type=values.speed, default=1.0, metavar="N|max", help="factor of real time (default: 1)"
    )
    parser.add_argument("--windows", type=values.positive, metavar="N", help="stop after N windows of each stream")
    parser.add_argument("--batch", type=values.batch, default=1, metavar="N", help="windows a message (default: 1)")
    options.add_reducer(parser, "what to do to windows instead of what the pipeline file says; stages need the same")
    parser.add_argument("--combine", action="store_true", help="send one message for all sources instead of one each")
    parser.add_argument(
        "--in-flight",
        type=values.natural,
        default=64,
        metavar="N",
        help="wait for results when N messages of a stream are in flight, or fewer where the stages say so "
        "(default: 64; 0: never wait, and, without --pipeline, send no window again)",
    )
    parser.add_argument(
        "--give-up",
        type=values.natural,
        default=int(GIVE_UP_S),
        metavar="S",
        help="end when no result came for S seconds for windows in flight; with --live, go on without them; "
        "exit code 1 (default: 120; 0: never)",
    )
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help=CACHE)
    add_trust(parser, "with --pipeline, follow")
    parser.add_argument("--keep-null", action="store_true", help="replay rows without an activity (label 0) too")
    # For commands that start sensors themselves and have printed already which data these replay.
    parser.add_argument("--no-notice", action="store_true", help=argparse.SUPPRESS)
    live_sensor.add_live(parser)
    picture_sensor.add_images(parser)
    options.add_broker(parser)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    picture_sensor.refuse_mixture(args) if args.images else live_sensor.refuse_mixture(args)
    options.one_thread()
    options.start_logging(args)
    from har_edge.runtime.stop import Stop

    stop = Stop().catch_signals()
    made = built_sensor.make_sensor(args, stop)
    if made is None:
        say(f"sensor {args.source} interrupted: no plan came, so no window was sent")
        return options.interrupted(stop)
    if args.images:
        return picture_sensor.run_pictures(args, made, stop)
    picture_sensor.refuse_task(made.pipeline.task)
    return replay(args, made, stop) if args.live is None else live_sensor.run_live(args, made, stop)


def replay(args: argparse.Namespace, made: built_sensor.BuiltSensor, stop: Stop) -> int:
    """Send the windows of recordings; return the exit code."""
    from har_edge.data.grouping import regroup_recording
    from har_edge.mqtt.bus import TakenOver
    from har_edge.runtime.build import batches_of, count_windows
    from har_edge.runtime.sensor.send_policy import SendPolicy, SensorLoop

    pipeline, sensor, sources = made.pipeline, made.sensor, made.sources
    recordings, where = options.load_recordings(
        args,
        pipeline.described,
        args.subjects,
        keep_null=args.keep_null,
        sources=None if pipeline.grouped else sources,
    )
    grouping = pipeline.task.stream.grouping
    recordings = [regroup_recording(recording, pipeline.described, grouping) for recording in recordings]
    made.flow.expect([recording.stream for recording in recordings])
    detail = f"{', '.join(sources)} of {', '.join(recording.stream for recording in recordings)}, {where}"
    identity = options.identity_of(args, pipeline, built_sensor.name_of(args), "sensor", detail, sources=made.sources)
    bus = built_sensor.connect(args, pipeline, identity, made.gate)
    reducers = options.listed_reducers(pipeline.task, sources)
    say(f"sensor {args.source} connected: {detail}; reducer: {reducers}; MQTT client: {identity.client}")
    delay = options.batch_delay(pipeline.task, args.batch, args.speed)
    if delay:
        say(f"sensor {args.source}: {args.batch} windows a message: {delay}")
    join = pipeline.config.join
    policy = SendPolicy(
        in_flight=args.in_flight * args.batch,
        real_time=args.speed is not None,
        total=max(1, join.capacity // 2) * args.batch if args.in_flight else 0,
        batch=args.batch,
    )
    loop = SensorLoop(bus, sensor, identity, policy, made.flow)
    batches = batches_of(pipeline, recordings, speed=args.speed, batch=args.batch, limit=args.windows)
    try:
        loop.run(batches, stop)
    except TakenOver:
        return built_sensor.overtaken(args.source, identity)
    if loop.interrupted:
        total = count_windows(pipeline, recordings, args.windows)
        say(f"sensor {args.source} {made.report(how='interrupted', total=total)}")
        return options.interrupted(stop)
    say(f"sensor {args.source} {made.report()}")
    return made.exit_code
