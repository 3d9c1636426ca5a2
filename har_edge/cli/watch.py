"""`har-edge watch`: see the results as they come."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from har_edge.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from har_edge.messaging.bus import Bus
    from har_edge.messaging.topics import Topics
    from har_edge.nodes.local import Arrival
    from har_edge.nodes.loop import Stop
    from har_edge.planning.task import Task

HELP = "show the results as they come"
# How long the broker keeps results for a watcher that lost the connection.
SESSION_S = 300


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_source(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a result, a line each")
    parser.add_argument("--windows", type=options.positive, metavar="N", help="end after N results")
    options.add_broker(parser)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    options.one_thread()
    options.start_logging(args)
    import secrets

    from har_edge.messaging.bus import Session
    from har_edge.messaging.topics import Topics
    from har_edge.nodes.build import topics_of
    from har_edge.nodes.loop import Stop
    from har_edge.planning.pipeline import load_pipeline

    stop, labels = Stop().catch_signals(), dict[int, str]()
    pipeline = load_pipeline(args.config) if args.pipeline is None else None
    topics = topics_of(pipeline) if pipeline else Topics(args.base, args.pipeline)
    session = Session(f"{topics.base}-{topics.pipeline}-watch-{secrets.token_hex(4)}", expiry_s=SESSION_S)
    bus = options.connect(args, pipeline, session) if pipeline else options.reach(args, session)
    bus.subscribe([topics.result("+")] if pipeline else [topics.result("+"), topics.plan()])
    if pipeline:
        labels.update(_labels_of(pipeline.task))
    arrivals = _arrivals(bus, topics, labels, stop, args.windows)
    if args.json:
        _print_lines(arrivals)
    else:
        _show_table(arrivals, labels, topics.prefix)
    bus.close(forget=True)
    return 0


def _labels_of(task: Task) -> dict[int, str]:
    return dict(zip(task.label_ids, task.labels, strict=False))


def _arrivals(
    bus: Bus, topics: Topics, labels: dict[int, str], stop: Stop, limit: int | None
) -> Iterator[Arrival | None]:
    """Yield results as they come, None in pauses, until asked to stop or `limit` have come.

    `labels` are those of the plan that came last.
    """
    from har_edge.nodes.local import Arrival
    from har_edge.nodes.sink import Sink

    left, sink = limit, Sink()
    while not stop.asked:
        for delivery in bus.poll(0.2):
            bus.acknowledge(delivery)
            arrived = time.time()
            if delivery.topic == topics.plan():
                _learn(topics, delivery.payload, labels)
                continue
            for result in sink.handle(delivery):
                yield Arrival(result, arrived)
                left = None if left is None else left - 1
                if left == 0:
                    return
        yield None


def _learn(topics: Topics, payload: bytes, labels: dict[int, str]) -> None:
    """Take the labels of a plan; log one that cannot be read."""
    import logging

    from har_edge.errors import MessageError
    from har_edge.nodes.follow import read_deployment

    try:
        deployment = read_deployment(topics, payload) if payload else None
    except MessageError as error:
        logging.getLogger(__name__).warning("dropped %s: %s", topics.plan(), error)
        return
    if deployment is not None:
        labels.clear()
        labels.update(_labels_of(deployment.config.task))


def _print_lines(arrivals: Iterator[Arrival | None]) -> None:
    import msgspec

    for arrival in arrivals:
        if arrival is not None:
            line = msgspec.to_builtins(arrival.result) | {"latency_ms": round(arrival.latency_ms, 3)}
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
            sys.stdout.flush()


def _show_table(arrivals: Iterator[Arrival | None], labels: dict[int, str], prefix: str) -> None:
    from rich.console import Console
    from rich.live import Live

    from har_edge.cli.live import Board

    board, title, console = Board(labels), f"results below {prefix}result/", Console()
    with Live(board.draw(title, console.width), console=console, refresh_per_second=5) as live:
        for arrival in arrivals:
            if arrival is not None:
                board.add(arrival)
            live.update(board.draw(title, console.width))
