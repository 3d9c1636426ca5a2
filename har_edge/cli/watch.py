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
    from har_edge.nodes.local import Arrival
    from har_edge.nodes.loop import Stop
    from har_edge.nodes.sink import Sink

HELP = "show the results as they come"
# How long the broker keeps results for a watcher that lost the connection.
SESSION_S = 300


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_config(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a result, a line each")
    parser.add_argument("--windows", type=options.positive, metavar="N", help="end after N results")
    options.add_broker(parser)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    options.one_thread()
    options.start_logging(args)
    import secrets

    from har_edge.messaging.bus import Session
    from har_edge.nodes.build import topics_of
    from har_edge.nodes.loop import Stop
    from har_edge.nodes.sink import Sink
    from har_edge.planning.pipeline import load_pipeline

    stop = Stop().catch_signals()
    pipeline = load_pipeline(args.config)
    topics, sink = topics_of(pipeline), Sink()
    name = f"{topics.base}-{topics.pipeline}-watch-{secrets.token_hex(4)}"
    bus = options.connect(args, pipeline, Session(name, expiry_s=SESSION_S))
    bus.subscribe([topics.result("+")])
    labels = dict(zip(pipeline.task.label_ids, pipeline.task.labels, strict=True))
    arrivals = _arrivals(bus, sink, stop, args.windows)
    if args.json:
        _print_lines(arrivals)
    else:
        _show_table(arrivals, labels, topics.prefix)
    bus.close(forget=True)
    return 0


def _arrivals(bus: Bus, sink: Sink, stop: Stop, limit: int | None) -> Iterator[Arrival | None]:
    """Yield results as they come, None in pauses, until asked to stop or `limit` have come."""
    from har_edge.nodes.local import Arrival

    left = limit
    while not stop.asked:
        for delivery in bus.poll(0.2):
            bus.acknowledge(delivery)
            arrived = time.time()
            for result in sink.handle(delivery):
                yield Arrival(result, arrived)
                left = None if left is None else left - 1
                if left == 0:
                    return
        yield None


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
