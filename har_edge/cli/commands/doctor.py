"""`har-edge doctor`: check everything from the broker to the flow of windows; print the remedy of the first fault."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.cli.console import columns, fold_commands
from har_edge.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from har_edge.monitor.broker_checks import Finding
    from har_edge.monitor.diagnostics import Diagnostics
    from har_edge.mqtt.bus import Bus, Session

HELP = "check a deployment, from the broker to the flow of windows, and print the remedy of the first fault"
ROLES = ("node", "sensor", "coordinator", "stage", "watcher", "operator")
EXIT_WRONG = 1
_WIDTHS = (13, 21)  # of verdict and check; what was found takes the rest
_STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red", "not reached": "dim"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--role",
        choices=(*ROLES, "all"),
        help="role whose permissions are tried (default: --username, else the name in the certificate, if it "
        "names a role; else all)",
    )
    parser.add_argument("--broker-only", action="store_true", help="measure the broker only")
    parser.add_argument(
        "--clear",
        action="store_true",
        help="instead of checking: remove retained messages of nodes, sensors, stages and trainings that have "
        "gone, and the queues of stages without a slice",
    )
    options.add_probe(parser)
    options.add_deployed(parser)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    options.one_thread()
    options.start_logging(args)
    if args.clear:
        return _clear(args)
    diagnostics = _diagnostics(args)
    return EXIT_WRONG if (_print_json(diagnostics.run()) if args.json else _print(diagnostics)) else 0


def _clear(args: argparse.Namespace) -> int:
    """Remove the retained messages that the check `leftovers` found, and print each."""
    from functools import partial

    from har_edge.cli.console import say
    from har_edge.config.pipeline import load_pipeline
    from har_edge.monitor.leftovers import clear_all, leftovers_of_folder, leftovers_of_plan, read_retained
    from har_edge.monitor.training_leftovers import TrainingLeftovers, clear_trainings, read_trainings
    from har_edge.protocol.text import listed
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.build import topics_of

    if args.json or args.broker_only:
        raise ConfigError("--clear came with --json or --broker-only; expected it alone: it checks nothing")
    pipeline = load_pipeline(args.config) if args.config is not None else None
    topics = topics_of(pipeline) if pipeline else Topics(args.base, args.pipeline)
    count = len(pipeline.manifest.slices) if pipeline else 0
    connect = partial(options.connect, args, pipeline) if pipeline else partial(options.reach, args)
    kept = read_retained(connect, topics, count)
    found = leftovers_of_folder(kept, count) if pipeline else leftovers_of_plan(kept)
    try:
        trainings = read_trainings(connect, topics, kept)
    except BrokerError as error:
        say(f"trainings were not looked at: {error}")
        trainings = TrainingLeftovers()
    for line in (*clear_all(connect, topics, found), *clear_trainings(connect, topics, trainings)):
        say(line)
    if found.intruders:
        say(f"not cleared, as they live: {listed(sorted(found.intruders))}; stop them, and say this again")
    elif not (found.found or trainings.found):
        say(f"nothing is left over of pipeline {topics.pipeline}")
    return EXIT_WRONG if found.intruders else 0


def _diagnostics(args: argparse.Namespace) -> Diagnostics:
    from har_edge.config.pipeline import load_pipeline
    from har_edge.config.pipeline_config import BrokerConfig
    from har_edge.monitor.broker_checks import BrokerChecks
    from har_edge.monitor.deployed_diagnostics import deployed_diagnostics
    from har_edge.monitor.diagnostics import Diagnostics, checks_of_broker
    from har_edge.monitor.fixed_diagnostics import fixed_diagnostics
    from har_edge.monitor.identity import User
    from har_edge.monitor.permissions import Role
    from har_edge.mqtt.connect import MqttVersion
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.artifact_store import Store, default_folder
    from har_edge.runtime.build import topics_of

    pipeline = load_pipeline(args.config) if args.config is not None else None
    settings = pipeline.config.broker if pipeline else BrokerConfig()
    topics = topics_of(pipeline) if pipeline else Topics(args.base, args.pipeline)
    address = options.find_address(args, settings, pipeline.folder if pipeline else Path())

    def connect(session: Session) -> Bus:
        return options.connect(args, pipeline, session) if pipeline else options.reach(args, session)

    mqtt5 = options.chosen_protocol(args, settings) is MqttVersion.V5
    user = User.of(address)
    named = args.role or (user.name if user.name in ROLES else None)
    roles = frozenset(Role) if named in (None, "all") else frozenset({Role(named)})
    broker_checks = BrokerChecks(address, connect, topics, roles, mqtt5=mqtt5, user=user, assumed=named is None)
    if pipeline is not None and not args.broker_only:
        return fixed_diagnostics(broker_checks, connect, pipeline, args.timeout)
    if args.broker_only:
        return Diagnostics(roles, checks_of_broker(broker_checks))
    store = Store(args.cache or default_folder())
    return deployed_diagnostics(broker_checks, connect, topics, store, args.timeout)


def _print_json(findings: Iterator[Finding]) -> Finding | None:
    """Write `{"healthy": ..., "first_wrong": ..., "findings": [...]}`; return the first failed finding."""
    import msgspec

    seen = list(findings)
    wrong = _first_wrong(seen)
    report = {"healthy": wrong is None, "first_wrong": wrong.check if wrong else None, "findings": seen}
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    return wrong


def _print(diagnostics: Diagnostics) -> Finding | None:
    """Print each finding as it comes, and at the end the first failed one with its remedy; return that one."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)  # lines are broken here, between words
    seen: list[Finding] = []
    with contextlib.ExitStack() as stack:
        if console.is_terminal:  # some checks take seconds
            status = stack.enter_context(console.status("checking"))
            diagnostics.announce = lambda name: status.update(f"checking: {name}")
        for finding in diagnostics.run():
            seen.append(finding)
            console.print(draw(finding))
    wrong = _first_wrong(seen)
    if wrong is None:
        short = any(finding.verdict.value == "not reached" for finding in seen)
        _say("nothing is wrong" + (" in what was reached" if short else ""), "green", space=True)
    else:
        _say(f"first wrong: {wrong.check}: {wrong.said}", "bold", space=True)
        _say(f"mend: {wrong.remedy}", "bold")
    for finding in seen:
        if finding.verdict.value == "note":
            _say(f"note: {finding.check}: {finding.remedy}", "yellow")
    return wrong


def draw(finding: Finding) -> Text:
    """Return one finding in three columns; its text has lines of its own when a word is too long for the column.

    Rich's own table would split such a word.
    """
    import textwrap

    from rich.text import Text

    verdict = finding.verdict.value
    head = f"{verdict:<{_WIDTHS[0]}}{finding.check:<{_WIDTHS[1]}}"
    beside = max(map(len, finding.said.split()), default=0) + len(head) <= columns()
    margin = " " * (len(head) if beside else 4)
    lines = textwrap.wrap(
        finding.said,
        columns(),
        initial_indent=head if beside else margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
    told = Text("\n".join(lines if beside else [head.rstrip(), *lines]))
    told.stylize(_STYLES[verdict], 0, len(verdict))
    return told


def _say(text: str, style: str, *, space: bool = False) -> None:
    """Print a sentence whose lines break between words and not within commands; the part before its colon has a style.

    Rich would split words and commands that are too long for a line.
    """
    from rich.console import Console
    from rich.text import Text

    told = Text(fold_commands(text))
    told.stylize(style, 0, text.find(":") if ":" in text else len(text))
    Console(highlight=False, soft_wrap=True).print(*([""] if space else []), told, sep="\n")


def _first_wrong(findings: list[Finding]) -> Finding | None:
    return next((finding for finding in findings if finding.verdict.value == "wrong"), None)
