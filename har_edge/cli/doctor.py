"""`har-edge doctor`: check everything from the broker to the flow of windows; say what to do about the first flaw."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from har_edge.messaging.bus import Bus, Session
    from har_edge.nodes.sight.checkup import Checkup
    from har_edge.nodes.sight.permissions import Role
    from har_edge.nodes.sight.reception import Finding

HELP = "find out what is wrong with a deployment, from the broker to the flow of windows, and how to mend it"
ROLES = ("node", "sensor", "coordinator", "watcher", "operator")
EXIT_WRONG = 1
_STYLES = {"ok": "green", "wrong": "bold red", "not reached": "dim"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--role",
        choices=(*ROLES, "all"),
        help="whose permissions to try (default: those of --username where that is the name of a role, else all)",
    )
    parser.add_argument("--broker-only", action="store_true", help="measure the broker, and look at nothing else")
    options.add_probe(parser)
    options.add_deployed(parser)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    options.one_thread()
    options.start_logging(args)
    findings = _checkup(args).run()
    return EXIT_WRONG if (_print_json(findings) if args.json else _print(findings)) else 0


def _checkup(args: argparse.Namespace) -> Checkup:
    from har_edge.messaging.mqtt import Protocol
    from har_edge.messaging.topics import Topics
    from har_edge.nodes.build import topics_of
    from har_edge.nodes.sight.checkup import Checkup
    from har_edge.nodes.sight.fixed_checkup import fixed_checkup
    from har_edge.nodes.sight.reception import Reception
    from har_edge.nodes.store import Store, default_folder
    from har_edge.planning.pipeline import BrokerConfig, load_pipeline

    pipeline = load_pipeline(args.config) if args.config is not None else None
    settings = pipeline.config.broker if pipeline else BrokerConfig()
    topics = topics_of(pipeline) if pipeline else Topics(args.base, args.pipeline)
    address = options.find_address(args, settings, pipeline.folder if pipeline else Path())

    def connect(session: Session) -> Bus:
        return options.connect(args, pipeline, session) if pipeline else options.reach(args, session)

    mqtt5 = options.chosen_protocol(args, settings) is Protocol.V5
    reception = Reception(address, connect, topics, _roles(args, address.username), mqtt5=mqtt5)
    store = Store(args.cache or default_folder())
    if pipeline is not None and not args.broker_only:
        return fixed_checkup(reception, connect, pipeline, store, args.timeout)
    return Checkup(reception, connect, topics, store, args.timeout, broker_only=args.broker_only)


def _roles(args: argparse.Namespace, username: str | None) -> frozenset[Role]:
    from har_edge.nodes.sight.permissions import Role

    chosen = args.role or (username if username in ROLES else "all")
    return frozenset(Role) if chosen == "all" else frozenset({Role(chosen)})


def _print_json(findings: Iterator[Finding]) -> Finding | None:
    """Write `{"healthy": ..., "first_wrong": ..., "findings": [...]}`; return the first finding that is wrong."""
    import msgspec

    seen = list(findings)
    wrong = _first_wrong(seen)
    report = {"healthy": wrong is None, "first_wrong": wrong.check if wrong else None, "findings": seen}
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    return wrong


def _print(findings: Iterator[Finding]) -> Finding | None:
    """Print each finding as it comes, and at the end the first that is wrong with its mend; return that one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    seen: list[Finding] = []
    for finding in findings:
        seen.append(finding)
        line = Table.grid(padding=(0, 2, 0, 0))
        for width in (11, 21, None):
            line.add_column(width=width)
        line.add_row(
            Text(finding.verdict.value, _STYLES[finding.verdict.value]), Text(finding.check), Text(finding.said)
        )
        console.print(line)
    wrong = _first_wrong(seen)
    if wrong is None:
        short = any(finding.verdict.value != "ok" for finding in seen)
        console.print(Text("\nnothing is wrong" + (" in what was reached" if short else ""), "green"))
    else:
        console.print(Text.assemble("\nfirst wrong: ", (wrong.check, "bold"), f": {wrong.said}"))
        # The terminal breaks this line, not we: a command in it can be copied whole.
        console.print(Text.assemble(("mend: ", "bold"), wrong.mend), soft_wrap=True)
    return wrong


def _first_wrong(findings: list[Finding]) -> Finding | None:
    return next((finding for finding in findings if finding.verdict.value == "wrong"), None)
