"""What a machine lacks is said, with how to get it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from har_edge.emulation import machine
from har_edge.emulation.machine import UnsupportedError, call, check_machine


def test_everything_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(machine, "find_tool", lambda name: None)
    monkeypatch.setattr(machine, "find_mosquitto", lambda: None)
    with pytest.raises(UnsupportedError) as error:
        check_machine()
    assert str(error.value) == (
        "an emulated device needs root, who alone may make network namespaces and cgroups: sudo; "
        "`ip`: apt-get install iproute2; `tc`: apt-get install iproute2; Mosquitto: apt-get install mosquitto"
    )


def test_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UnsupportedError, match="an emulated device needs Linux; this is darwin"):
        check_machine()


def test_a_tool_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_tool", lambda name: None)
    with pytest.raises(UnsupportedError, match="needs `tc`: apt-get install iproute2"):
        call("tc", "qdisc")


# What iproute2 6.1 says on a kernel without the feature, and in a container without the right.
@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Error: Specified qdisc kind is unknown.", "`modprobe sch_tbf`"),
        ("Error: Unknown device type.", "`modprobe veth bridge`"),
        ("mount --make-shared /run/netns failed: Operation not permitted", "namespaces are forbidden here"),
        ("mkdir /run/netns failed: Permission denied", "namespaces are forbidden here"),
    ],
)
def test_a_refusal_comes_with_what_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, advice: str
) -> None:
    tool = tmp_path / "ip"
    tool.write_text(f"#!{sys.executable}\nimport sys\nsys.exit({said!r})\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match=advice) as error:
        call("ip", "netns", "add", "x")
    assert str(error.value).startswith(f"`ip netns add x` failed: {said}; ")
