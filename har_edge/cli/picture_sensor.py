"""`har-edge sensor --images`: pictures from files, from a folder that is watched, or from standard input."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from har_edge.cli import built_sensor
from har_edge.cli.arguments import options
from har_edge.cli.arguments.model_task import FITS
from har_edge.cli.console import say
from har_edge.cli.live_sensor import EXIT_NOTHING, LIVE, REPLAY
from har_edge.errors import ConfigError
from har_edge.units import plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from har_edge.cli.built_sensor import BuiltSensor
    from har_edge.cli.heat_map_files import HeatMapFiles
    from har_edge.config.task import ImageInput, Task
    from har_edge.data.picture_stream import Decode, PictureWindows
    from har_edge.data.pictures import PictureShape
    from har_edge.mqtt.bus import Delivery
    from har_edge.runtime.sensor.live import LiveLoop
    from har_edge.runtime.stop import Stop

STANDARD_INPUT = "-"
# Options of recordings and devices that pictures take too.
_SHARED = {"in_flight", "stream", "queue"}
# Bytes of pictures that may be kept until they are answered, and at least so many pictures.
KEPT_BYTES = 64 * 1024 * 1024
KEPT_LEAST = 2
# As cli/heat_map_files.py has it, whose import brings NumPy.
MAX_HEAT_MAP_FILES = 1000


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add `--images` and what belongs to it."""
    group = parser.add_argument_group("images", "send pictures instead of recordings (docs/how-to/images.md)")
    group.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="picture files; or a folder, whose pictures are sent and which is watched for new ones; or - for MJPEG, "
        "or with --raw raw frames, on standard input",
    )
    group.add_argument(
        "--raw",
        type=frame_size,
        metavar="WxH[xC]",
        help="standard input has raw frames of this size: bytes row by row, RGB, or grey where C is 1 (default: MJPEG)",
    )
    group.add_argument(
        "--fit", choices=FITS, help="what happens to another aspect ratio (default: what the pipeline file says)"
    )
    group.add_argument(
        "--heat-maps",
        type=Path,
        metavar="FOLDER",
        help="of a model that finds anomalies: write each anomaly with its heat map over it, as PNG files (at most "
        f"{MAX_HEAT_MAP_FILES} in a run)",
    )
    group.add_argument("--every-heat-map", action="store_true", help="with --heat-maps: normal pictures, too")


def frame_size(text: str) -> tuple[int, int, int]:
    """Read WxH or WxHxC; return height, width and channels."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})(?:x([13]))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} came; expected WIDTHxHEIGHT, or WIDTHxHEIGHTx1 for grey frames")
    return int(found[2]), int(found[1]), int(found[3] or 3)


def refuse_mixture(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that pictures do not take, and where Pillow is missing."""
    from har_edge.extras import require

    usual = {"live": None} | REPLAY | LIVE
    came = [
        f"--{name.replace('_', '-')}"
        for name, value in usual.items()
        if name not in _SHARED and getattr(args, name) != value
    ]
    if came:
        raise ConfigError(f"{', '.join(came)} came with --images; expected without: these are for other sources")
    if args.raw is not None and args.images != [STANDARD_INPUT]:
        raise ConfigError("--raw came without --images -; expected both: it says what standard input holds")
    if len(args.images) > 1 and (STANDARD_INPUT in args.images or any(Path(one).is_dir() for one in args.images)):
        raise ConfigError(f"--images has {len(args.images)} entries; expected files, or one folder, or - alone")
    if args.every_heat_map and args.heat_maps is None:
        raise ConfigError("--every-heat-map came without --heat-maps FOLDER; expected both")
    require("--images", "PIL")


def refuse_task(task: Task) -> None:
    """Raise ConfigError for a model that takes pictures, where these are recordings or lines."""
    if task.image is not None:
        raise ConfigError(
            f"the model takes pictures of {task.image.shape}, of which there are no recordings; give --images with "
            "files, a folder or -"
        )


def run_pictures(args: argparse.Namespace, made: BuiltSensor, stop: Stop) -> int:
    """Send pictures until there are no more, or until asked to stop; return the exit code."""
    from har_edge.data.picture_stream import PictureWindows
    from har_edge.mqtt.bus import TakenOver
    from har_edge.protocol.topics import check_id

    check_id("name of the stream", args.stream)
    image, where = made.pipeline.task.image, _describe(args.images)
    if image is None:
        raise ConfigError(
            f"--images came, but pipeline {made.pipeline.config.name!r} takes no pictures; cut its model with "
            "`har-edge slice MODEL --stream images` (docs/how-to/images.md)"
        )

    def tell(seq: int, name: str) -> None:
        say(f"window {seq} of {args.stream}: {name}")

    decode_one = _decode(args, image)
    said: Callable[[int, str], None] | None = tell if args.images != [STANDARD_INPUT] else None
    drawn = _heat_maps(args, made, image.shape)
    if drawn is not None:
        decode_one, said = drawn.decoder(decode_one), drawn.named(said)
    windows = PictureWindows(args.stream, made.sources[0], decode_one, said)
    loop, identity = _loop(args, made, windows, where, image.shape, None if drawn is None else drawn.hear)
    made.flow.expect([args.stream])
    how = "ended"
    try:
        loop.run(stop)
        nothing = not (stop.asked or made.sensor.counters.windows)
        how = "ended" if nothing else "stopped" if stop.asked else ""
    except TakenOver:
        return built_sensor.overtaken(args.source, identity)
    finally:
        say(f"sensor {args.source} {made.report(windows.counts.items(), how=how)}")
        if drawn is not None:
            say(f"sensor {args.source}: {plural(drawn.written, 'heat map')} written to {args.heat_maps}")
    if nothing:
        say(f"sensor {args.source}: no picture was sent: {windows.explain()}", file=sys.stderr)
        return EXIT_NOTHING
    return made.exit_code


def _describe(paths: list[str]) -> str:
    from har_edge.runtime.sensor.picture_files import shown

    if paths == [STANDARD_INPUT]:
        return "standard input"
    first = shown(paths[0])
    return first if len(paths) == 1 else f"{plural(len(paths), 'file')} from {first} on"


def _decode(args: argparse.Namespace, image: ImageInput) -> Decode:
    """Return what makes pictures of files, or of frames of standard input."""
    from har_edge.data.picture_stream import file_decoder
    from har_edge.data.pictures import AspectRule, PictureShape, decode_frame

    rule = AspectRule(args.fit or image.fit)
    if args.raw is None:
        return file_decoder(image.shape, rule)
    size, shape = PictureShape(*args.raw), image.shape
    return lambda content, name: decode_frame(content, name, size, shape, rule)


def _heat_maps(args: argparse.Namespace, made: BuiltSensor, shape: PictureShape) -> HeatMapFiles | None:
    """Return what writes heat maps; None where nobody asks. Raises ConfigError where results have none."""
    from har_edge.cli.heat_map_files import HeatMapFiles
    from har_edge.runtime.build import topics_of

    if args.heat_maps is None:
        return None
    anomaly = made.pipeline.task.anomaly
    if anomaly is None or anomaly.heat_map is None or not anomaly.side or not made.flow.hears:
        why = "the model finds no anomalies" if anomaly is None else "its results carry no heat maps"
        why = why if made.flow.hears else "the sensor hears no results (--in-flight 0)"
        raise ConfigError(f"--heat-maps came, but {why}; expected a model of `har-edge train --task anomaly`")
    most = max(KEPT_LEAST, KEPT_BYTES // shape.bytes)
    topics = topics_of(made.pipeline)
    return HeatMapFiles(args.heat_maps, args.stream, topics, most=most, everything=args.every_heat_map)


def _loop(
    args: argparse.Namespace,
    made: BuiltSensor,
    windows: PictureWindows,
    where: str,
    shape: PictureShape,
    heard: Callable[[Delivery], None] | None,
) -> tuple[LiveLoop[Any], Any]:
    """Connect, say so, and return the loop that sends the pictures, and the identity of the sensor."""
    from har_edge.data.frames import JpegSplitter, RawSplitter
    from har_edge.data.picture_stream import FileStream, FrameStream
    from har_edge.data.pictures import PictureShape
    from har_edge.runtime.sensor.live import LiveDevice, LiveLoop
    from har_edge.runtime.sensor.picture_files import PictureFiles, PictureFolder

    device: LiveDevice | PictureFiles | PictureFolder
    stream: FileStream | FrameStream = FileStream(windows)
    if args.images == [STANDARD_INPUT]:
        splitter = JpegSplitter() if args.raw is None else RawSplitter(PictureShape(*args.raw).bytes)
        device, stream = LiveDevice(STANDARD_INPUT), FrameStream(windows, splitter, where)
    elif Path(args.images[0]).is_dir():
        device = PictureFolder(Path(args.images[0]))
    else:
        device = PictureFiles([Path(one) for one in args.images])
    detail = f"{', '.join(made.sources)} of {args.stream}, pictures from {where}"
    identity = options.identity_of(
        args, made.pipeline, built_sensor.name_of(args), "sensor", detail, sources=made.sources
    )
    bus = built_sensor.connect(args, made.pipeline, identity, made.gate)
    reducers = options.listed_reducers(made.pipeline.task, made.sources)
    say(f"sensor {args.source} connected: {detail}; reducer: {reducers}; MQTT client: {identity.client}")
    kept = max(KEPT_LEAST, KEPT_BYTES // (4 * shape.bytes))  # windows are float32
    loop: LiveLoop[Any] = LiveLoop(
        bus,
        made.sensor,
        identity,
        device,
        stream,
        queue=min(args.queue, kept),
        limit=args.windows,
        flow=made.flow,
        in_flight=min(args.in_flight, kept),
        waits=True,
        heard=heard,
    )
    return loop, identity
