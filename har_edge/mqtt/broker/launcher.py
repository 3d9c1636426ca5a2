"""Start Mosquitto, where it is installed."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from har_edge.errors import BrokerError, ConfigError
from har_edge.mqtt.address import Address
from har_edge.mqtt.broker.lock import locked
from har_edge.mqtt.broker.ports import explain_taken, find_listener
from har_edge.mqtt.broker.watchdog import Watchdog
from har_edge.resources import closed_to, find_folder

_START_TIMEOUT_S = 10.0
# Settings of a configuration that name a file.
_FILES = ("password_file", "acl_file", "cafile", "certfile", "keyfile")
_STOP_TIMEOUT_S = 5.0
# The most memory that a broker with a configuration of har_edge takes, as a part of what the machine has.
_MEMORY_SHARE = 0.75
_MEMORY = re.compile(r"^memory_limit (\d+)$", re.MULTILINE)
_QUEUED = re.compile(r"^max_queued_bytes (\d+)$", re.MULTILINE)
_QUEUED_SHARE = 0.75  # of the memory limit, for one client: a broker without memory cannot give what waits for it


class RunningBroker(Protocol):
    """A broker that this process started."""

    @property
    def address(self) -> Address:
        """The address at which clients reach it."""

    @property
    def description(self) -> str:
        """Name and version, fit to print."""

    def check(self) -> None:
        """Raise BrokerError when the broker has ended by itself."""

    def stop(self) -> None:
        """Stop the broker and wait until its process has ended."""


@dataclass(slots=True)
class Mosquitto:
    """A Mosquitto process; use it as a context manager, or call `stop`."""

    address: Address
    description: str
    process: subprocess.Popen[bytes]
    log: Path
    watchdog: Watchdog | None = None

    def check(self) -> None:
        if self.process.poll() is not None:
            raise BrokerError(f"Mosquitto ended by itself (exit code {self.process.returncode}): {self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its log."""
        tail = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        return " | ".join(tail) or "it said nothing"

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.watchdog is not None:
            self.watchdog.close()

    def __enter__(self) -> Mosquitto:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def find_mosquitto() -> Path | None:
    """Return Mosquitto's executable, None where it is not installed; /usr/sbin counts even when PATH lacks it."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def mosquitto_version(executable: Path) -> str:
    """Return `Mosquitto <version>`."""
    answer = subprocess.run([executable, "-h"], capture_output=True, text=True, check=False, timeout=_START_TIMEOUT_S)
    first = (answer.stdout or answer.stderr).partition("\n")[0]
    return first.replace("mosquitto version", "Mosquitto").strip() or "Mosquitto of unknown version"


def start_mosquitto(
    config: Path,
    directory: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    extra: str = "",
    log: Path | None = None,
    memory_bytes: int = 0,
) -> Mosquitto:
    """Run Mosquitto with a configuration of `brokers/`, its database in `directory`, and wait until it answers.

    `port` 0 takes a free port; `extra` is appended to the configuration. The memory limit of har_edge's own ones
    is raised to what the machine has room for, and to `memory_bytes` at least. Raises BrokerError when Mosquitto is not
    installed or does not start, when the port is taken, or when another broker has its files in the directory. Raises
    ConfigError when the configuration, or a file that it names, cannot be read.
    """
    executable = find_mosquitto()
    if executable is None:
        raise BrokerError("Mosquitto is not installed; `apt-get install mosquitto`, or use the embedded broker")
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the broker configuration {config}: {error}") from None
    text = raise_memory_limit(text, config, memory_bytes)
    check_files(text + extra, config)
    port = port or free_port(host)
    check_free(host, port)
    # The listener comes first, since TLS settings belong to the listener before them.
    settings = f"listener {port} {host}\n{text}\npersistence_location {directory.absolute()}/\n{extra}\n"
    written, log = directory / "mosquitto.conf", log or directory / "mosquitto.log"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _hand_over(directory)
        with locked(directory, f"the broker on port {port} of {host}") as lock:
            written.write_text(settings, encoding="utf-8")
            watchdog, process = _launch([executable, "-c", written], log, lock)
    except OSError as error:
        raise ConfigError(f"cannot keep the broker's files in {directory}: {error}; give another folder") from None
    tls = "\ncertfile " in text + extra
    broker = Mosquitto(Address(reachable(host), port, tls=tls), mosquitto_version(executable), process, log, watchdog)
    _await_listening(broker)
    return broker


def raise_memory_limit(text: str, config: Path, least_bytes: int = 0) -> str:
    """Return a configuration of har_edge with the memory limits for this machine; anybody else's stays as it is."""
    if config.absolute().parent != find_folder("brokers").absolute():
        return text
    machine = int(_MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    least = max(machine, least_bytes)
    text = _MEMORY.sub(lambda found: f"memory_limit {max(int(found[1]), least)}", text)
    return _QUEUED.sub(lambda found: f"max_queued_bytes {max(int(found[1]), int(_QUEUED_SHARE * least))}", text)


def named_files(text: str) -> list[tuple[str, Path]]:
    """Return the settings of a configuration that name files, with the files."""
    found = [line.strip().partition(" ") for line in text.splitlines()]
    return [(name, Path(value.strip())) for name, _, value in found if name in _FILES and value.strip()]


def check_files(text: str, config: Path) -> None:
    """Raise ConfigError when a file that a configuration names is missing, or Mosquitto cannot read it."""
    chosen = next((line.split()[1] for line in text.splitlines() if line.startswith("user ")), "mosquitto")
    for name, path in named_files(text):
        mend = f"make it as brokers/README.md says, or name another one in a copy of {config.name} (--config)"
        if not _may_enter(path) or not path.is_file():
            raise ConfigError(f"{config} names the {name} {path}, which is not there, or cannot be seen; {mend}")
        closed, user = _closed(path, chosen)
        if closed is not None:
            raise ConfigError(
                f"{config} names the {name} {path}, but {closed} is closed to {user}, as whom Mosquitto runs; give it "
                f"to that user, as brokers/README.md says, or {mend.partition(', or ')[2]}"
            )


def _may_enter(path: Path) -> bool:
    return os.access(path.absolute().parent, os.X_OK)


def _closed(path: Path, chosen: str) -> tuple[Path | None, str]:
    """Return the folder or file that the user of Mosquitto cannot read, if any, and the name of that user.

    As root, `chosen` is that user.
    """
    if os.geteuid() != 0:
        return (None if os.access(path, os.R_OK) else path), "this user"
    try:
        user = pwd.getpwnam(chosen)
    except KeyError:  # without that user Mosquitto stays root
        return None, "root"
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    return closed_to(path, user.pw_uid, groups), f"the user {chosen}"


def _launch(command: list[Path | str], log: Path, lock: int) -> tuple[Watchdog, subprocess.Popen[bytes]]:
    """Start Mosquitto, which holds the lock until it ends, and the watchdog that ends it after this process."""
    with log.open("ab") as output:
        watchdog = Watchdog()  # first: then there is no moment in which nobody watches
        try:
            # A session of its own, so that Ctrl-C in the terminal reaches us first and the broker goes last.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | watchdog.variables,
                start_new_session=True,
                pass_fds=(lock,),
            )
        except OSError:
            watchdog.close()
            raise
        watchdog.watch(process.pid)
    return watchdog, process


def _hand_over(directory: Path) -> None:
    """As root, give the folder to the user that Mosquitto runs as; raise ConfigError when that user cannot enter it."""
    if os.geteuid() != 0:
        return
    try:
        user = pwd.getpwnam("mosquitto")
    except KeyError:  # without that user Mosquitto stays root
        return
    os.chown(directory, user.pw_uid, user.pw_gid)
    for parent in directory.absolute().parents:
        status = parent.stat()
        mine = status.st_mode & (stat.S_IXOTH | (stat.S_IXGRP if status.st_gid == user.pw_gid else 0))
        if not mine and status.st_uid != user.pw_uid:
            raise ConfigError(
                f"Mosquitto runs as the user mosquitto, who cannot enter {parent}, so nothing would be kept in "
                f"{directory}; give a folder such as /var/lib/har-edge with --directory"
            )


def _await_listening(broker: Mosquitto) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            socket.create_connection((broker.address.host, broker.address.port), timeout=1).close()
            return
        except OSError:
            ended = broker.process.poll()
            if ended is not None or time.monotonic() > deadline:
                broker.stop()
                raise BrokerError(f"Mosquitto did not start (exit code {ended}): {broker.last_words()}") from None
            with contextlib.suppress(subprocess.TimeoutExpired):
                broker.process.wait(0.02)


def reachable(host: str) -> str:
    """Return the address at which a client on this machine reaches a listener that is bound to `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def free_port(host: str) -> int:
    """Return a TCP port that is free now."""
    with socket.socket(_family(host)) as probe:
        probe.bind((reachable(host), 0))
        return int(probe.getsockname()[1])


def check_free(host: str, port: int) -> None:
    """Raise BrokerError when another process already listens on the port."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((reachable(host), port))
        except socket.gaierror as error:
            raise BrokerError(f"cannot listen on {host!r}: {error}; give an address of this machine") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise BrokerError(explain_taken(host, port, find_listener(port))) from None
            raise BrokerError(
                f"cannot listen on port {port} of {host}: {error}; give an address of this machine, or another port"
            ) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
