"""Limits on processor and memory by control groups, of version 1 or 2, whichever this machine has.

Groups are made below that of this process (version 2: below the nearest one that lets children have the controllers),
so what limits this process still limits the devices. Kernel: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from har_edge.emulation.limits import Limits
from har_edge.emulation.machine import UnsupportedError, refused
from har_edge.errors import NodeError

# The kernel hands out quotas of a millisecond or more. With its usual period of 100 ms a device of 0.2 cores computes
# 20 ms at full speed and then stands still for 80; shorter slices come nearer to a slow processor.
PERIOD_US, _MIN_QUOTA_US = 10_000, 1_000
_END_TIMEOUT_S = 10.0
_PROCS = "cgroup.procs"


@dataclass(frozen=True, slots=True)
class Mount:
    """A cgroup file system: its version, controllers (version 1), root in the hierarchy, and where it is mounted."""

    version: int
    controllers: frozenset[str]
    root: str
    point: Path


def read_mounts(mountinfo: str) -> list[Mount]:
    """Return the cgroup file systems of a /proc/<pid>/mountinfo: proc(5)."""
    mounts = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split(maxsplit=2)
        if kind in ("cgroup", "cgroup2"):
            mounts.append(Mount(2 if kind == "cgroup2" else 1, frozenset(options.split(",")), root, Path(point)))
    return mounts


def read_own(cgroup: str) -> dict[str, str]:
    """Return the group of a process in each hierarchy, by controller, "" for version 2: cgroups(7)."""
    own: dict[str, str] = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    return own


def find_parents(controllers: Sequence[str]) -> list[Path]:
    """Return the groups below which every controller can be had, each once; raises UnsupportedError."""
    mounts = read_mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    own = read_own(Path("/proc/self/cgroup").read_text(encoding="utf-8"))
    parents: dict[Path, None] = {}
    on_second = []
    for controller in controllers:
        first = [mount for mount in mounts if mount.version == 1 and controller in mount.controllers]
        if first and controller in own:
            parents[_folder_of(first[0], own[controller])] = None
        else:
            on_second.append(controller)
    if on_second:
        second = [mount for mount in mounts if mount.version == 2]
        if not second:
            raise UnsupportedError(f"no cgroup with {', '.join(on_second)} is mounted; see cgroups(7)")
        parents[find_delegating(second[0].point, _folder_of(second[0], own.get("", "/")), on_second)] = None
    return list(parents)


def _folder_of(mount: Mount, path: str) -> Path:
    # In a container the root of the mount is often the container's own group.
    inner = os.path.relpath(path, mount.root)
    return mount.point if inner.startswith("..") else mount.point / inner


def find_delegating(top: Path, own: Path, controllers: Sequence[str]) -> Path:
    """Return the nearest group of version 2, from `own` up to `top`, whose children have all controllers."""
    wanted = set(controllers)
    for folder in (own, *own.parents):
        if wanted <= _words(folder / "cgroup.subtree_control"):
            return folder
        if folder == top:
            break
    missing = wanted - _words(top / "cgroup.controllers")
    if missing:
        raise UnsupportedError(
            f"this kernel has no {', '.join(sorted(missing))} cgroup; on Raspberry Pi OS add "
            "`cgroup_enable=memory` to /boot/firmware/cmdline.txt and restart, or leave that limit away"
        )
    words = " ".join(f"+{name}" for name in sorted(wanted))
    raise UnsupportedError(
        f"no cgroup above this process gives {', '.join(sorted(wanted))} to its children; as root: "
        f"echo '{words}' > {top / 'cgroup.subtree_control'} (a container: start it with --privileged --cgroupns=host)"
    )


def _words(file: Path) -> set[str]:
    try:
        return set(file.read_text(encoding="ascii").split())
    except OSError:
        return set()


def quota_us(cpu: float) -> tuple[int, int]:
    """Return quota and period for a share of the processor, in microseconds."""
    period = max(PERIOD_US, math.ceil(_MIN_QUOTA_US / cpu))
    return max(_MIN_QUOTA_US, round(cpu * period)), period


def add_groups(folders: Sequence[Path], limits: Limits) -> None:
    """Make the groups of one host, one a hierarchy; raises UnsupportedError when a limit cannot be held."""
    try:
        for folder in folders:
            folder.mkdir()
        if limits.cpu is not None:
            _limit_cpu(folders, limits.cpu)
        if limits.memory_bytes is not None:
            size = str(limits.memory_bytes)
            if not _write(folders, "memory.max", size):
                _write(folders, "memory.limit_in_bytes", size, "a kernel with CONFIG_MEMCG")
            # A device that is full kills; it does not use this machine's swap.
            _write(folders, "memory.swap.max", "0")
            _write(folders, "memory.memsw.limit_in_bytes", size)
    except OSError as error:
        raise refused(f"cgroups {', '.join(map(str, folders))}", error) from None


def limit_cpu(folders: Sequence[Path], cpu: float) -> None:
    """Give groups that exist another share of the processor; raises UnsupportedError when it cannot be held."""
    try:
        _limit_cpu(folders, cpu)
    except OSError as error:
        raise refused(f"cgroups {', '.join(map(str, folders))}", error) from None


def _limit_cpu(folders: Sequence[Path], cpu: float) -> None:
    quota, period = quota_us(cpu)
    if _write(folders, "cpu.max", f"{quota} {period}"):
        return
    # Version 1 refuses a period that makes the present quota too small or too large for the parent's.
    _write(folders, "cpu.cfs_quota_us", "-1", "a kernel with CONFIG_CFS_BANDWIDTH")
    _write(folders, "cpu.cfs_period_us", str(period))
    _write(folders, "cpu.cfs_quota_us", str(quota))


def add_top(folder: Path, controllers: Sequence[str]) -> None:
    """Make the group of a whole test bed; in version 2 it must hand its controllers on."""
    try:
        folder.mkdir()
        _write([folder], "cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))
    except OSError as error:
        raise refused(f"cgroup {folder}", error) from None


def _write(folders: Sequence[Path], name: str, value: str, need: str | None = None) -> bool:
    """Write a setting where a folder has it; return whether one had, raise UnsupportedError where one is needed."""
    having = [folder / name for folder in folders if (folder / name).exists()]
    for path in having:
        path.write_text(value, encoding="ascii")
    if need and not having:
        raise UnsupportedError(f"no {name} in {', '.join(map(str, folders))}; this limit needs {need}")
    return bool(having)


def attach(folders: Iterable[Path], pid: int) -> None:
    """Put a process into groups, one of each hierarchy; raises NodeError when they have gone."""
    for folder in folders:
        try:
            (folder / _PROCS).write_text(str(pid), encoding="ascii")
        except OSError as error:
            raise NodeError(f"cannot put process {pid} into {folder}: {error.strerror}; has the bed ended?") from None


def pids_of(folder: Path) -> list[int]:
    """Return the processes of a group; none where it has gone."""
    try:
        return [int(word) for word in (folder / _PROCS).read_text(encoding="ascii").split()]
    except OSError:
        return []


def kill(pids: Iterable[int]) -> None:
    """Kill processes; 0 stands for one of another pid namespace, and must not become our own process group."""
    for pid in filter(None, pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove(folders: Iterable[Path]) -> None:
    """Kill whatever runs in groups and remove them, children before parents; raises NodeError when one stays."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    for folder in folders:
        while not _removed(folder):
            kill(pids_of(folder))
            if time.monotonic() > deadline:
                raise NodeError(f"cgroup {folder} stays busy with processes {pids_of(folder)}; end them, then clean")
            select.select([], [], [], 0.01)  # the kernel says nothing when the last process has gone


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise NodeError(f"cannot remove cgroup {folder}: {error.strerror}") from None
        return False
    return True
