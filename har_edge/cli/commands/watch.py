"""`har-edge watch`: show the results as they come."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options, values
from har_edge.cli.console import say
from har_edge.errors import ConfigError
from har_edge.timing import RESULT_SESSION_S, WATCH_SESSION_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from har_edge.cluster.cluster import Arrival
    from har_edge.config.task import Task
    from har_edge.monitor.missing_sources import MissingSources
    from har_edge.monitor.window_account import WindowAccount
    from har_edge.mqtt.bus import Bus, Session
    from har_edge.protocol.events import PlanEvent, StatusEvent
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.stop import Stop

HELP = "show the results as they come"
EXIT_LOST = 1
# Seconds between two checks for lost windows.
LOOK_S = 10.0
# Seconds without a result before the command says why.
QUIET_S = 4.0
MAX_NODES = 1000
# So many lost connections in so many seconds mean another client of the same name: older brokers do not say so.
CONTESTED, CONTESTED_S = 5, 15.0


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_source(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object for each result, one a line")
    parser.add_argument("--windows", type=values.positive, metavar="N", help="end after N results")
    parser.add_argument(
        "--name",
        metavar="ID",
        help="keep the results that come while this watcher is not there, up to a day: its next start shows them",
    )
    parser.add_argument("--forget", action="store_true", help="with --name: keep nothing after this run has ended")
    options.add_broker(parser)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    options.one_thread()
    options.start_logging(args)
    from har_edge.monitor.missing_sources import MissingSources
    from har_edge.monitor.window_account import WindowAccount
    from har_edge.mqtt.bus import TakenOver
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.build import topics_of
    from har_edge.runtime.stop import Stop

    if args.forget and not args.name:
        raise ConfigError("--forget came without --name; nothing is kept of a watcher without a name")
    stop, labels = Stop().catch_signals(), dict[int, str]()
    pipeline = options.load_source(args) if args.pipeline is None else None
    topics = topics_of(pipeline) if pipeline else Topics(args.base, args.pipeline)
    session = session_of(topics, args.name)
    bus = options.connect(args, pipeline, session) if pipeline else options.reach(args, session)
    bus.subscribe([topics.result("+"), topics.status("+"), *([] if pipeline else [topics.plan()])])
    if pipeline:
        labels.update(_labels_of(pipeline.task))
    account, absent = WindowAccount(time.time()), MissingSources(pipeline.task.inputs if pipeline else ())
    arrivals = _arrivals(bus, topics, labels, stop, args.windows, account, absent)
    if args.name:
        arrivals = _with_contest_told(arrivals, bus, args.name)
    try:
        if args.json:
            _print_lines(arrivals)
        else:
            _show_table(arrivals, labels, topics.prefix)
    except TakenOver:
        say(f"watch: another watcher called {args.name} has taken over; ending (give each its --name)", file=sys.stderr)
        return options.EXIT_TAKEN_OVER
    bus.close(forget=not args.name or args.forget)
    return _report(account, early=not stop.asked)


def session_of(topics: Topics, name: str | None) -> Session:
    """Return the session of a watcher; one with a name comes back to it. Raises ConfigError for what is no name."""
    import secrets

    from har_edge.mqtt.bus import Session
    from har_edge.protocol.topics import check_id

    prefix = f"{topics.base}-{topics.pipeline}-watch-"
    if name is None:
        return Session(prefix + secrets.token_hex(4), expiry_s=RESULT_SESSION_S, transient=True)
    return Session(f"{prefix}as-{check_id('name of the watcher', name)}", expiry_s=WATCH_SESSION_S)


def _report(account: WindowAccount, *, early: bool) -> int:
    """Name the windows that are lost, that have not come yet, or that nobody counted; return the exit code.

    Windows that nobody sends again count as lost, unless the command ended `early`, after the requested number of
    windows.
    """
    now = time.time()
    lost, open_, incomplete = account.sentence(now), account.open_sentence(now), account.incomplete_sentence(now)
    left = "" if early else account.left_sentence(now)
    for said in filter(None, (lost, open_, left, incomplete, account.broken_sentence())):
        say(said, file=sys.stderr)
    return EXIT_LOST if lost or left else 0


class SilenceDetector:
    """Says once why no result comes: nobody runs the pipeline, or no sensor sends. It reads statuses for that."""

    def __init__(self, topics: Topics, now: float) -> None:
        self._topics, self._since, self._said = topics, now, ""
        self._alive: dict[str, str] = {}

    def take(self, event: StatusEvent) -> None:
        """Read a status."""
        from har_edge.protocol.status import ALIVE

        self._alive.pop(event.node, None)
        if event.status is not None and event.status.state in ALIVE and len(self._alive) < MAX_NODES:
            self._alive[event.node] = event.status.role

    def tell(self, now: float, results: int) -> str:
        """Return the text to print now, once; empty when results came, or it is too early."""
        if results or now < self._since + QUIET_S:
            return ""
        roles, name = set(self._alive.values()), self._topics.pipeline
        if not roles & {"stage", "node"}:
            said = f"nobody runs pipeline {name!r}: no stage or node of it says that it lives; waiting for one"
        elif "sensor" not in roles:
            said = f"pipeline {name!r} is there, but no sensor sends to it; waiting"
        else:
            said = ""
        fresh, self._said = said if said != self._said else "", said
        return fresh


def _labels_of(task: Task) -> dict[int, str]:
    return dict(zip(task.label_ids, task.labels, strict=False))


def _arrivals(
    bus: Bus,
    topics: Topics,
    labels: dict[int, str],
    stop: Stop,
    limit: int | None,
    account: WindowAccount,
    absent: MissingSources,
) -> Iterator[Arrival | None]:
    """Yield results as they come, None in pauses, until asked to stop or `limit` have come.

    A message is acknowledged when all of its results were taken, so that a process that dies in between gets it again.
    `labels` are those of the last plan. `account` gets all results and the sensors' counts, `absent` the sources that
    each sensor sends.
    """
    from har_edge.cluster.cluster import Arrival
    from har_edge.protocol.events import PlanEvent, ResultsEvent, StatusEvent, Unreadable, decode
    from har_edge.runtime.sink import Sink

    left, sink, said, look_at = limit, Sink(), "", 0.0
    silence = SilenceDetector(topics, time.monotonic())
    while not stop.asked:
        for delivery in bus.poll(0.2):
            arrived = time.time()
            event = decode(delivery, topics)
            if isinstance(event, StatusEvent):
                silence.take(event)
                _take_status(event, account, absent)
            elif isinstance(event, PlanEvent):
                _learn(event, labels, absent)
            results = sink.take(event) if isinstance(event, ResultsEvent | Unreadable) else []
            for number, result in enumerate(results, 1):
                account.take_result(result)
                absent.take_result(result.stream, time.monotonic())
                yield Arrival(result, arrived)
                left = None if left is None else left - 1
                if left == 0:
                    if number == len(results):
                        bus.acknowledge(delivery)
                    return
            bus.acknowledge(delivery)
        if time.monotonic() > look_at:
            look_at, before, said = time.monotonic() + LOOK_S, said, account.sentence(time.time())
            if said and said != before:
                say(said, file=sys.stderr)
        quiet = silence.tell(time.monotonic(), sink.counters.windows)
        for told in [quiet] if quiet else absent.tell(time.monotonic()):
            say(told, file=sys.stderr)
        yield None


def _with_contest_told(arrivals: Iterator[Arrival | None], bus: Bus, name: str) -> Iterator[Arrival | None]:
    """Yield what comes, and say once where another watcher seems to take the session of this one again and again."""
    since, before, told = time.monotonic(), bus.traffic.reconnects, False
    for arrival in arrivals:
        now = time.monotonic()
        if not told and bus.traffic.reconnects >= before + CONTESTED:
            told = True
            text = (
                f"the connection was lost {CONTESTED} times in {now - since:.0f} s: does another watcher called {name}"
            )
            say(f"{text} run? Results then go to one of them; give each its --name", file=sys.stderr)
        if now > since + CONTESTED_S:
            since, before = now, bus.traffic.reconnects
        yield arrival


def _take_status(event: StatusEvent, account: WindowAccount, absent: MissingSources) -> None:
    """Read the counts of a sensor."""
    if event.status is not None:
        account.take_status(event.status, time.time())
        absent.take_status(event.status, time.monotonic())


def _learn(event: PlanEvent, labels: dict[int, str], absent: MissingSources) -> None:
    """Read the labels and sources of a plan."""
    if event.deployment is not None:
        labels.clear()
        labels.update(_labels_of(event.deployment.config.task))
        absent.wanted = tuple(event.deployment.config.task.inputs)


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

    from har_edge.cli.reports.live_table import LiveTable

    table, title, console = LiveTable(labels), f"results below {prefix}result/", Console()
    with Live(table.draw(title, console.width), console=console, refresh_per_second=5) as live:
        for arrival in arrivals:
            if arrival is not None:
                table.add(arrival)
            live.update(table.draw(title, console.width))
    if not console.is_terminal:
        console.line()  # rich ends its last line on terminals only
