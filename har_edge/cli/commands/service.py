"""`har-edge service`: run broker, node, coordinator, stages and sensors as services of systemd."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.cli.console import columns, folds
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from har_edge.service.install import ServicePaths
    from har_edge.service.render import Service

HELP = "install broker, node, coordinator, stage or sensor as a service of systemd"
ROLES = ("broker", "node", "coordinator", "stage", "sensor")
_FILES = ("password_file", "ca_file", "cert_file", "key_file")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add `install`, `uninstall` and `list`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "write the unit file of a service, and the file with its environment (mode 600)"
    install = actions.add_parser("install", help=text, description=text)
    _add_service(install)
    install.add_argument("--run-as", metavar="USER", help="run as this user (default: one that systemd makes for it)")
    install.add_argument("--dry-run", action="store_true", help="print both files without passwords; write nothing")
    options.add_broker(install, clients=False, default=f"${options.BROKER_VARIABLE}, then mqtt://127.0.0.1:1883")
    install.add_argument(
        "--options",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="OPTION",
        help="options of the command, as the last option: `service install stage --options --config slices --index 0`",
    )
    text = "remove both files of a service"
    _add_service(actions.add_parser("uninstall", help=text, description=text))
    text = "list the services that are installed"
    listed = actions.add_parser("list", help=text, description=text)
    _add_place(listed)


def _add_service(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", choices=ROLES, help="the command that the service runs")
    parser.add_argument(
        "--instance",
        default="",
        metavar="NAME",
        help="name of this service, if several of one role run on this machine",
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite or remove an edited file, too: its changes are lost"
    )
    _add_place(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="a service of this user, without root's rights")
    where.add_argument(
        "--root", type=Path, metavar="DIR", default=Path("/"), help="prepare an image below DIR instead of this machine"
    )


def run(args: argparse.Namespace) -> int:
    """Install, remove or list."""
    from har_edge.service.install import list_services, remove_service, system_paths, user_paths
    from har_edge.service.render import Service, ServiceRole

    places = user_paths() if args.user else system_paths(args.root)
    if args.action == "list":
        listed = list(list_services(places))
        for one in listed:
            place = f"{one.path}{'' if one.own else ' (edited)'}"
            line = f"{one.service.name:<24} {place}"
            print(line if len(line) <= columns() or not folds() else f"{one.service.name}\n    {place}")
        if not listed:
            print(f"no service of har-edge is installed in {places.units}", file=sys.stderr)
        return 0
    service = Service(ServiceRole(args.role), args.instance)
    if args.action == "uninstall":
        _say("removed", remove_service(places, service, force=args.force))
        _say_commands("stop", args, f"disable --now {service.unit}", reload_first=False)
        return 0
    return _install(args, places, service)


def _install(args: argparse.Namespace, places: ServicePaths, service: Service) -> int:
    from har_edge.service.install import write_service
    from har_edge.service.render import render_environment, render_unit

    if args.user and args.run_as:
        raise ConfigError("--run-as came with --user; expected one of them: a service of a user runs as that user")
    if args.client is not None or args.protocol is not None:
        raise ConfigError("--client and --protocol came; give them last, after --options")
    command = _check(args)
    variables = _variables(args)
    environment = places.environment(service)
    if args.root != Path("/"):
        environment = Path("/") / environment.relative_to(args.root)
    unit = render_unit(service, command, environment, of_user=args.user, run_as=args.run_as or "")
    if args.dry_run:
        shown = variables | ({"HAR_EDGE_PASSWORD": "********"} if "HAR_EDGE_PASSWORD" in variables else {})
        for path, text in ((places.unit(service), unit), (environment, render_environment(shown))):
            print(f"# {path}\n{text}")
        return 0
    changed = write_service(places, service, unit, render_environment(variables), force=args.force)
    _say("written", changed)
    if not changed:
        print("nothing to do: both files are there as they would be written")
    _say_commands("start", args, f"enable --now {service.unit}", reload_first=True)
    if args.user:
        print("it ends when you log out, unless: loginctl enable-linger")
    return 0


def _check(args: argparse.Namespace) -> list[str]:
    """Return the command of a service. Raises ConfigError, in a dry run too, when the service could not run it."""
    from har_edge.cli.service_check import broker_files, check_private, check_reach, settle_options

    given, named, needed = settle_options(args.role, args.options, args.root)
    command = [*_executable(), args.role, *given]
    if args.user:  # its manager has no /tmp of its own for a service, and its user is who installs it
        return command
    files = [Path(text) for text in _files(args).values()]
    if args.role == "broker":
        files += broker_files(_config_of(given))
    check_private([Path(command[0]), *files, *named])
    check_reach([Path(command[0]), Path(sys.executable).resolve(), *files, *needed], args.run_as or "", args.root)
    return command


def _config_of(given: Sequence[str]) -> Path | None:
    from har_edge.cli.main import build_parser

    config = build_parser().parse_args(["broker", *given]).config
    return None if config is None else Path(config)


def _executable() -> list[str]:
    """Return the command that starts this har-edge."""
    script = Path(sys.executable).parent / "har-edge"
    return [str(script)] if script.is_file() else [sys.executable, "-m", "har_edge.cli.main"]


def _files(args: argparse.Namespace) -> dict[str, str]:
    """Return the files that options name, as absolute paths. Raises ConfigError for a path that is no file."""
    named = {name: Path(getattr(args, name)).absolute() for name in _FILES if getattr(args, name) is not None}
    for name, path in named.items():
        if not path.is_file():
            raise ConfigError(f"--{name.replace('_', '-')}: {path} is no file")
    return {name: str(path) for name, path in named.items()}


def _variables(args: argparse.Namespace) -> dict[str, str]:
    """Return the environment of the service, from options, else from the environment of this command."""
    from har_edge.mqtt.address import PASSWORD_VARIABLE, USERNAME_VARIABLE, read_address

    if args.role == "broker":
        return {}
    folder = options.credentials_folder(args)
    if folder is not None:
        options.find_credentials(args)
        broker = {options.BROKER_VARIABLE: args.broker} if args.broker else {}
        return {options.CREDENTIALS_VARIABLE: str(folder.absolute()), **broker}
    files = _files(args)
    found = {
        options.BROKER_VARIABLE: args.broker or os.environ.get(options.BROKER_VARIABLE) or "mqtt://127.0.0.1:1883",
        USERNAME_VARIABLE: args.username or os.environ.get(USERNAME_VARIABLE),
        PASSWORD_VARIABLE: None if "password_file" in files else os.environ.get(PASSWORD_VARIABLE),
        **{
            f"HAR_EDGE_{name.upper()}": files.get(name) or os.environ.get(f"HAR_EDGE_{name.upper()}") for name in _FILES
        },
    }
    read_address(str(found[options.BROKER_VARIABLE]))
    return {name: str(value) for name, value in found.items() if value}


def _say_commands(verb: str, args: argparse.Namespace, action: str, *, reload_first: bool) -> None:
    """Print the commands that start or stop a service, on one line where they fit."""
    systemctl = _systemctl(args)
    commands = [f"{systemctl} daemon-reload", f"{systemctl} {action}"]
    if not reload_first:
        commands.reverse()
    line = f"{verb} it with: {'; '.join(commands)}"
    print(line if len(line) <= columns() or not folds() else "\n    ".join([f"{verb} it with:", *commands]))


def _systemctl(args: argparse.Namespace) -> str:
    return "systemctl --user" if args.user else "systemctl"


def _say(verb: str, paths: Iterable[Path]) -> None:
    for path in paths:
        print(f"{verb} {path}")
