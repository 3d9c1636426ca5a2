"""`har-edge testbed`: emulate small devices on this machine, and run a command on them."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from har_edge.cli.arguments import values
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.emulation.limits import Layout
    from har_edge.emulation.testbed import Testbed
    from har_edge.runtime.stop import Stop

WAIT_S = 0.2
STOP_TIMEOUT_S = 10.0
HELP = "emulate small devices on this machine: slow links, little processor and memory"
_EPILOG = """COMMAND runs on the host side of the bridge, which no limit holds, with HAR_EDGE_BROKER set; with --each
it runs once on every device, where {device} in its words stands for the name of the device and {index} for its number,
from 0. Without COMMAND the bed stays until Ctrl-C. Needs root, iproute2 and Mosquitto."""


class _Words(argparse._SubParsersAction):  # type: ignore[type-arg]
    """Reads an action by its name, or `-- COMMAND...`, or nothing; argparse alone always requires one of these."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.nargs = argparse.REMAINDER

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        words = list(values)
        if words and words[0] != "--":
            super().__call__(parser, namespace, words, option)
        else:
            namespace.words = command_of(words)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of an emulation, and `exec`, `cut`, `join` and `clean`."""
    parser.usage = "har-edge testbed [OPTION...] [--each] [-- COMMAND...]\n       har-edge testbed ACTION ..."
    parser.epilog = _EPILOG
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument(
        "--devices", type=values.positive, metavar="N", help="number of devices, named device-1 to device-N"
    )
    devices.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file with [[devices]] (docs/how-to/emulated-devices.md)"
    )
    parser.add_argument(
        "--cpu", metavar="CORES", help="processor of each device, in cores of this machine, such as 0.2"
    )
    parser.add_argument("--link", metavar="RATE", help="rate of each device's link, in each direction, such as 94mbit")
    parser.add_argument("--memory", metavar="SIZE", help="memory of each device, such as 512m or 1g")
    parser.add_argument("--each", action="store_true", help="run COMMAND on every device, not on the host side")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", action=_Words, prog="har-edge testbed")
    for name, text in (
        ("exec", "run a command on a device of a bed that runs, or on host or broker"),
        ("cut", "pull the cable of a device out"),
        ("join", "plug the cable of a device in again"),
        ("clean", "take down what beds left whose process was killed"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name != "clean":
            action.add_argument("device", metavar="DEVICE", help="name of the device")
            action.add_argument(
                "--bed", metavar="ID", help="id of the emulation (default: $HAR_EDGE_TESTBED, then the only one)"
            )
        if name == "exec":
            action.usage = "har-edge testbed exec [--bed ID] DEVICE -- COMMAND..."
            action.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND...", help="command to run there")


def run(args: argparse.Namespace) -> int:
    """Run `har-edge testbed`."""
    return _ACTIONS[args.action](args)


def _emulate(args: argparse.Namespace) -> int:
    from har_edge.emulation.testbed import Testbed
    from har_edge.runtime.stop import Stop

    layout = _layout(args)
    if args.each and not args.words:
        raise ConfigError("--each came without a command; give one after --")
    stop = Stop().catch_signals()
    with Testbed(layout) as testbed:
        _describe(testbed, layout)
        return _wait(testbed, _start(testbed, args), stop)


def _layout(args: argparse.Namespace) -> Layout:
    from har_edge.emulation.limits import Limits, equal_devices, read_cpu, read_layout, read_rate, read_size

    default = Limits(
        None if args.cpu is None else read_cpu(args.cpu),
        None if args.link is None else read_rate(args.link),
        None if args.memory is None else read_size(args.memory),
    )
    if args.config is None and args.devices is None:
        raise ConfigError("no devices; give --devices N, or --config FILE with [[devices]]")
    return read_layout(args.config, default) if args.config is not None else equal_devices(args.devices, default)


def _describe(testbed: Testbed, layout: Layout) -> None:
    """Describe the emulation on standard error, which leaves standard output to the command."""
    for host in testbed.emulation.hosts:
        print(f"{host.name:12} {host.address:12} {host.limits.text}", file=sys.stderr)
    cores, wanted = len(os.sched_getaffinity(0)), sum(limits.cpu or 0 for limits in layout.limits)
    if wanted > cores:
        print(f"the devices may use {wanted:g} cores together; this machine has {cores}", file=sys.stderr)
    print(f"bed {testbed.emulation.id}, broker {testbed.emulation.broker_url}", file=sys.stderr, flush=True)


def _start(testbed: Testbed, args: argparse.Namespace) -> list[subprocess.Popen[bytes]]:
    if not args.words:
        print("no command; the bed stays until Ctrl-C", file=sys.stderr, flush=True)
        return []
    if not args.each:
        return [testbed.run("host", args.words, stdin=None)]
    processes = []
    for index, device in enumerate(testbed.devices):
        words = [word.replace("{device}", device.name).replace("{index}", str(index)) for word in args.words]
        processes.append(testbed.run(device.name, words))
    return processes


def _wait(testbed: Testbed, processes: Sequence[subprocess.Popen[bytes]], stop: Stop) -> int:
    """Wait for every process, or for a signal; return the first exit code that is not 0."""
    while not stop.asked and (not processes or _running(processes)):
        testbed.check()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if processes:
                _running(processes)[0].wait(WAIT_S)
            else:
                select.select([], [], [], WAIT_S)
    for process in _running(processes):
        process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    codes = [code if code >= 0 else 128 - code for code in (process.returncode for process in processes)]
    return next(filter(None, codes), 0)


def _running(processes: Sequence[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    return [process for process in processes if process.poll() is None]


def command_of(words: list[str]) -> list[str]:
    """Return the words after `--`; some versions of argparse leave it in."""
    return words[words[:1] == ["--"] :]


def _exec(args: argparse.Namespace) -> int:
    from har_edge.emulation.emulation import load_emulation
    from har_edge.emulation.enter import enter
    from har_edge.emulation.machine import check_machine

    words = command_of(args.words)
    if not words:
        raise ConfigError("nothing to run; give a command after --")
    check_machine()
    enter(load_emulation(args.bed), args.device, words)


def _cut(args: argparse.Namespace) -> int:
    return _set_link(args, up=False)


def _join(args: argparse.Namespace) -> int:
    return _set_link(args, up=True)


def _set_link(args: argparse.Namespace, *, up: bool) -> int:
    from har_edge.emulation.emulation import load_emulation
    from har_edge.emulation.machine import check_machine

    check_machine()
    emulation = load_emulation(args.bed)
    (emulation.reconnect if up else emulation.disconnect)(args.device)
    print(f"{args.device} of bed {emulation.id} is {'joined' if up else 'cut off'}")
    return 0


def _clean(args: argparse.Namespace) -> int:
    from har_edge.emulation.emulation import cleanup_stale
    from har_edge.emulation.machine import check_machine

    check_machine()
    dead = cleanup_stale()
    print(f"took down {', '.join(dead)}" if dead else "nothing to take down")
    return 0


_ACTIONS = {None: _emulate, "exec": _exec, "cut": _cut, "join": _join, "clean": _clean}
