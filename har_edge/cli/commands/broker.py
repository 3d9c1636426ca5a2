"""`har-edge broker`: run Mosquitto with a configuration of har_edge, or the embedded broker."""

from __future__ import annotations

import argparse
import os
import select
import sys
from pathlib import Path

from har_edge.cli.arguments import values
from har_edge.cli.console import say
from har_edge.errors import BrokerError, ConfigError

WAIT_S = 0.2
DEFAULT_PORT, SECURE_PORT = 1883, 8883
LOOPBACK = ("127.0.0.1", "::1", "localhost")
HELP = "run an MQTT broker: Mosquitto, or the embedded one"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", type=values.host, help="address to listen on (default: 127.0.0.1; 0.0.0.0: all)")
    parser.add_argument("--port", type=values.port, help="port to listen on (default: 1883)")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="Mosquitto configuration, yours or one of har_edge: mosquitto.conf, secure.conf (default: mosquitto.conf)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="folder for sessions and logs, of one broker only (default: ~/.local/state/har-edge, as root "
        "/var/lib/har-edge; below it port-PORT for another port than 1883)",
    )
    parser.add_argument(
        "--slices",
        type=Path,
        metavar="DIR",
        help="folder of slices: give Mosquitto at least the memory that a plan with them needs",
    )
    parser.add_argument(
        "--secure",
        action="store_true",
        help="want TLS and the users of `har-edge credentials`, on port 8883 and all addresses unless said otherwise",
    )
    parser.add_argument(
        "--credentials", type=Path, metavar="DIR", help="with --secure, folder of `har-edge credentials --folder`"
    )
    parser.add_argument(
        "--embedded", action="store_true", help="run the broker of har_edge instead, which keeps all in memory"
    )


def run(args: argparse.Namespace) -> int:
    from har_edge.mqtt.broker.embedded import LIMITS, start_embedded
    from har_edge.mqtt.broker.launcher import RunningBroker, find_mosquitto, start_mosquitto
    from har_edge.runtime.stop import Stop

    if args.embedded and args.config:
        raise ConfigError("--config is Mosquitto's; leave it away with --embedded")
    if args.credentials and not args.secure:
        raise ConfigError("--credentials came without --secure; expected both")
    if args.secure:
        secure(args)
    args.host, args.port = args.host or "127.0.0.1", args.port or DEFAULT_PORT
    if args.embedded and args.slices:
        raise ConfigError("--slices sets a limit of Mosquitto; leave it away with --embedded, whose bounds are fixed")
    memory_bytes = plan_bytes(args.slices) if args.slices else 0
    stop = Stop().catch_signals()
    broker: RunningBroker
    if args.embedded:
        broker = start_embedded(host=args.host, port=args.port)
    elif find_mosquitto() is None:
        raise BrokerError(
            "Mosquitto is not installed; `apt-get install mosquitto`, or run `har-edge broker --embedded`"
        )
    else:
        directory = args.directory or default_directory(args.port)
        broker = start_mosquitto(
            find_config(args.config or Path("mosquitto.conf")),
            directory,
            host=args.host,
            port=args.port,
            memory_bytes=memory_bytes,
        )
    if memory_bytes:
        say(f"a plan with these slices needs {memory_bytes / 1e6:.0f} MB at the broker, with checkpoints of trainings")
    say(f"{broker.description} listens on {args.host}:{args.port}; stop it with Ctrl-C")
    if args.embedded:
        say(LIMITS)
    if args.host not in LOOPBACK and is_open(args):
        say(
            "anybody in this network may connect, read windows and results, and publish a plan: it has no users; "
            "`har-edge credentials add` and `har-edge broker --secure` give it some"
        )
    try:
        while not stop.asked:
            broker.check()
            select.select([], [], [], WAIT_S)
    finally:
        broker.stop()
    print("broker stopped", file=sys.stderr)
    return 0


def plan_bytes(folder: Path) -> int:
    """Return how many bytes a broker needs for a plan with the slices in a folder."""
    from har_edge.config.message_sizes import broker_bytes
    from har_edge.runtime.build import UNDER_WAY_BYTES
    from har_edge.tflite.manifest import load_manifest

    manifest = load_manifest(folder)
    files = {name for entry in manifest.slices for name in entry.files}
    try:
        size = sum((folder / name).stat().st_size for name in files)
    except OSError as error:
        raise ConfigError(f"cannot read a slice of {folder}: {error}; make them again with `har-edge slice`") from None
    return broker_bytes(manifest, size, UNDER_WAY_BYTES)


def secure(args: argparse.Namespace) -> None:
    """Settle the options of a broker with TLS and users. Raises ConfigError where others are against it."""
    from har_edge.cli.commands.credentials import default_folder
    from har_edge.trust.credentials import open_credentials

    if args.embedded or args.config:
        raise ConfigError("--secure came with --embedded or --config; expected it alone: it makes its configuration")
    args.config = open_credentials(args.credentials or default_folder(), None, "").config()
    args.host, args.port = args.host or "0.0.0.0", args.port or SECURE_PORT


def is_open(args: argparse.Namespace) -> bool:
    """Return whether a broker takes clients without a user, by its configuration."""
    if args.embedded:
        return True
    from har_edge.files import read_text

    lines = read_text(find_config(args.config or Path("mosquitto.conf"))).splitlines()
    return any(line.split()[:2] == ["allow_anonymous", "true"] for line in lines)


def find_config(path: Path) -> Path:
    """Return the file at that path, or else the configuration that har_edge ships under that name."""
    from har_edge.resources import find_folder

    shipped = find_folder("brokers") / path.name
    return shipped if path.parent == Path() and not path.exists() and shipped.is_file() else path


def default_directory(port: int) -> Path:
    """Return the folder for the broker of a port. Mosquitto's user cannot enter root's home, so root has another one.

    Ports other than 1883 have folders of their own below that, unless older versions left their files there.
    """
    base = state_folder()
    if port == DEFAULT_PORT or _served(base) == port:
        return base
    return base / f"port-{port}"


def state_folder() -> Path:
    """Return the folder below which brokers of this machine keep their files."""
    if os.geteuid() == 0:
        return Path("/var/lib/har-edge")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "har-edge"


def _served(folder: Path) -> int | None:
    """Return the last port of a folder's broker, None where none ran."""
    try:
        first = (folder / "mosquitto.conf").read_text(encoding="utf-8").split("\n", 1)[0].split()
    except (OSError, UnicodeDecodeError):
        return None
    return int(first[1]) if len(first) > 1 and first[0] == "listener" and first[1].isdecimal() else None
