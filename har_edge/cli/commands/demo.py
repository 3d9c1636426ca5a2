"""`har-edge demo`: the whole pipeline on this machine, in one command."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options, values
from har_edge.cli.arguments.model_task import add_flags, resolve_model
from har_edge.cli.console import columns, say
from har_edge.cli.local_pipeline import open_cluster, start_nodes
from har_edge.cli.reports.bars import TOLD_SHARE
from har_edge.units import duration, size

if TYPE_CHECKING:
    from har_edge.cluster.cluster import Arrival, Cluster
    from har_edge.cluster.summary import Summary
    from har_edge.config.catalog import FoundModel

HELP = "run broker, sensors, stages and watcher on this machine"
DEFAULT_SUBJECTS = ["subject7", "subject8"]


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_data(parser)
    parser.add_argument(
        "--model",
        default=options.DEFAULT_MODEL,
        metavar="NAME|PATH",
        help=f"shipped model, or a .tflite file (default: {options.DEFAULT_MODEL})",
    )
    parser.add_argument("--stages", type=values.positive, default=3, metavar="N", help="number of slices (default: 3)")
    parser.add_argument(
        "--split", metavar="SPEC", help="share operators among stages instead, as in `har-edge slice --split`"
    )
    parser.add_argument(
        "--subjects",
        type=values.subjects,
        metavar="LIST",
        help="subjects (default: 7,8; all streams of another data set)",
    )
    options.add_reducer(parser, "what the sensors do to windows (default: what the model was made for)")
    parser.add_argument("--windows", type=values.positive, metavar="N", help="stop after N windows of each subject")
    parser.add_argument(
        "--speed", type=values.speed, default=30.0, metavar="N|max", help="factor of real time (default: 30)"
    )
    parser.add_argument("--batch", type=values.batch, default=1, metavar="N", help="windows a message (default: 1)")
    parser.add_argument("--json", type=values.writable_file, metavar="FILE", help="write the summary as JSON")
    parser.add_argument(
        "--train",
        action="store_true",
        help="train LeNet-5 on three nodes instead, kill one of them, and deploy the result (--data: pictures as MNIST "
        "has them; default: MNIST, else scikit-learn's digits)",
    )
    add_flags(parser)
    options.add_broker(parser, embedded=True)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    options.one_thread()
    options.start_logging(args)
    if args.train:
        from har_edge.cli.training_demo import run_training_demo

        return run_training_demo(args)
    from har_edge.cluster.summary import summarize
    from har_edge.config.catalog import find_model

    known = resolve_model(args, find_model(args.model))
    found, stream = known.found, known.described
    reducers = options.chosen_reducers(args.reducer, known.task.inputs)
    if stream.name == "mhealth":
        args.subjects = args.subjects or DEFAULT_SUBJECTS
    recordings, where = options.load_recordings(args, stream, args.subjects)
    args.subjects = args.subjects or [recording.stream for recording in recordings]
    real = all(recording.real for recording in recordings)
    del recordings  # the sensors read their own
    with open_cluster(args, found, stages=args.stages, split=args.split, reducers=reducers, task=known.task) as cluster:
        _introduce(cluster, found, where, args)
        started = time.monotonic()
        arrivals, interrupted = _run(cluster, args)
        seconds = time.monotonic() - started
        cluster.stop()
        summary = summarize(cluster, arrivals, seconds)
    facts = _facts(found, where, cluster, args)
    delay = options.batch_delay(cluster.pipeline.task, args.batch, args.speed)
    if interrupted:
        facts["interrupted"] = "yes: the figures are those of the part that ran"
    _print_summary(summary, facts, found, real, delay)
    if args.json:
        _write_json(args.json, summary, facts, real)
    if interrupted:
        return options.EXIT_INTERRUPTED
    return 0 if summary.lost == summary.duplicated == 0 and summary.windows_out else 1


def _run(cluster: Cluster, args: argparse.Namespace) -> tuple[list[Arrival], bool]:
    """Run the pipeline to its end, or to Ctrl-C; return the results, and whether it was interrupted."""
    arrivals: list[Arrival] = []
    try:
        start_nodes(cluster, args, args.subjects, speed=args.speed, windows=args.windows, batch=args.batch)
        for arrival in _show(cluster):
            arrivals.append(arrival)
    except KeyboardInterrupt:
        return arrivals, True
    return arrivals, False


def _introduce(cluster: Cluster, found: FoundModel, where: str, args: argparse.Namespace) -> None:
    pipeline = cluster.pipeline
    task = pipeline.task
    say(f"broker   {cluster.described}", 9)
    say(f"data     {where}: {', '.join(args.subjects)}", 9)
    say(f"model    {found.path.name}, cut into {len(pipeline.manifest.slices)} slices", 9)
    for index, entry in enumerate(pipeline.manifest.slices):
        wiring = pipeline.wiring(index)
        takes = [*wiring.sources, *(f"stage {stage}" for stage in wiring.earlier)]
        say(f"stage {index}  operators [{entry.start}, {entry.stop}), takes {', '.join(takes)}", 9)
    rate = "as fast as results come" if args.speed is None else f"{args.speed:g} times real time"
    say(f"reducer  {options.listed_reducers(task, task.inputs)}", 9)
    say(f"windows  {task.stream.length} samples every {task.stream.hop} at {task.stream.rate_hz:g} Hz, {rate}", 9)


def _show(cluster: Cluster) -> Iterator[Arrival]:
    """Yield results as they come, and draw them."""
    from rich.console import Console
    from rich.live import Live

    from har_edge.cli.reports.live_table import LiveTable

    console = Console(width=None if sys.stdout.isatty() else columns())
    task, title = cluster.pipeline.task, "live"
    table = LiveTable(dict(zip(task.label_ids, task.labels, strict=True)))
    measured = 0.0
    view = (
        Live(table.draw(title, console.width), console=console, refresh_per_second=5) if console.is_terminal else None
    )
    with view or contextlib.nullcontext():
        for arrival in cluster.arrivals():
            if arrival is not None:
                table.add(arrival)
                yield arrival
            elif time.monotonic() - measured > 0.5:
                measured = time.monotonic()
                cluster.measure_memory()
                if view is not None:
                    view.update(table.draw(title, console.width))
        if view is not None:
            view.update(table.draw(title, console.width))
    if view is None:
        console.print(table.draw("at the end", console.width))


def _facts(found: FoundModel, where: str, cluster: Cluster, args: argparse.Namespace) -> dict[str, str]:
    task = cluster.pipeline.task
    return {
        "data": where,
        "subjects": ", ".join(args.subjects),
        "broker": cluster.described,
        "model": found.path.name,
        "model_sha256": found.sha256,
        "reducer": options.listed_reducers(task, task.inputs),
        "batch": f"{args.batch} {'window' if args.batch == 1 else 'windows'} a message",
    }


def _print_summary(summary: Summary, facts: dict[str, str], found: FoundModel, real: bool, delay: str) -> None:
    """Print the figures and their origin."""
    lines = [(key, value) for key, value in facts.items() if key != "model_sha256"]
    missing = f"{summary.lost} {'under way' if 'interrupted' in facts else 'lost'}"
    lines += [
        ("windows", f"{summary.windows_in} in, {summary.windows_out} out, {missing}, {summary.duplicated} doubled"),
        *([("", summary.losses)] if summary.losses and "interrupted" not in facts else []),
        ("", f"{summary.duplicates_dropped} repetitions dropped at the sink"),
        *_saturation_lines(summary),
        *_accuracy_lines(summary, facts, found, real),
        *_traffic_lines(summary, delay),
    ]
    print()
    for key, value in lines:
        say(f"{key:<11} {value}", 12)


def _saturation_lines(summary: Summary) -> Iterator[tuple[str, str]]:
    share = summary.saturated / summary.quantised if summary.quantised else 0.0
    if share >= TOLD_SHARE:
        yield "saturated", f"{share:.1%} of the values that a quantised input took: they lie beyond its range"


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
    elif entry is None:
        yield "", "nobody says what this model was trained on: if on these subjects, this says little"
    elif entry.split is None:
        yield "", entry.data
    elif set(facts["subjects"].split(", ")) & set(entry.trained_on):
        split = entry.split
        yield "", "the model was trained on these subjects too, so this says little;"
        yield "", f"trained on {len(split.train)} subjects and tested on {len(split.test)} others: {split.accuracy:.4f}"


def _traffic_lines(summary: Summary, delay: str) -> Iterator[tuple[str, str]]:
    wire, raw = summary.sensor_wire_bytes, summary.raw_bytes
    yield "bytes", f"{size(raw)} raw (each sample once, as float32)"
    if raw:
        yield "", f"{size(wire)} on the wire from the sensors, MQTT headers included: {wire / raw:.2f} of raw"
    if summary.windows_in:
        yield "", f"{size(wire / summary.windows_in)} a window, all sensors together"
    yield "", f"{size(summary.stage_wire_bytes)} on the wire from the stages"
    if summary.latency_p50_ms is not None:
        found = {"p50": summary.latency_p50_ms, "p95": summary.latency_p95_ms, "p99": summary.latency_p99_ms}
        yield "latency", ", ".join(f"{name} {duration((ms or 0.0) / 1000)}" for name, ms in found.items())
        yield "", "from the last sample of a window to its result"
        if delay:
            yield "", f"with the waiting of the sensors: {delay}"
    sizes = {name: size(count) for name, count in sorted(summary.resident_bytes.items())}
    for role in ("sensor", "stage"):
        nodes = ", ".join(f"{name} {held}" for name, held in sizes.items() if name.startswith(role))
        yield ("memory" if role == "sensor" else ""), f"{nodes or 'unknown'} resident"
    yield "time", f"{summary.seconds:.1f} s"


def _write_json(path: Path, summary: Summary, facts: dict[str, str], real: bool) -> None:
    import msgspec

    document = facts | {"real": real} | msgspec.to_builtins(summary)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    print(f"written to {path}", file=sys.stderr)


__all__: Sequence[str] = ()
