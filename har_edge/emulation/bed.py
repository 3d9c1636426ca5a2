"""What a bed consists of, who owns it, and how it is taken down.

Each bed has a folder below /run. Its owner holds a lock on it, which the kernel gives up when the owner dies in any
way; a folder without a held lock is a dead bed. The folder is there before anything else is made and goes last, and
every name in it holds the bed's random id, so nothing is ever taken down that was not made for that bed.
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

FOLDER = Path("/run/har-edge/testbed")
BED_VARIABLE = "HAR_EDGE_TESTBED"
BROKER_PORT = 1883
_HOST_ADDRESS = "10.77.0.1"
_FILE, _HOSTS = "bed.json", "hosts"


class Place(msgspec.Struct, frozen=True):
    """A host on the bridge: a device, or the broker's."""

    name: str
    port: str
    address: str
    limits: Limits


class Bed(msgspec.Struct, frozen=True):
    """A bed as it stands in its file; `groups` are its cgroups, one a hierarchy."""

    id: str
    groups: Sequence[str]
    places: Sequence[Place]

    @property
    def folder(self) -> Path:
        return FOLDER / self.id

    @property
    def names(self) -> list[str]:
        """Where something can run: the host side of the bridge, the broker's host, the devices."""
        return [HOST, *(place.name for place in self.places)]

    @property
    def broker_url(self) -> str:
        return f"mqtt://{self.place(BROKER).address}:{BROKER_PORT}"

    def place(self, name: str) -> Place:
        """Return the broker's host or a device by its name; raises ConfigError."""
        for place in self.places:
            if place.name == name:
                return place
        raise ConfigError(f"no device {name!r} in bed {self.id}; it has {', '.join(self.names[1:])}")

    def namespace(self, name: str) -> str:
        """Return the network namespace of a host; raises ConfigError."""
        if name != HOST:
            self.place(name)
        return f"har-{self.id}-{name}"

    def groups_of(self, name: str) -> list[Path]:
        """Return the cgroups of a host, one a hierarchy."""
        return [Path(group) / name for group in self.groups]

    def cut(self, name: str) -> None:
        """Pull the cable of a device out; connections stay open and hear nothing, as with a real one."""
        network.set_port(self.namespace(HOST), self.place(name).port, up=False)

    def mend(self, name: str) -> None:
        """Plug the cable of a device in again."""
        network.set_port(self.namespace(HOST), self.place(name).port, up=True)

    @property
    def hosts(self) -> Path:
        """The /etc/hosts of every process in the bed."""
        return self.folder / _HOSTS


def claim(layout: Layout) -> tuple[Bed, int]:
    """Register a new bed; return it with the descriptor of its lock, to be held as long as the bed lives."""
    controllers = controllers_of(layout)
    parents = cgroups.find_parents(controllers)
    with _registry():
        name = secrets.token_hex(3)
        places = [Place(BROKER, "port-0", "10.77.0.2", layout.broker)]
        for number, device in enumerate(layout.devices, 1):
            places.append(Place(device.name, f"port-{number}", f"10.77.1.{number}", device.limits))
        bed = Bed(name, [str(parent / f"har-{name}") for parent in parents], places)
        taken = [path for path in (bed.folder, *map(Path, bed.groups)) if path.exists()]
        taken += network.NAMESPACES.glob(f"har-{bed.id}-*")
        if taken:
            raise NodeError(f"{taken[0]} exists already and is nobody's bed; try again")
        _make_open(bed.folder)
        owner = os.open(bed.folder, os.O_RDONLY)
        fcntl.flock(owner, fcntl.LOCK_EX)
        names = [("127.0.0.1", "localhost"), (_HOST_ADDRESS, HOST), *((place.address, place.name) for place in places)]
        bed.hosts.write_text("".join(f"{address} {name}\n" for address, name in names), encoding="ascii")
        bed.hosts.chmod(0o644)
        whole = bed.folder / "new.json"
        whole.write_bytes(msgspec.json.encode(bed))
        whole.replace(bed.folder / _FILE)
    return bed, owner


def controllers_of(layout: Layout) -> list[str]:
    """Return the cgroup controllers that a layout needs; cpu always, whose groups also tell who belongs to a bed."""
    return ["cpu", "memory"] if any(limits.memory_bytes is not None for limits in layout.limits) else ["cpu"]


def build(bed: Bed, layout: Layout) -> None:
    """Make the cgroups, namespaces and links of a bed that is claimed."""
    for top in bed.groups:
        cgroups.add_top(Path(top), controllers_of(layout))
    for name in bed.names:
        cgroups.add_groups(bed.groups_of(name), UNLIMITED if name == HOST else bed.place(name).limits)
        network.add_namespace(bed.namespace(name))
    network.add_bridge(bed.namespace(HOST), _HOST_ADDRESS)
    for place in bed.places:
        namespace, rate = bed.namespace(place.name), place.limits.link_bits_per_s
        network.add_link(namespace, place.address, bed.namespace(HOST), place.port, rate)


def destroy(bed: Bed) -> None:
    """Kill what runs in a bed and take down all of it; what has gone already is no error."""
    for name in bed.names:
        cgroups.remove(bed.groups_of(name))
        cgroups.kill(network.pids_in(bed.namespace(name)))
        network.delete_namespace(bed.namespace(name))
    cgroups.remove(map(Path, bed.groups))
    shutil.rmtree(bed.folder, ignore_errors=True)


def load_bed(name: str | None = None) -> Bed:
    """Return a living bed by its id, else the one of HAR_EDGE_TESTBED, else the only one; raises ConfigError."""
    living = _living()
    name = name or os.environ.get(BED_VARIABLE)
    if name is None and len(living) > 1:
        raise ConfigError(f"{len(living)} beds run: {', '.join(living)}; choose one with --bed")
    if not living or name not in (None, *living):
        raise ConfigError(
            f"no bed{'' if name is None else f' {name!r}'} runs (running: {', '.join(living) or 'none'}); "
            "start one with `har-edge testbed --devices N`"
        )
    return _read(FOLDER / (name or living[0]))


def sweep() -> list[str]:
    """Take down every dead bed; return their ids."""
    dead = []
    with _registry():
        for folder in _folders():
            if (file := _hold(folder)) is not None:
                take_down(folder)
                os.close(file)
                dead.append(folder.name)
    return dead


def take_down(folder: Path) -> None:
    """Take down the bed of a folder, however far it was made."""
    if (folder / _FILE).exists():
        destroy(_read(folder))
    shutil.rmtree(folder, ignore_errors=True)


def await_owner(folder: Path) -> None:
    """Wait until the owner of a bed has died or closed it, and hold the bed from then on."""
    with contextlib.suppress(FileNotFoundError):
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)


def _read(folder: Path) -> Bed:
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=Bed)
    except (OSError, msgspec.MsgspecError) as error:
        raise NodeError(f"cannot read {folder / _FILE}: {error}; end what runs there and remove the folder") from None


def _folders() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*") if path.is_dir())


def _hold(folder: Path) -> int | None:
    """Take the lock of a dead bed; return its descriptor, None when the owner lives (or somebody takes it down)."""
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
    """Return the ids of the beds whose owner lives."""
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
    """Hold the lock over all beds, so that no half-made folder is ever seen."""
    for folder in (FOLDER.parent, FOLDER):
        if not folder.exists():
            _make_open(folder)
    file = os.open(FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
