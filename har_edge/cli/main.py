"""The `har-edge` command: each subcommand is one module of `commands/`."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from har_edge import __version__
from har_edge.cli.arguments import options
from har_edge.cli.console import fold, say
from har_edge.errors import HarEdgeError
from har_edge.protocol.text import escape

# How many seconds a service waits that another process has taken over; the units set it.
TAKEN_OVER_VARIABLE = "HAR_EDGE_TAKEN_OVER_WAIT"
COMMANDS = (
    *(
        "demo",
        "sensor",
        "stage",
        "coordinator",
        "node",
        "watch",
        "status",
        "doctor",
        "broker",
        "service",
        "keys",
        "credentials",
        "slice",
        "evaluate",
        "train",
        "adapt",
        "versions",
        "zoo",
        "data",
        "testbed",
        "profile",
        "plan",
        "bench",
    ),
)


class _Formatter(argparse.HelpFormatter):
    """Breaks lines between words only: an address or a path that is cut cannot be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        words = " ".join(text.split())
        return textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    """A parser whose help and errors fit the terminal, as do those of its subcommands."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **({"formatter_class": _Formatter} | options))

    def error(self, message: str) -> NoReturn:
        """Print what the command cannot do without, and the error; --help lists the other options."""
        needed = [one for one in self._actions if one.required or not one.option_strings]
        formatter = self._get_formatter()
        formatter.add_usage(None, needed, ())
        words = formatter.format_help().removeprefix(f"usage: {self.prog}").split()
        usage = " ".join([f"usage: {self.prog} [--help] [OPTION ...]", *words])
        said = f"{self.prog}: error: {message}"
        self.exit(2, f"{fold(usage, 4, sys.stderr)}\n{fold(said, 4, sys.stderr)}\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = _Parser(prog="har-edge", description="Run one TFLite model across small MQTT devices.")
    parser.add_argument("--version", action="version", version=f"har-edge {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"har_edge.cli.commands.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.configure(command)
        command.set_defaults(run=module.run)
    return parser


def _refuse_closed_streams() -> int:
    """Print, where possible, that an output is closed, and return the exit code.

    Otherwise the next file or connection would get the number of the closed stream, and the output of libraries would
    go into it.
    """
    if sys.stderr is not None:
        print("error: standard output is closed; send it elsewhere, such as > /dev/null", file=sys.stderr)
    elif sys.stdout is not None:
        print("error: standard error is closed; send it elsewhere, such as 2> /dev/null", flush=True)
    return 2


def _wait_taken_over(code: int) -> int:
    """Return the exit code; as a service that another process has taken over, only after a long wait.

    The service manager then starts it again: had it to stay down, one forged claim would end it for ever.
    """
    wait = os.environ.get(TAKEN_OVER_VARIABLE, "")
    if code == options.EXIT_TAKEN_OVER and wait.isdecimal():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print(f"waiting for {wait} s before this service starts again", file=sys.stderr, flush=True)
        time.sleep(int(wait))
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (2 for an error that the user can correct)."""
    if sys.stdout is None or sys.stderr is None:
        return _refuse_closed_streams()
    args = build_parser().parse_args(argv)
    try:
        code = int(args.run(args))
        sys.stdout.flush()  # inside the try, so that its errors are reported
        return _wait_taken_over(code)
    except HarEdgeError as error:
        say("error: " + escape(str(error), keep="\n\t"), 7, sys.stderr)
        return 2
    except KeyboardInterrupt:
        return options.EXIT_INTERRUPTED
    except PermissionError as error:
        print(f"error: {error}; give another place, or the rights to this one", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the output has gone (`har-edge ... | head`): end quietly, and let the exit flush nothing.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  or the exit tries to write the rest again
        print(f"error: cannot write the output: {error.strerror}; make room, or send it elsewhere", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
