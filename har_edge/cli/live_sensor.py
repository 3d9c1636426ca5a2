"""`har-edge sensor --live`: the windows of a device, as it sends them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from har_edge.cli import built_sensor
from har_edge.cli.arguments import options, values
from har_edge.cli.console import say
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from har_edge.cli.built_sensor import BuiltSensor
    from har_edge.config.pipeline import Pipeline
    from har_edge.data.live import LiveStream
    from har_edge.runtime.stop import Stop

# Exit code of a sensor whose device gave nothing to send: a service starts it again.
EXIT_NOTHING = 1
# Options for a replay of recordings, with their defaults.
REPLAY = {"data": None, "subjects": None, "speed": 1.0, "batch": 1, "in_flight": 64, "keep_null": False}
# Options for reading a device, with their defaults.
LIVE = {"timestamps": False, "stream": "live", "queue": 64, "stuck_after": 60}


def add_live(parser: argparse.ArgumentParser) -> None:
    """Add `--live` and what belongs to it."""
    group = parser.add_argument_group("live", "read a device instead of recordings (docs/how-to/live-devices.md)")
    group.add_argument(
        "--live",
        metavar="FILE|-",
        help="serial device, FIFO or file with a line of numbers a sample, - for standard input: the channels of the "
        "sources in the order of the stream description, with its delimiter",
    )
    group.add_argument(
        "--timestamps",
        action="store_true",
        help="each line begins with the time of the sample, in seconds since 1970 (default: the time it arrives)",
    )
    group.add_argument("--stream", default="live", metavar="NAME", help="name of the person or machine (default: live)")
    group.add_argument(
        "--queue",
        type=values.positive,
        default=64,
        metavar="N",
        help="most windows that wait to be sent; beyond that, the oldest is dropped and counted (default: 64)",
    )
    group.add_argument(
        "--stuck-after",
        type=values.positive,
        default=60,
        metavar="S",
        help="report a channel as stuck when it has not changed for S seconds (default: 60)",
    )


def refuse_mixture(args: argparse.Namespace) -> None:
    """Raise ConfigError for options of recordings with --live, and for those of a device without."""
    if args.heat_maps is not None or args.every_heat_map:
        raise ConfigError("--heat-maps came without --images; expected both: heat maps are drawn on pictures")
    foreign = LIVE if args.live is None else REPLAY
    came = [f"--{name.replace('_', '-')}" for name, usual in foreign.items() if getattr(args, name) != usual]
    if came and args.live is None:
        raise ConfigError(f"{', '.join(came)} came without --live FILE; expected both: these are for a device")
    if came:
        raise ConfigError(f"{', '.join(came)} came with --live; expected without: these are for recordings")


def run_live(args: argparse.Namespace, made: BuiltSensor, stop: Stop) -> int:
    """Read the device until it ends; return the exit code."""
    from har_edge.mqtt.bus import TakenOver
    from har_edge.protocol.topics import check_id
    from har_edge.runtime.sensor.live import LiveDevice, LiveLoop
    from har_edge.runtime.sensor.send_policy import MOST_OPEN

    check_id("name of the stream", args.stream)
    pipeline, sensor, sources = made.pipeline, made.sensor, made.sources
    device = LiveDevice(args.live)
    stream = _stream(args, pipeline, sources, at_rest=device.keeps)
    made.flow.expect([args.stream])
    detail = f"{', '.join(sources)} of {args.stream}, live from {device.name}"
    identity = options.identity_of(args, pipeline, built_sensor.name_of(args), "sensor", detail, sources=made.sources)
    bus = built_sensor.connect(args, pipeline, identity, made.gate)
    reducers = options.listed_reducers(pipeline.task, sources)
    say(f"sensor {args.source} connected: {detail}; reducer: {reducers}; MQTT client: {identity.client}")
    loop = LiveLoop(
        bus,
        sensor,
        identity,
        device,
        stream,
        queue=args.queue,
        limit=args.windows,
        flow=made.flow,
        # Without a plan, the broker keeps what a stage that is away will take: windows do not wait here.
        in_flight=args.in_flight if args.pipeline else MOST_OPEN,
    )
    how = "ended"
    try:
        loop.run(stop)
        nothing = not (stop.asked or sensor.counters.windows)
        how = "ended" if nothing else "stopped" if stop.asked else ""
    except TakenOver:
        return built_sensor.overtaken(args.source, identity)
    finally:
        device.close()
        say(f"sensor {args.source} {made.report(stream.counts.items(), how=how)}")
    if nothing:
        say(f"sensor {args.source}: no window was sent: {stream.explain()}", file=sys.stderr)
        return EXIT_NOTHING
    return made.exit_code


def _stream(args: argparse.Namespace, pipeline: Pipeline, sources: Sequence[str], *, at_rest: bool) -> LiveStream:
    """Return the stream of a device; times in a file that is `at_rest` are not those of now."""
    import math

    from har_edge.data.faults import ValidationLimits
    from har_edge.data.live import LiveStream, lay_out

    layout = lay_out(pipeline.described, pipeline.stream, sources, stamped=args.timestamps)
    task = pipeline.task.stream
    limits = ValidationLimits(
        stuck_s=float(args.stuck_after), skew_s=math.inf if at_rest else ValidationLimits().skew_s
    )
    return LiveStream(args.stream, layout, task.rate_hz, task.length, task.hop, limits)
