"""`har-edge keys`: make, show, rotate, back up and restore the key with which a coordinator signs plans."""

from __future__ import annotations

import argparse
from pathlib import Path

from har_edge.cli.console import say
from har_edge.errors import ConfigError

HELP = "make, show, rotate, back up or restore the key with which a coordinator signs plans"
PUBLIC = ".pub"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions = {
        "new": "make a key: FILE for the coordinator alone, FILE.pub for nodes",
        "show": "print the public key, for `har-edge node --trust`",
        "rotate": "replace the key by a new one that the old one signs: nodes accept it without enrolment",
        "backup": "copy the key to a file that another machine can restore",
        "restore": "make the key file from a backup",
    }
    for name, text in actions.items():
        action = commands.add_parser(name, help=text, description=text)
        action.add_argument("file", type=Path, metavar="FILE", help="the key file of the coordinator")
        if name in ("backup", "restore"):
            action.add_argument("copy", type=Path, metavar="COPY", help="the backup")
            action.add_argument(
                "--passphrase-file",
                type=Path,
                metavar="PATH",
                help="file with the passphrase that encrypts the backup (default: it is not encrypted)",
            )


def run(args: argparse.Namespace) -> int:
    """Do what was asked; return 0."""
    from har_edge.files import write_atomic
    from har_edge.trust.keys import load_key, make_key, public_line, save_key

    path: Path = args.file
    if args.action == "new":
        _refuse_existing(path)
        key = make_key()
        save_key(key, path)
    elif args.action == "rotate":
        key = load_key(path).rotate()
        save_key(key, path)
        say("rotated: start the coordinator again; keep no copy of the old key; back the new one up")
    elif args.action == "restore":
        _refuse_existing(path)
        key = load_key(args.copy, _passphrase(args.passphrase_file))
        save_key(key, path)
        say(f"restored {path} from {args.copy}")
    else:
        key = load_key(path)
    if args.action == "backup":
        _refuse_existing(args.copy)
        passphrase = _passphrase(args.passphrase_file)
        save_key(key, args.copy, passphrase)
        how = "encrypted" if passphrase else "not encrypted: whoever reads it can sign plans"
        say(f"backed up to {args.copy}, {how}")
        return 0
    if args.action != "show":
        public = path.with_name(path.name + PUBLIC)
        write_atomic(public, public_line(key.public, "signs the plans of har-edge").encode(), 0o644)
        say(f"{path} is secret; {public} is for nodes: har-edge node --trust {public}")
    print(f"ed25519:{key.public}")
    return 0


def _passphrase(path: Path | None) -> bytes | None:
    """Return the first line of a file of a passphrase."""
    if path is None:
        return None
    from har_edge.files import read_text
    from har_edge.trust.keys import check_private

    check_private(path)
    words = read_text(path).splitlines()
    if not words or not words[0]:
        raise ConfigError(f"{path} is empty; expected a passphrase in its first line")
    return words[0].encode()


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"{path} exists; expected a new name: a key that is lost cannot be made again")
