"""Find the process that listens on a TCP port of this machine, as far as Linux shows it (/proc/net/tcp, proc(5))."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pwd
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket; None stands for what this user may not see of its process."""

    address: str
    user: str | None
    program: str | None = None
    pid: int | None = None
    service: str | None = None

    @property
    def is_local_only(self) -> bool:
        """Return whether no other machine can reach it."""
        return ipaddress.ip_address(self.address).is_loopback

    def __str__(self) -> str:
        known = [f"process {self.pid}"] * (self.pid is not None) + [f"service {self.service}"] * bool(self.service)
        known += [f"user {self.user}"] * (not known and bool(self.program) and bool(self.user))
        name = self.program or (f"a process of the user {self.user}" if self.user else "another process")
        return f"{name} ({', '.join(known)})" if known else name


def find_listener(port: int, proc: Path = PROC) -> Listener | None:
    """Return the listener on a port, at any address; None where there is none, or the system does not say."""
    for name in ("tcp", "tcp6"):
        for address, uid, inode in _listening(proc / "net" / name, port):
            pid = _owner(proc, inode)
            if pid is None:
                pid = _only_process_of(proc, uid)
            user = None
            with contextlib.suppress(KeyError):
                user = pwd.getpwuid(uid).pw_name
            if pid is None:
                return Listener(address, user)
            return Listener(address, user, _read(proc / str(pid) / "comm") or None, pid, _service(proc, pid))
    return None


def explain_taken(host: str, port: int, listener: Listener | None) -> str:
    """Return the text that says what listens on a port already, and what to do."""
    holder = "another process" if listener is None else str(listener)
    if listener is not None and listener.is_local_only:
        holder += f", for this machine only ({listener.address}),"
    service = listener and listener.service
    lines = [f"port {port} on {host} is not free: {holder} listens there. Either"]
    other = port + 1 if port < 65535 else port - 1
    lines.append(f"  listen elsewhere: --port {other} (and where --directory is given, another one)")
    if service:
        lines.append(f"  or stop it for good: sudo systemctl disable --now {service.removesuffix('.service')}")
    else:
        lines.append(f"  or stop it{_kill(listener)}, and start this again")
    lines.append(f"  or, if it is a broker, use it: export HAR_EDGE_BROKER=mqtt://{_client_host(host)}:{port}")
    lines.append("  (what har_edge needs of its settings: brokers/README.md)")
    return "\n".join(lines)


def _kill(listener: Listener | None) -> str:
    """Return the command that ends a process, in brackets; an empty text where the process is not known."""
    if listener is None or listener.pid is None:
        return ""
    own = os.geteuid() == 0
    with contextlib.suppress(KeyError):
        own = own or listener.user == pwd.getpwuid(os.geteuid()).pw_name
    return f" ({'' if own else 'sudo '}kill {listener.pid})"


def _client_host(host: str) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _listening(table: Path, port: int) -> Iterator[tuple[str, int, str]]:
    """Yield address, user id and inode of each socket in a table that listens on the port."""
    for line in _read(table).splitlines()[1:]:
        fields = line.split()
        host, _, number = fields[1].partition(":")
        if fields[3] == _LISTEN and int(number, 16) == port:
            yield _address(host), int(fields[7]), fields[9]


def _address(text: str) -> str:
    """Return an address of the table in its usual form; the table holds words of 32 bits, each in host order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)


def _owner(proc: Path, inode: str) -> int | None:
    """Return the process that has a socket open, None where this user may not look."""
    for process in _processes(proc):
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) == f"socket:[{inode}]":
                        return int(process.name)
    return None


def _only_process_of(proc: Path, uid: int) -> int | None:
    """Return the only process of a user, such as a service with a user of its own; None for none or more."""
    found = []
    for process in _processes(proc):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == uid:
                found.append(int(process.name))
    return found[0] if len(found) == 1 else None


def _processes(proc: Path) -> Iterator[Path]:
    return (entry for entry in proc.iterdir() if entry.name.isdigit())


def _service(proc: Path, pid: int) -> str | None:
    """Return the systemd service of a process, by the name of its control group."""
    parts = _read(proc / str(pid) / "cgroup").replace("\n", "/").split("/")
    return next((part for part in reversed(parts) if part.endswith(".service")), None)


def _read(path: Path) -> str:
    """Return the text of a file, or an empty text where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
