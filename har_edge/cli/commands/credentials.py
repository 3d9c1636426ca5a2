"""`har-edge credentials`: the users of a secured broker, one a device, with their rights."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from har_edge.cli.console import say

HELP = "add, list or remove the users of a secured broker, one a device (har-edge broker --secure)"
ROLES = ("sensor", "node", "coordinator", "watcher", "operator", "stage", "trainer")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    texts = {
        "add": "add a device, and write the folder that it needs: for the option --credentials of all commands",
        "list": "list the devices with their roles",
        "remove": "remove a device: it is refused once the broker has read its files again",
    }
    for name, text in texts.items():
        action = actions.add_parser(name, help=text, description=text)
        if name != "list":
            action.add_argument("name", metavar="NAME", help="name of the device, the --name of a node or sensor")
        if name == "add":
            action.add_argument("--role", required=True, choices=ROLES, help="the rights of the device")
            action.add_argument(
                "--url", metavar="URL", help="with the first one: mqtts://NAME:PORT, as devices reach the broker"
            )
        action.add_argument(
            "--folder", type=Path, metavar="DIR", help="folder of the broker's files (default: as `broker --secure`)"
        )


def default_folder() -> Path:
    """Return the folder of the credentials of this machine's broker."""
    from har_edge.cli.commands.broker import state_folder

    return state_folder() / "secure"


def run(args: argparse.Namespace) -> int:
    """Do what was asked; return 0."""
    from har_edge.trust.credentials import open_credentials

    found = open_credentials(args.folder or default_folder(), getattr(args, "url", None), platform.node() or "broker")
    if args.action == "add":
        place = found.add(args.name, args.role)
        say(f"{args.name} may act as {args.role} at {found.url}")
        say(f"bring {place} to it, as a secret, and start it there: har-edge ... --credentials {place.name}")
    elif args.action == "remove":
        found.remove(args.name)
        say(f"{args.name} is removed")
    for name, role in sorted(found.users.items()) if args.action == "list" else ():
        print(f"{name}\t{role}")
    if args.action != "list":
        say("a broker that runs reads its users anew when it gets SIGHUP (`kill -HUP` with the process of Mosquitto)")
    return 0
