"""Check for `har-edge service install` that a service could start, before its files are written."""

from __future__ import annotations

import argparse
import os
import pwd
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from har_edge.errors import ConfigError
from har_edge.resources import closed_to, find_folder

# PrivateTmp=yes hides these folders (systemd.exec(5)).
_PRIVATE = (Path("/tmp"), Path("/var/tmp"))
# Options that name files or folders. True: the path must exist; False: it may come later (caches, devices).
PATHS = {
    "config": True,
    "data": True,
    "labels": True,
    "devices": True,
    "model": True,
    "plan": True,
    "slices": True,
    "sign_key": True,
    "credentials": True,
    "trust": True,
    "stream": True,
    "directory": False,
    "cache": False,
    "live": False,
    "images": True,
    "heat_maps": False,
    "own_broker_config": True,
    "own_broker_directory": False,
    **dict.fromkeys(("password_file", "ca_file", "cert_file", "key_file"), True),
}
# The files by which a folder of slices is read.
_WITHIN = ("pipeline.toml", "manifest.json")


def settle_options(role: str, given: Sequence[str], root: Path) -> tuple[list[str], list[Path], list[Path]]:
    """Return the options of a command with absolute paths, these paths, and the files that it must be able to read.

    Raises ConfigError for a path that does not exist (nor below `root`, for the image of another machine), and when the
    command lacks something. Ends like the command itself when that refuses its options.
    """
    from har_edge.cli.main import build_parser

    parsed = build_parser().parse_args([role, *given])
    _check_whole(role, parsed, given)
    changed: dict[str, str] = {}
    paths: list[Path] = []
    needed: list[Path] = []
    for name, text, must in _named_paths(parsed):
        option = f"--{name.replace('_', '-')}"
        if not text or not any(one in (text, f"{option}={text}") for one in given) or _is_name(role, name, text):
            continue
        path = Path(text).absolute()
        if must and not path.exists() and not _below(root, path).exists():
            raise ConfigError(f"{option} {text} came, but there is no {path}; expected a file or folder that is there")
        changed[text] = str(path)
        changed[f"{option}={text}"] = f"{option}={path}"
        paths.append(path)
        needed += [path, *(path / file for file in _WITHIN)] if must else []
    return [changed.get(one, one) for one in given], paths, needed


def _named_paths(parsed: argparse.Namespace) -> Iterator[tuple[str, str, bool]]:
    """Yield option and text of each path that may be named, and whether it must exist; one option may name several."""
    for name, must in PATHS.items():
        value = getattr(parsed, name, None)
        for text in value if isinstance(value, list) else [value]:
            yield name, str(text or ""), must


def _is_name(role: str, option: str, text: str) -> bool:
    """Return whether a text is the name of a file that har_edge ships, or of a stream, and no path."""
    from har_edge.data.description import BUILT_IN

    if option == "stream":
        return role == "sensor" or text in (*BUILT_IN, "images")  # a sensor's is the name of a person or machine
    if option in ("live", "images"):
        return text == "-"
    if option == "trust":  # "first", or a key itself
        return not Path(text).exists() and ("/" not in text and not text.endswith(".pub"))
    if option == "model":
        from har_edge.config.catalog import load_catalog

        return not Path(text).exists() and text in {entry.name for entry in load_catalog().models}
    if role == "broker" and option == "config":
        return not Path(text).exists() and Path(text).parent == Path() and (find_folder("brokers") / text).is_file()
    return False


def _check_whole(role: str, parsed: argparse.Namespace, given: Sequence[str]) -> None:
    """Raise ConfigError for a command that would look for its pipeline file in the folder it is started in."""
    named = any(one == "--config" or one.startswith("--config=") for one in given)
    if role in ("sensor", "stage") and not named and getattr(parsed, "pipeline", None) is None:
        other = ", or --pipeline NAME" if role == "sensor" else ""
        raise ConfigError(
            f"{role} came without --config; expected --options --config FOLDER{other}: a service "
            "starts in another folder"
        )


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def check_private(paths: Iterable[Path]) -> None:
    """Raise ConfigError for a system service with paths in /tmp: with PrivateTmp=yes it has an empty one of its own."""
    for path in paths:
        for place in (path.absolute(), path.resolve()):
            private = next((one for one in _PRIVATE if place.is_relative_to(one)), None)
            if private is not None:
                raise ConfigError(
                    f"{path} came, which is in {private}: a service does not see it there, since PrivateTmp=yes gives "
                    f"it an empty {private} of its own; put it elsewhere, such as /opt or /srv"
                )


def check_reach(paths: Iterable[Path], run_as: str, root: Path) -> None:
    """Raise ConfigError for a system service whose user, `run_as` or one that systemd makes, cannot read its files."""
    who, uid, groups = "the user that systemd makes for this service", None, list[int]()
    if run_as:
        try:
            user = pwd.getpwnam(run_as)
        except KeyError:
            if root == Path("/"):
                raise ConfigError(f"--run-as {run_as} came; expected a user of this machine") from None
            return  # one of the image
        who, uid, groups = f"the user {run_as}", user.pw_uid, os.getgrouplist(run_as, user.pw_gid)
    for path in paths:
        closed = closed_to(_below(root, path) if _below(root, path).exists() else path, uid, groups)
        if closed is not None:
            other = "another user" if run_as else "a user"
            raise ConfigError(
                f"{closed} is closed to {who}, who needs {path}; give --run-as USER with {other} who may "
                "read it, or put it where all may"
            )


def broker_files(parsed_config: Path | None) -> list[Path]:
    """Return the files in a broker's configuration that its user must read; none for the default configuration."""
    from har_edge.cli.commands.broker import find_config
    from har_edge.mqtt.broker.launcher import named_files

    if parsed_config is None:
        return []
    try:
        text = find_config(parsed_config).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the broker configuration {parsed_config}: {error}") from None
    return [path.absolute() for _, path in named_files(text)]
