"""The parts of an emulation, its owner, and how it is taken down.

Each emulation has a folder below /run. Its owner holds a lock on the folder, which the kernel releases when the owner
dies in any way; a folder without a held lock belongs to a dead emulation. The folder is made first and removed last.
Every name in it holds the emulation's random id, so nothing is ever taken down that was not made for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from har_edge.emulation import cgroups, network
from har_edge.emulation.limits import BROKER, HOST, UNLIMITED, Layout, Limits
from har_edge.errors import ConfigError, NodeError
from har_edge.files import write_atomic

FOLDER = Path("/run/har-edge/testbed")
TESTBED_VARIABLE = "HAR_EDGE_TESTBED"
BROKER_PORT = 1883
_HOST_ADDRESS = "10.77.0.1"
_FILE, _HOSTS = "bed.json", "hosts"


class Host(msgspec.Struct, frozen=True):
    """A host on the bridge: a device, or the broker's."""

    name: str
    port: str
    address: str
    limits: Limits


class Emulation(msgspec.Struct, frozen=True):
    """A test bed as it stands in its file; `groups` are its cgroups, one a hierarchy."""

    id: str
    groups: Sequence[str]
    hosts: Sequence[Host] = msgspec.field(name="places")

    @property
    def folder(self) -> Path:
        return FOLDER / self.id

    @property
    def names(self) -> list[str]:
        """A place to run a process: the host side of the bridge, the broker's host, or a device."""
        return [HOST, *(host.name for host in self.hosts)]

    @property
    def broker_url(self) -> str:
        return f"mqtt://{self.host(BROKER).address}:{BROKER_PORT}"

    def host(self, name: str) -> Host:
        """Return the broker's host or a device by its name; raises ConfigError."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise ConfigError(f"no device {name!r} in bed {self.id}; it has {', '.join(self.names[1:])}")

    def namespace(self, name: str) -> str:
        """Return the network namespace of a host; raises ConfigError."""
        if name != HOST:
            self.host(name)
        return f"har-{self.id}-{name}"

    def groups_of(self, name: str) -> list[Path]:
        """Return the cgroups of a host, one a hierarchy."""
        return [Path(group) / name for group in self.groups]

    def disconnect(self, name: str) -> None:
        """Pull the cable of a device out; connections stay open and hear nothing, as with a real one."""
        network.set_port(self.namespace(HOST), self.host(name).port, up=False)

    def reconnect(self, name: str) -> None:
        """Plug the cable of a device in again."""
        network.set_port(self.namespace(HOST), self.host(name).port, up=True)

    @property
    def hosts_file(self) -> Path:
        """The /etc/hosts of every process in the bed."""
        return self.folder / _HOSTS


def register(layout: Layout) -> tuple[Emulation, int]:
    """Register a new test bed; return it with the descriptor of its lock, to be held as long as the test bed lives."""
    controllers = controllers_of(layout)
    parents = cgroups.find_parents(controllers)
    with _registry():
        name = secrets.token_hex(3)
        hosts = [Host(BROKER, "port-0", "10.77.0.2", layout.broker)]
        for number, device in enumerate(layout.devices, 1):
            hosts.append(Host(device.name, f"port-{number}", f"10.77.1.{number}", device.limits))
        emulation = Emulation(name, [str(parent / f"har-{name}") for parent in parents], hosts)
        taken = [path for path in (emulation.folder, *map(Path, emulation.groups)) if path.exists()]
        taken += network.NAMESPACES.glob(f"har-{emulation.id}-*")
        if taken:
            raise NodeError(f"{taken[0]} exists already and is nobody's bed; try again")
        _make_open(emulation.folder)
        owner = os.open(emulation.folder, os.O_RDONLY)
        fcntl.flock(owner, fcntl.LOCK_EX)
        names = [("127.0.0.1", "localhost"), (_HOST_ADDRESS, HOST), *((host.address, host.name) for host in hosts)]
        emulation.hosts_file.write_text("".join(f"{address} {name}\n" for address, name in names), encoding="ascii")
        emulation.hosts_file.chmod(0o644)
        write_atomic(emulation.folder / _FILE, msgspec.json.encode(emulation))
    return emulation, owner


def controllers_of(layout: Layout) -> list[str]:
    """Return the cgroup controllers that a layout needs; cpu always, whose groups also tell who belongs to a bed."""
    return ["cpu", "memory"] if any(limits.memory_bytes is not None for limits in layout.limits) else ["cpu"]


def build(emulation: Emulation, layout: Layout) -> None:
    """Make the cgroups, namespaces and links of a test bed that is claimed."""
    for top in emulation.groups:
        cgroups.add_top(Path(top), controllers_of(layout))
    for name in emulation.names:
        cgroups.add_groups(emulation.groups_of(name), UNLIMITED if name == HOST else emulation.host(name).limits)
        network.add_namespace(emulation.namespace(name))
    network.add_bridge(emulation.namespace(HOST), _HOST_ADDRESS)
    for host in emulation.hosts:
        namespace, rate = emulation.namespace(host.name), host.limits.link_bits_per_s
        network.add_link(namespace, host.address, emulation.namespace(HOST), host.port, rate)


def destroy(emulation: Emulation) -> None:
    """Kill what runs in a test bed and take down all of it; what has gone already is no error."""
    for name in emulation.names:
        cgroups.remove(emulation.groups_of(name))
        cgroups.kill(network.pids_in(emulation.namespace(name)))
        network.delete_namespace(emulation.namespace(name))
    cgroups.remove(map(Path, emulation.groups))
    shutil.rmtree(emulation.folder, ignore_errors=True)


def load_emulation(name: str | None = None) -> Emulation:
    """Return a living test bed by its id, else the one of HAR_EDGE_TESTBED, else the only one; raises ConfigError."""
    living = _living()
    name = name or os.environ.get(TESTBED_VARIABLE)
    if name is None and len(living) > 1:
        raise ConfigError(f"{len(living)} beds run: {', '.join(living)}; choose one with --bed")
    if not living or name not in (None, *living):
        raise ConfigError(
            f"no bed{'' if name is None else f' {name!r}'} runs (running: {', '.join(living) or 'none'}); "
            "start one with `har-edge testbed --devices N`"
        )
    return _read(FOLDER / (name or living[0]))


def cleanup_stale() -> list[str]:
    """Take down every dead test bed; return their ids."""
    dead = []
    with _registry():
        for folder in _folders():
            if (file := _hold(folder)) is not None:
                take_down(folder)
                os.close(file)
                dead.append(folder.name)
    return dead


def take_down(folder: Path) -> None:
    """Take down the test bed of a folder, however far it was made."""
    if (folder / _FILE).exists():
        destroy(_read(folder))
    shutil.rmtree(folder, ignore_errors=True)


def await_owner(folder: Path) -> None:
    """Wait until the owner of a test bed has died or closed it, and hold the test bed from then on."""
    with contextlib.suppress(FileNotFoundError):
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)


def _read(folder: Path) -> Emulation:
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=Emulation)
    except (OSError, msgspec.MsgspecError) as error:
        raise NodeError(f"cannot read {folder / _FILE}: {error}; end what runs there and remove the folder") from None


def _folders() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*") if path.is_dir())


def _hold(folder: Path) -> int | None:
    """Take the lock of a dead test bed and return its descriptor; None when the owner lives or another has it."""
    with contextlib.suppress(FileNotFoundError):
        file = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        else:
            return file
    return None


def _living() -> list[str]:
    """Return the ids of the test beds whose owner lives."""
    names = []
    for folder in _folders():
        if (file := _hold(folder)) is None:
            names.append(folder.name)
        else:
            os.close(file)
    return names


def _make_open(folder: Path) -> None:
    """Make a folder that Mosquitto's user may enter, whatever the umask."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)


@contextlib.contextmanager
def _registry() -> Iterator[None]:
    """Hold the lock over all test beds, so that no half-made folder is ever seen."""
    for folder in (FOLDER.parent, FOLDER):
        if not folder.exists():
            _make_open(folder)
    file = os.open(FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
