"""Check that this machine has everything that an emulation needs, and say what to do if it has not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from har_edge.errors import NodeError
from har_edge.mqtt.broker.launcher import find_mosquitto

_TOOLS = ("ip", "tc")
_TIMEOUT_S = 30.0
# Outputs of the tools when the kernel or a container refuses, and their meaning.
_ADVICE = (
    (
        "qdisc kind is unknown",
        "this kernel has no tbf queueing discipline (CONFIG_NET_SCH_TBF); `modprobe sch_tbf`, "
        "on Ubuntu from the package linux-modules-extra",
    ),
    ("device type", "this kernel lacks veth or bridge (CONFIG_VETH, CONFIG_BRIDGE); `modprobe veth bridge`"),
    ("Operation not supported", "this kernel lacks network namespaces, veth or bridge (CONFIG_NET_NS, CONFIG_VETH)"),
    ("not permitted", "namespaces are forbidden here; run on the machine itself, or in a container with --privileged"),
    ("Permission denied", "namespaces are forbidden here; run on the machine itself, or in a container --privileged"),
)


class UnsupportedError(NodeError):
    """This machine cannot emulate devices; the text says what is missing and how to get it."""


def find_tool(name: str) -> str | None:
    """Return the path of a tool; the sbin folders count even where PATH lacks them."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def missing_tools() -> list[str]:
    """Return what must be installed, each with the command that does it."""
    missing = [f"`{name}`: apt-get install iproute2" for name in _TOOLS if find_tool(name) is None]
    return missing + (["Mosquitto: apt-get install mosquitto"] if find_mosquitto() is None else [])


def check_machine() -> None:
    """Raise UnsupportedError, with everything that is missing, where no test bed can be made."""
    missing = missing_tools() if sys.platform == "linux" else [f"Linux; this is {sys.platform}"]
    if sys.platform == "linux" and os.geteuid() != 0:
        missing.insert(0, "root, who alone may make network namespaces and cgroups: sudo")
    if missing:
        raise UnsupportedError(f"an emulated device needs {'; '.join(missing)}")


def call(tool: str, *arguments: str) -> str:
    """Run ip or tc and return what it prints; raises UnsupportedError with its words and what they mean."""
    path = find_tool(tool)
    if path is None:
        raise UnsupportedError(f"an emulated device needs `{tool}`: apt-get install iproute2")
    try:
        # A session of its own: Ctrl-C in the terminal is for us, and must not leave half of a bed.
        answer = subprocess.run(
            [path, *arguments], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedError(f"`{tool} {' '.join(arguments)}` did not end within {_TIMEOUT_S:.0f} s") from None
    if answer.returncode == 0:
        return answer.stdout
    said = " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"
    advice = next((f"; {text}" for words, text in _ADVICE if words in said), "")
    raise UnsupportedError(f"`{tool} {' '.join(arguments)}` failed: {said}{advice}")


def refused(what: str | Path, error: OSError) -> UnsupportedError:
    """Return the error for a call of the kernel that it refused."""
    return UnsupportedError(
        f"{what}: {error.strerror or error}; in a container this needs --privileged, elsewhere root and cgroups that "
        "may be written"
    )
