"""Become a command inside a test bed: `python -m har_edge.emulation.enter BED PLACE COMMAND...`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from har_edge.emulation import cgroups, network
from har_edge.emulation.emulation import TESTBED_VARIABLE, Emulation, load_emulation
from har_edge.errors import ConfigError, HarEdgeError

BROKER_VARIABLE = "HAR_EDGE_BROKER"


def enter(emulation: Emulation, host: str, command: Sequence[str]) -> NoReturn:
    """Replace this process by a command on a host of a test bed, with the limits, network and names of that host."""
    namespace = emulation.namespace(host)
    cgroups.attach(emulation.groups_of(host), os.getpid())
    network.join_namespace(namespace)
    network.show_hosts(emulation.hosts_file)
    os.environ |= {BROKER_VARIABLE: emulation.broker_url, TESTBED_VARIABLE: emulation.id}
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what it ignores a command would too
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        raise ConfigError(f"cannot run {command[0]!r} on {host}: {error.strerror}; expected a program") from None


def main(argv: Sequence[str]) -> int:
    """Enter; returns only with an error, 2."""
    try:
        enter(load_emulation(argv[0]), argv[1], argv[2:])
    except HarEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
