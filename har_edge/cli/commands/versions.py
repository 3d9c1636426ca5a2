"""`har-edge versions`: which versions of a model trainings made, which one is deployed, and why."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from har_edge.errors import ConfigError

HELP = "list the versions of a model that trainings made, with their figures"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder with versions.json: the --out of the trainings"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each version, one a line")


def run(args: argparse.Namespace) -> int:
    """Print the versions."""
    import msgspec

    from har_edge.cli.console import make_console, say
    from har_edge.cli.reports.versions import draw_versions, summary
    from har_edge.learning.versions import FILE_NAME, VersionRegistry

    registry = VersionRegistry(args.folder)
    if not registry.versions:
        raise ConfigError(
            f"{args.folder} has no {FILE_NAME}; expected the --out folder of `har-edge train --on-devices --deploy`"
        )
    if args.json:
        for one in registry.versions:
            sys.stdout.write(msgspec.json.encode(one).decode() + "\n")
        return 0
    console = make_console()
    console.print(draw_versions(registry.versions, console.width))
    say(summary(registry))
    return 0
