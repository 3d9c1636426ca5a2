"""The capabilities that a node reports of its device: machine, memory, cores, runtime, speed and link."""

from __future__ import annotations

import math
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from har_edge.errors import NodeError
from har_edge.inference.wheels import installed, missing, read_platform, wheel_machine
from har_edge.protocol.compression import known_packings
from har_edge.protocol.deployment import PROTOCOL
from har_edge.protocol.status import NodeCapabilities
from har_edge.resources import find_folder

if TYPE_CHECKING:
    from har_edge.inference.interpreter import Interpreter
    from har_edge.inference.loaded_slice import Runner
    from har_edge.mqtt.measure.link_benchmark import LinkEstimate

# A small convolutional network in float32, which every runtime and processor has quick kernels for.
REFERENCE = "har-decimate-q8-zlib-restore.tflite"
# Several periods of a control group's quota (100 ms each by default), so that it counts.
WARM_UP_S, MEASURE_S = 0.1, 0.5
_ROOT = Path("/")


def read_machine(root: Path = _ROOT) -> str:
    """Return what tells this host from others: Linux's number of this boot, elsewhere the network card's address.

    Devices whose storage was copied differ in it, processes and containers on one kernel do not.
    """
    boot = _read(root / "proc/sys/kernel/random/boot_id")
    return (boot or f"{uuid.getnode():012x}").replace("-", "")


def read_memory(root: Path = _ROOT) -> int:
    """Return the bytes of memory that processes here may take: the device's, or the least limit of a control group."""
    info = dict(line.split(":", 1) for line in _read(root / "proc/meminfo").splitlines() if ":" in line)
    total = int(info["MemTotal"].split()[0]) * 1024 if "MemTotal" in info else _pages()
    limits = [*_limits(root, "memory", "memory.max"), *_limits(root, "memory", "memory.limit_in_bytes")]
    return min([total, *(int(text) for text in limits if text.isdecimal())])


def read_cores(root: Path = _ROOT) -> int:
    """Return how many cores processes here may use: those of the affinity, at most the quota of a control group."""
    quotas = []
    for text in _limits(root, "cpu", "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.isdecimal():
            quotas.append(int(quota) / int(period))
    quota_texts, periods = _limits(root, "cpu", "cpu.cfs_quota_us"), _limits(root, "cpu", "cpu.cfs_period_us")
    for quota, period in zip(quota_texts, periods, strict=False):
        if quota.isdecimal() and period.isdecimal():
            quotas.append(int(quota) / int(period))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([usable, *(math.ceil(quota) for quota in quotas)]))


def read_runtime() -> str:
    """Return the name and version of the runtime that runs slices; NodeError where there is none."""
    found = installed()
    if found is None:
        raise NodeError(missing(read_platform(), "none is installed"))
    return found


def read_system() -> str:
    """Return the operating system, the machine that wheels are made for (not the kernel's), and Python's version."""
    return f"{platform.system()} {wheel_machine(read_platform())}, Python {platform.python_version()}"


def open_reference(delegate: str | None = None) -> Interpreter:
    """Return the reference network, loaded."""
    from har_edge.inference.interpreter import Delegate, Interpreter

    content = (find_folder("models") / REFERENCE).read_bytes()
    return Interpreter(content, delegate=Delegate(delegate or Delegate.XNNPACK))


def applied_delegate(loaded: Runner, delegate: str | None = None) -> str:
    """Return who computes on this device with what was asked for: "xnnpack" or "none", as `open_reference` has it.

    A slice may hold nothing that XNNPACK takes (a last softmax), or have sizes that come with its first window: that
    `loaded` has none of it says nothing of the device, and the reference network, which has what it takes, is asked.
    """
    found = loaded.delegate.value
    return found if found != "none" or delegate == "none" else open_reference(delegate).delegate.value


def measure_speed(
    *,
    clock: Callable[[], float] = time.perf_counter,
    warm_up_s: float = WARM_UP_S,
    measure_s: float = MEASURE_S,
    delegate: str | None = None,
) -> float:
    """Return how many times REFERENCE runs in a second with one thread, over a time in which quotas bite."""
    from har_edge.inference.sampling import sample

    interpreter = open_reference(delegate)
    values = sample(interpreter.inputs, np.random.default_rng(0))
    return count_runs(lambda: interpreter.run(values), clock, warm_up_s, measure_s)


def count_runs(run: Callable[[], object], clock: Callable[[], float], warm_up_s: float, measure_s: float) -> float:
    """Return runs a second.

    A run that ends late, since the quota was used up, counts for the part before the end. At least one is measured.
    """
    until = clock() + warm_up_s
    run()
    while clock() < until:
        run()
    began = now = clock()
    end, runs = began + measure_s, 0.0
    while now < end:
        before = now
        run()
        now = clock()
        runs += 1.0 if now <= end else (end - before) / (now - before)
    return runs / measure_s


def make_card(speed: float, link: LinkEstimate | None, delegate: str = "") -> NodeCapabilities:
    """Return what this device can do; `delegate` is who computed the reference network."""
    return NodeCapabilities(
        protocol=PROTOCOL,
        machine=read_machine(),
        system=read_system(),
        cores=read_cores(),
        memory_bytes=read_memory(),
        runtime=read_runtime(),
        speed=speed,
        link_bytes_per_s=link.bytes_per_s if link else None,
        round_trip_s=link.round_trip_s if link else None,
        delegate=delegate,
        packings=known_packings(),
        routes=True,
    )


def _pages() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits(root: Path, controller: str, name: str) -> list[str]:
    """Return what a file says in the control groups of this process, from its own up: cgroups(7), either version."""
    return [text for folder in _groups(root, controller) if (text := _read(folder / name))]


def _groups(root: Path, controller: str) -> Iterator[Path]:
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        tops = [mounts / controllers, mounts / controller] if controllers else [mounts, mounts / "unified"]
        top = next((one for one in tops if one.is_dir()), None)
        if top is None:
            continue
        own = top / path.lstrip("/")
        # In a container the mount often begins at the container's own group.
        for folder in (own, *own.parents) if own.is_dir() else (top,):
            yield folder
            if folder == top:
                break


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
