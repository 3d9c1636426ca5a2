"""`har-edge status`: show what is deployed, how it performs, and whether a window passes through."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.timing import STATUS_LISTEN_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from har_edge.monitor.snapshot import Snapshot
    from har_edge.mqtt.bus import Bus
    from har_edge.runtime.stop import Stop

HELP = "show what is deployed, how it performs, and whether a window passes through"
EVERY_S = 1.0
PROBE_EVERY_S = 10.0
POLL_S = 0.1
EXIT_NOT_READY = 1


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--live", action="store_true", help="go on until Ctrl-C, with a probe every 10 s")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (with --live: one a line, every second)"
    )
    parser.add_argument(
        "--no-probe",
        action="store_true",
        help="send no probe window; nothing is then called ready, and the exit code is 0 if no fault is visible",
    )
    options.add_probe(parser)
    options.add_deployed(parser)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    options.one_thread()
    options.start_logging(args)
    from har_edge.monitor.trainings import trains_alone
    from har_edge.runtime.stop import Stop

    stop = Stop().catch_signals()
    snapshots = look(args, stop)
    last = _show_live(snapshots) if args.live and not args.json else _print(snapshots, as_json=args.json)
    fine = last is not None and (last.ready or (args.no_probe and not last.obstacle) or bool(trains_alone(last)))
    return 0 if fine else EXIT_NOT_READY


def look(args: argparse.Namespace, stop: Stop) -> Iterator[Snapshot]:
    """Yield snapshots: one when the probe is over, or one every second with --live."""
    import secrets

    import msgspec

    from har_edge.config.pipeline import load_pipeline
    from har_edge.monitor.fixed_pipeline import FixedObserver, FixedProbeRun
    from har_edge.monitor.observer import Observer
    from har_edge.monitor.probe_run import ProbeRun, obstacle
    from har_edge.monitor.trainings import TrainingWatch
    from har_edge.mqtt.bus import Session
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.artifact_store import Store, default_folder
    from har_edge.runtime.build import topics_of

    pipeline = load_pipeline(args.config) if args.config is not None else None
    topics = topics_of(pipeline) if pipeline else Topics(args.base, args.pipeline)

    def reach(session: Session) -> Bus:
        return options.connect(args, pipeline, session) if pipeline else options.reach(args, session)

    name = f"{topics.base}-{topics.pipeline}-status-{secrets.token_hex(4)}"
    bus, trainings = reach(Session(name, clean_start=True)), TrainingWatch(reach, topics, f"{name}-trainings")
    observer: Observer
    fixed: FixedObserver | None = None
    trial: ProbeRun | FixedProbeRun
    if pipeline is not None:
        observer = fixed = FixedObserver(pipeline, time.monotonic())
        trial = FixedProbeRun(bus, fixed, reach, args.timeout)
    else:
        observer, store = Observer(topics, time.monotonic()), Store(args.cache or default_folder())
        trial = ProbeRun(bus, topics, observer, store, reach, args.timeout)
    bus.subscribe(observer.filters)
    started = time.monotonic()
    probe_at, show_at = started + STATUS_LISTEN_S, started + STATUS_LISTEN_S
    try:
        while not stop.asked:
            for delivery in bus.poll(POLL_S):
                bus.acknowledge(delivery)
                observer.handle(delivery, time.monotonic(), time.time())
                trial.handle(delivery, time.monotonic())
            trainings.poll()
            now = time.monotonic()
            trial.tick(now, time.time())
            if now >= probe_at and not args.no_probe and not trial.under_way:
                probe_at = now + PROBE_EVERY_S
                trial.send(now, time.time())
            if now >= show_at and (args.live or not trial.under_way):
                show_at += EVERY_S
                seen = observer.snapshot(now, time.time(), trial.view)
                found = fixed.stalled(now) if fixed is not None else obstacle(observer, now)
                shown = found if args.no_probe else ""
                yield msgspec.structs.replace(seen, obstacle=shown, trainings=trainings.poll())
                if not args.live:
                    return
    finally:
        if isinstance(trial, FixedProbeRun):
            trial.close()
        trainings.close()
        bus.close(forget=True)


def _print(snapshots: Iterator[Snapshot], *, as_json: bool) -> Snapshot | None:
    from rich.console import Console

    from har_edge.cli.reports.status import draw
    from har_edge.monitor.snapshot import encode_snapshot

    last, console = None, Console(highlight=False)
    for last in snapshots:
        if as_json:
            sys.stdout.write(encode_snapshot(last).decode() + "\n")
            sys.stdout.flush()
        else:
            console.print(draw(last, console.width))
    return last


def _show_live(snapshots: Iterator[Snapshot]) -> Snapshot | None:
    from rich.console import Console
    from rich.live import Live

    from har_edge.cli.reports.status import draw

    last, console = None, Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        for last in snapshots:
            live.update(draw(last, console.width), refresh=True)
    return last
