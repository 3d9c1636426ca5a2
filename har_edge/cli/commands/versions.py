"""`har-edge versions`: which versions of a model trainings made, which one is deployed, and why; and the way back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.learning.versions.registry import VersionRegistry

HELP = "list the versions of a model that trainings made, with their figures, or deploy one of them again"
PREVIOUS = "previous"
EXIT_NOT_DEPLOYED = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder with versions.json: the --out of the trainings"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each version, one a line")
    parser.add_argument(
        "--deploy",
        metavar="VERSION",
        help="roll a version out into the pipeline that runs, by the first digits of its hash; "
        f"{PREVIOUS}: the one before the deployed one",
    )
    options.add_pipeline(parser)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Print the versions, or deploy one; return the exit code."""
    from har_edge.learning.versions.registry import FILE_NAME, VersionRegistry

    registry = VersionRegistry(args.folder)
    if not registry.versions:
        raise ConfigError(f"{args.folder} has no {FILE_NAME}; expected the --out folder of `har-edge train --deploy`")
    if args.deploy is not None:
        return _deploy(args, registry)
    if args.json:
        import msgspec

        for one in registry.versions:
            sys.stdout.write(msgspec.json.encode(one).decode() + "\n")
        return 0
    from har_edge.cli.console import make_console, say
    from har_edge.cli.reports.versions import draw_versions, summary

    console = make_console()
    console.print(draw_versions(registry.versions, console.width))
    say(summary(registry))
    return 0


def _deploy(args: argparse.Namespace, registry: VersionRegistry) -> int:
    options.one_thread()
    options.start_logging(args)
    from har_edge.cli.deploy_trained import deploy
    from har_edge.learning.versions.registry import VersionState
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.stop import Stop
    from har_edge.tflite.model import read_model

    stop = Stop().catch_signals()
    one = registry.previous if args.deploy == PREVIOUS else registry.find(args.deploy)
    if one is None:
        raise ConfigError(f"no version in {args.folder} was replaced by another; name one by its hash")
    content = registry.content(one.sha256)
    if not deploy(args, Topics(args.base, args.pipeline), one.run, content, read_model(content), None, stop):
        return EXIT_NOT_DEPLOYED
    registry.change(one.sha256, VersionState.DEPLOYED, "deployed again by hand")
    return 0
