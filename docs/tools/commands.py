"""Write docs/reference/commands.md from the parsers of the commands.

    python docs/tools/commands.py            # print it
    python docs/tools/commands.py --write    # write the page

`HAR_EDGE_UPDATE=1 pytest tests/cli/test_help.py` writes it too, beside the snapshots of the help.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from har_edge.cli.main import build_parser

PAGE = Path(__file__).resolve().parents[1] / "reference" / "commands.md"
HEAD = """\
# Commands

`docs/tools/commands.py` makes this page from the parsers of the commands; `har-edge COMMAND --help` says the same.
[Exit codes](exit-codes.md) have a page of their own.

"""


def render() -> str:
    """Return the page: a table of all commands, then each command with its options."""
    parser = build_parser()
    commands = dict(_subcommands(parser))
    summary = "".join(f"| [`har-edge {name}`](#har-edge-{name}) | {_text(one)} |\n" for name, one in commands.items())
    parts = [HEAD, "| command | what it does |\n|---|---|\n", summary]
    for name, command in commands.items():
        parts.append(_command(f"har-edge {name}", command, "##"))
    return "".join(parts)


def _command(name: str, parser: argparse.ArgumentParser, level: str) -> str:
    parts = [f"\n{level} {name}\n\n{_text(parser)}\n"]
    for group in parser._action_groups:
        rows = "".join(_row(action) for action in group._group_actions if _shown(action))
        if not rows:
            continue
        title = f"\n{_group(group.title, group.description)}\n\n" if group.title not in _PLAIN else "\n"
        parts.append(f"{title}| option | meaning |\n|---|---|\n{rows}")
    if parser.epilog:
        parts.append(f"\n{_clean(parser.epilog)}\n")
    for inner, one in _subcommands(parser):
        parts.append(_command(f"{name} {inner}", one, level + "#"))
    return "".join(parts)


_PLAIN = ("options", "positional arguments")


def _group(title: str | None, description: str | None) -> str:
    return f"Options of `{title}`: {_clean(description)}" if description else f"Options of `{title}`:"


def _shown(action: argparse.Action) -> bool:
    hidden = action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
    return not hidden


def _row(action: argparse.Action) -> str:
    """Return an option as a row; what it takes stands as in the help."""
    value = _value(action)
    names = [f"{name} {value}".rstrip() for name in action.option_strings] or [value]
    return f"| {', '.join(f'`{name}`' for name in names)} | {_clean(_help(action))} |\n".replace("`|", "`\\|")


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    shown = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest)
    text = " ".join(shown) if isinstance(shown, tuple) else str(shown)
    many = action.nargs in ("*", "+") or action.nargs == argparse.REMAINDER
    return (f"{text} ..." if many and action.option_strings else text).replace("|", "\\|")


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")


def _clean(text: str | None) -> str:
    """Return a text on one line, for a cell of a table; what stands between backticks stays as it is."""
    words = " ".join((text or "").split()).replace("|", "\\|").split("`")
    words[::2] = [one.replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[") for one in words[::2]]
    return "`".join(words)


def _text(parser: argparse.ArgumentParser) -> str:
    words = _clean(parser.description)
    return words[:1].upper() + words[1:]


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(render(), encoding="utf-8")
    else:
        print(render(), end="")
