"""`har-edge demo`: the whole pipeline on this machine, in one command."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli import options
from har_edge.errors import ModelError

if TYPE_CHECKING:
    from har_edge.messaging.broker import RunningBroker
    from har_edge.nodes.local import Arrival, LocalPipeline, Summary
    from har_edge.planning.catalog import FoundModel
    from har_edge.planning.pipeline import Pipeline
    from har_edge.planning.task import Task

HELP = "run broker, sensors, stages and watcher on this machine"


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_data(parser)
    parser.add_argument(
        "--model", default="int8", metavar="float|int8|PATH", help="shipped model, or a .tflite file (default: int8)"
    )
    parser.add_argument("--stages", type=options.positive, default=3, metavar="N", help="slices (default: 3)")
    parser.add_argument(
        "--subjects", type=options.subjects, metavar="LIST", default=["subject7", "subject8"], help="default: 7,8"
    )
    parser.add_argument("--windows", type=options.positive, metavar="N", help="stop after N windows of each subject")
    parser.add_argument(
        "--speed", type=options.speed, default=30.0, metavar="N|max", help="factor of real time (default: 30)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary as JSON")
    options.add_broker(parser, embedded=True)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    options.one_thread()
    options.start_logging(args)
    import secrets
    import tempfile

    from har_edge.messaging.bus import Session
    from har_edge.nodes.cutting import prepare
    from har_edge.nodes.local import LocalPipeline, summarize
    from har_edge.planning.catalog import find_model
    from har_edge.planning.pipeline import BrokerConfig

    found = find_model(args.model)
    if found.entry is None:
        raise ModelError(
            f"{found.path} has no entry in a manifest.json beside it, so nobody knows which windows it takes; "
            "train it with `har-edge train`, or write a pipeline file (docs/pipeline.md)"
        )
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-demo-")))
        broker = _start_broker(args, folder, stack)
        name = f"demo-{secrets.token_hex(4)}"
        settings = BrokerConfig(url=args.broker, protocol=args.protocol or "5", client=args.client or "auto")
        pipeline = prepare(
            found.path, found.entry.task, folder / "slices", stages=args.stages, name=name, broker=settings
        )
        recordings, where = options.load_recordings(args, pipeline.stream, args.subjects)
        bus = options.connect(args, pipeline, Session(f"{name}-watch", receive_max=4096))
        stack.callback(bus.close, forget=True)
        _introduce(pipeline, found, where, broker, args)
        local = stack.enter_context(LocalPipeline(pipeline, bus, _broker_options(args)))
        started = time.monotonic()
        arrivals = _follow(local, args)
        seconds = time.monotonic() - started
        local.stop()
        summary = summarize(local, arrivals, seconds)
    facts = _facts(found, where, broker, args)
    real = all(recording.real for recording in recordings)
    _print_summary(summary, facts, found, real)
    if args.json:
        _write_json(args.json, summary, facts, found, real)
    return 0 if summary.lost == summary.duplicated == 0 and summary.windows_out else 1


def _start_broker(args: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> str:
    """Start a broker unless one was named; return what to call it."""
    if args.broker:
        return f"the one at {args.broker}"
    from har_edge.messaging.broker import find_mosquitto, start_mosquitto
    from har_edge.messaging.embedded import start_embedded
    from har_edge.resources import find_folder

    broker: RunningBroker
    if find_mosquitto() is not None:
        folder.chmod(0o755)  # Mosquitto, started by root, becomes a user of its own and must get in
        broker = start_mosquitto(find_folder("brokers") / "mosquitto.conf", folder / "broker")
    else:
        print("Mosquitto is not installed: using the embedded broker (MQTT 3.1.1, slower); apt-get install mosquitto")
        broker = start_embedded()
        args.protocol = "3.1.1"
    stack.callback(broker.stop)
    args.broker = broker.address.url
    return broker.description


def _broker_options(args: argparse.Namespace) -> list[str]:
    """Return the options that make the other processes connect as this one does."""
    named = {
        "--broker": args.broker,
        "--username": args.username,
        "--password-file": args.password_file,
        "--ca-file": args.ca_file,
        "--cert-file": args.cert_file,
        "--key-file": args.key_file,
        "--client": args.client,
        "--protocol": args.protocol,
    }
    return [text for option, value in named.items() if value for text in (option, str(value))]


def _introduce(pipeline: Pipeline, found: FoundModel, where: str, broker: str, args: argparse.Namespace) -> None:
    task = pipeline.task
    print(f"broker   {broker}")
    print(f"data     {where}: {', '.join(args.subjects)}")
    print(f"model    {found.path.name}, cut into {len(pipeline.manifest.slices)} slices")
    for index, entry in enumerate(pipeline.manifest.slices):
        wiring = pipeline.wiring(index)
        takes = [*wiring.sources, *(f"stage {stage}" for stage in wiring.earlier)]
        print(f"stage {index}  operators {entry.start} to {entry.stop}, takes {', '.join(takes)}")
    rate = "as fast as results come" if args.speed is None else f"{args.speed:g} times real time"
    print(f"windows  {task.stream.length} samples every {task.stream.hop} at {task.stream.rate_hz:g} Hz, {rate}")


def _follow(local: LocalPipeline, args: argparse.Namespace) -> list[Arrival]:
    """Start everything, show results as they come, and return them."""
    local.start_stages()
    sensor = ["--subjects", ",".join(args.subjects), "--speed", "max" if args.speed is None else str(args.speed)]
    if args.windows:
        sensor += ["--windows", str(args.windows)]
    if args.data:
        sensor += ["--data", str(args.data)]
    local.start_sensors(list(local.pipeline.task.inputs), sensor)
    return list(_show(local, local.pipeline.task))


def _show(local: LocalPipeline, task: Task) -> Iterator[Arrival]:
    from rich.console import Console
    from rich.live import Live

    from har_edge.cli.live import Board

    console = Console() if sys.stdout.isatty() else Console(width=100)
    board, title = Board(dict(zip(task.label_ids, task.labels, strict=True))), "live"
    measured = 0.0
    view = Live(board.draw(title), console=console, refresh_per_second=5) if console.is_terminal else None
    with view or contextlib.nullcontext():
        for arrival in local.results():
            if arrival is not None:
                board.add(arrival)
                yield arrival
            elif time.monotonic() - measured > 0.5:
                measured = time.monotonic()
                local.measure_memory()
                if view is not None:
                    view.update(board.draw(title))
        if view is not None:
            view.update(board.draw(title))
    if view is None:
        console.print(board.draw("at the end"))


def _facts(found: FoundModel, where: str, broker: str, args: argparse.Namespace) -> dict[str, str]:
    return {
        "data": where,
        "subjects": ", ".join(args.subjects),
        "broker": broker,
        "model": found.path.name,
        "model_sha256": found.sha256,
    }


def _print_summary(summary: Summary, facts: dict[str, str], found: FoundModel, real: bool) -> None:
    """Print the figures; say what they rest on."""
    lines = [(key, value) for key, value in facts.items() if key != "model_sha256"]
    lines += [
        (
            "windows",
            f"{summary.windows_in} in, {summary.windows_out} out, {summary.lost} lost, {summary.duplicated} doubled",
        ),
        ("", f"{summary.duplicates_dropped} repetitions dropped at the sink"),
        *_accuracy_lines(summary, facts, found, real),
        *_traffic_lines(summary),
    ]
    print()
    for key, value in lines:
        print(f"{key:<9} {value}")


def _accuracy_lines(
    summary: Summary, facts: dict[str, str], found: FoundModel, real: bool
) -> Iterator[tuple[str, str]]:
    if summary.accuracy is None:
        yield "accuracy", "no window had a known activity"
        return
    yield "accuracy", f"{summary.accuracy:.4f} of {summary.scored} windows with one activity"
    entry = found.entry
    if not real:
        yield "", "synthetic data; get the real recordings with: har-edge data fetch"
    elif entry is not None and set(facts["subjects"].split(", ")) & set(entry.trained_on):
        split = entry.split
        yield "", "the model was trained on these subjects too, so this says little;"
        yield "", f"trained on {len(split.train)} subjects and tested on {len(split.test)} others: {split.accuracy:.4f}"


def _traffic_lines(summary: Summary) -> Iterator[tuple[str, str]]:
    wire, raw = summary.sensor_wire_bytes, summary.raw_bytes
    yield "bytes", f"{raw:,} raw (each sample once, as float32)"
    if raw:
        yield "", f"{wire:,} on the wire from the sensors, MQTT headers included: {wire / raw:.2f} of raw"
    yield "", f"{summary.stage_wire_bytes:,} on the wire from the stages"
    if summary.latency_p50_ms is not None:
        p50, p95, p99 = summary.latency_p50_ms, summary.latency_p95_ms, summary.latency_p99_ms
        yield "latency", f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms"
        yield "", "from the last sample of a window to its result"
    sizes = {name: f"{size / 1e6:.0f}" for name, size in sorted(summary.resident_bytes.items())}
    for role in ("sensor", "stage"):
        nodes = ", ".join(f"{name} {size}" for name, size in sizes.items() if name.startswith(role))
        yield ("memory" if role == "sensor" else ""), f"{nodes or 'unknown'} MB resident"
    yield "time", f"{summary.seconds:.1f} s"


def _write_json(path: Path, summary: Summary, facts: dict[str, str], found: FoundModel, real: bool) -> None:
    import msgspec

    document = facts | {"real": real} | msgspec.to_builtins(summary)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    print(f"written to {path}", file=sys.stderr)


__all__: Sequence[str] = ()
