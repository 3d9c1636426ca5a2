"""Finding cgroups of both versions, and what is written into them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.emulation import cgroups
from har_edge.emulation.cgroups import (
    add_groups,
    add_top,
    find_delegating,
    find_parents,
    limit_cpu,
    quota_us,
    read_mounts,
    read_own,
)
from har_edge.emulation.limits import Limits
from har_edge.emulation.machine import UnsupportedError

FIRST = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/ab /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
SECOND = "30 23 0:26 / {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def answer_proc(monkeypatch: pytest.MonkeyPatch, mountinfo: str, cgroup: str) -> None:
    read = Path.read_text
    texts = {"/proc/self/mountinfo": mountinfo, "/proc/self/cgroup": cgroup}
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: texts.get(str(path)) or read(path, *a, **k))


def make_group(folder: Path, controllers: str, children: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.controllers").write_text(controllers)
    (folder / "cgroup.subtree_control").write_text(children)
    return folder


def test_mounts_and_own_groups_are_read() -> None:
    mounts = read_mounts(FIRST)
    assert [(mount.version, mount.root, str(mount.point)) for mount in mounts] == [
        (1, "/", "/sys/fs/cgroup/cpu,cpuacct"),
        (1, "/docker/ab", "/sys/fs/cgroup/memory"),
        (2, "/", "/sys/fs/cgroup/unified"),
    ]
    assert read_own("4:memory:/docker/ab\n1:cpu,cpuacct:/\n0::/x:y\n") == {
        "memory": "/docker/ab",
        "cpu": "/",
        "cpuacct": "/",
        "": "/x:y",
    }


def test_version_1_is_used_below_our_own_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_proc(monkeypatch, FIRST, "4:memory:/docker/ab/job\n1:cpu,cpuacct:/\n0::/\n")
    assert find_parents(["cpu", "memory"]) == [Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup/memory/job")]


def test_version_2_is_used_below_the_nearest_group_that_delegates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_group(tmp_path, "cpu memory pids", "cpu memory pids")
    make_group(tmp_path / "user", "cpu memory", "cpu memory")
    make_group(tmp_path / "user/session", "memory", "memory")
    answer_proc(monkeypatch, SECOND.format(point=tmp_path), "0::/user/session\n")
    assert find_parents(["cpu", "memory"]) == [tmp_path / "user"]
    assert find_parents(["memory"]) == [tmp_path / "user/session"]


def test_a_controller_that_the_kernel_lacks_is_said(tmp_path: Path) -> None:
    top = make_group(tmp_path, "cpu pids", "cpu pids")
    with pytest.raises(UnsupportedError, match=r"no memory cgroup; on Raspberry Pi OS add `cgroup_enable=memory`"):
        find_delegating(top, top, ["cpu", "memory"])


def test_a_controller_that_nobody_delegates_is_said(tmp_path: Path) -> None:
    top = make_group(tmp_path, "cpu memory", "")
    with pytest.raises(UnsupportedError, match=r"as root: echo '\+cpu \+memory' > .*/cgroup.subtree_control"):
        find_delegating(top, make_group(tmp_path / "own", "", ""), ["cpu", "memory"])


def test_no_cgroup_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_proc(monkeypatch, "1 0 0:1 / / rw - ext4 /dev/vda rw\n", "0::/\n")
    with pytest.raises(UnsupportedError, match="no cgroup with cpu is mounted"):
        find_parents(["cpu"])


@given(st.floats(0.01, 64))
def test_quotas_are_ones_that_the_kernel_takes(cpu: float) -> None:
    quota, period = quota_us(cpu)
    assert 1000 <= period <= 1_000_000 and quota >= 1000
    assert quota / period == pytest.approx(cpu, rel=0.01)


KERNEL = {
    1: {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1", "memory.limit_in_bytes": "9" * 15},
    2: {"cpu.max": "max 100000", "memory.max": "max", "memory.swap.max": "max", "cgroup.subtree_control": ""},
}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A kernel of one version: whoever makes a folder finds its files there."""
    make = Path.mkdir

    def mkdir(path: Path, *args: object, **options: object) -> None:
        make(path)
        for name, value in KERNEL[request.param].items():
            (path / name).write_text(value)

    monkeypatch.setattr(cgroups.Path, "mkdir", mkdir)


LIMITS = Limits(cpu=0.2, memory_bytes=2**26)


@pytest.mark.parametrize("kernel", [2], indirect=True)
@pytest.mark.usefixtures("kernel")
def test_version_2_is_written(tmp_path: Path) -> None:
    add_top(tmp_path / "bed", ["cpu", "memory"])
    add_groups([tmp_path / "bed/device-1"], LIMITS)
    assert (tmp_path / "bed/cgroup.subtree_control").read_text() == "+cpu +memory"
    assert {name: (tmp_path / "bed/device-1" / name).read_text() for name in KERNEL[2]} == {
        "cpu.max": "2000 10000",
        "memory.max": "67108864",
        "memory.swap.max": "0",
        "cgroup.subtree_control": "",
    }


@pytest.mark.parametrize("kernel", [1], indirect=True)
@pytest.mark.usefixtures("kernel")
def test_version_1_is_written(tmp_path: Path) -> None:
    add_groups([tmp_path / "cpu", tmp_path / "memory"], LIMITS)
    assert (tmp_path / "cpu/cpu.cfs_period_us").read_text() == "10000"
    assert (tmp_path / "cpu/cpu.cfs_quota_us").read_text() == "2000"
    assert (tmp_path / "memory/memory.limit_in_bytes").read_text() == "67108864"


def test_a_limit_that_no_group_can_hold_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"no cpu.cfs_quota_us in .*; this limit needs a kernel with"):
        add_groups([tmp_path / "cpu"], Limits(cpu=0.2))
    with pytest.raises(UnsupportedError, match=r"no memory.limit_in_bytes in .*; this limit needs a kernel with"):
        add_groups([tmp_path / "memory"], Limits(memory_bytes=2**26))


def test_a_group_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"File exists; in a container this needs --privileged"):
        add_groups([tmp_path], Limits())


def test_what_another_pid_namespace_hides_is_never_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(cgroups.os, "kill", lambda pid, number: killed.append(pid))
    cgroups.kill([0, 7])
    assert killed == [7]


def test_a_device_gets_another_share_of_the_processor_while_it_runs(tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    (second / "cpu.max").write_text("1000 10000")
    limit_cpu([second], 0.02)
    assert (second / "cpu.max").read_text() == "1000 50000"
    first = tmp_path / "first"
    first.mkdir()
    for name, value in {"cpu.cfs_quota_us": "1000", "cpu.cfs_period_us": "10000"}.items():
        (first / name).write_text(value)
    limit_cpu([tmp_path / "memory", first], 0.5)
    assert (first / "cpu.cfs_quota_us").read_text() == "5000" and (first / "cpu.cfs_period_us").read_text() == "10000"
    with pytest.raises(UnsupportedError, match="CONFIG_CFS_BANDWIDTH"):
        limit_cpu([tmp_path / "memory"], 0.5)
