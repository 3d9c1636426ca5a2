"""Namespaces, links and the bridge of a test bed, by iproute2; nothing is made in the machine's own network.

Every host has a namespace with one interface, eth0, whose other end is a port of the bridge. The bridge stands in a
namespace of its own, with an address, so that a process there reaches every host over no link at all.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from har_edge.emulation.machine import call, refused

NAMESPACES = Path("/run/netns")
PREFIX_BITS = 16
_BRIDGE = "bridge"
_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 4096, 16384, 1 << 19
# A bucket for 6 ms forgives a timer that comes late; it must hold a whole Ethernet frame. At 94 Mbit/s it also holds
# the 64 KiB that TCP hands to a network card at once: a smaller one makes the kernel cut these into frames, which takes
# devices several times as long for each byte (5 to 8 instead of 1 to 1.5 ns, x86-64).
_BURST_S, _MIN_BURST_BYTES = 0.006, 1600
# The queue before the link: 50 ms, as far as that is at least what TCP needs to keep it busy.
_QUEUE_S, _MIN_QUEUE_BYTES = 0.05, 65536


def add_namespace(name: str) -> None:
    """Make a network namespace with its loopback up; fails where the name is taken."""
    call("ip", "netns", "add", name)
    call("ip", "-n", name, "link", "set", "lo", "up")


def delete_namespace(name: str) -> None:
    """Delete a namespace, and with it its interfaces; one that has gone is no error."""
    if (NAMESPACES / name).exists():
        call("ip", "netns", "delete", name)


def pids_in(name: str) -> list[int]:
    """Return the processes inside a namespace."""
    if not (NAMESPACES / name).exists():
        return []
    return [int(word) for word in call("ip", "netns", "pids", name).split()]


def add_bridge(namespace: str, address: str) -> None:
    """Make the bridge of a test bed, with an address of its own."""
    call("ip", "-n", namespace, "link", "add", _BRIDGE, "type", "bridge")
    call("ip", "-n", namespace, "address", "add", f"{address}/{PREFIX_BITS}", "dev", _BRIDGE)
    call("ip", "-n", namespace, "link", "set", _BRIDGE, "up")


def add_link(namespace: str, address: str, bridge: str, port: str, bits_per_s: int | None) -> None:
    """Join a namespace to the bridge in namespace `bridge`, at no more than `bits_per_s` each way."""
    call("ip", "-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", bridge)
    call("ip", "-n", namespace, "address", "add", f"{address}/{PREFIX_BITS}", "dev", "eth0")
    if bits_per_s is not None:
        for place, interface in ((namespace, "eth0"), (bridge, port)):
            call("tc", "-n", place, "qdisc", "add", "dev", interface, "root", *_bucket(bits_per_s))
    call("ip", "-n", namespace, "link", "set", "eth0", "up")
    call("ip", "-n", bridge, "link", "set", port, "master", _BRIDGE, "up")


def set_port(bridge: str, port: str, *, up: bool) -> None:
    """Plug the cable of a host in at the bridge, or pull it out."""
    call("ip", "-n", bridge, "link", "set", port, "up" if up else "down")


def _bucket(bits_per_s: int) -> list[str]:
    """Return the token bucket filter of a rate: tc-tbf(8)."""
    bytes_per_s = bits_per_s / 8
    burst = max(_MIN_BURST_BYTES, round(bytes_per_s * _BURST_S))
    limit = burst + max(_MIN_QUEUE_BYTES, round(bytes_per_s * _QUEUE_S))
    return ["tbf", "rate", f"{bits_per_s}bit", "burst", f"{burst}b", "limit", f"{limit}b"]


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Put this thread into a namespace for a while; a socket stays in the one it was made in."""
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        join_namespace(namespace)
        try:
            yield
        finally:
            _check("back to the network of this machine", _libc().setns(before.fileno(), _CLONE_NEWNET))


def join_namespace(namespace: str) -> None:
    """Put this thread into a network namespace for good."""
    try:
        with (NAMESPACES / namespace).open("rb") as file:
            _check(f"namespace {namespace}", _libc().setns(file.fileno(), _CLONE_NEWNET))
    except OSError as error:
        raise refused(f"namespace {namespace}", error) from None


def show_hosts(file: Path) -> None:
    """Let this process, and no other, see `file` as /etc/hosts."""
    libc = _libc()
    _check("a mount namespace", libc.unshare(_CLONE_NEWNS))
    _check("private mounts", libc.mount(None, b"/", None, _MS_SLAVE | _MS_REC, None))
    _check("names of hosts", libc.mount(os.fsencode(file), b"/etc/hosts", None, _MS_BIND, None))


def _libc() -> ctypes.CDLL:
    # os.setns and os.unshare came with Python 3.12; mount never did.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
    return libc


def _check(what: str, result: int) -> None:
    if result != 0:
        raise refused(what, OSError(number := ctypes.get_errno(), os.strerror(number)))
