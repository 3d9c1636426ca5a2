"""An environment of its own with Flower, and a SuperLink with SuperNodes in it, as processes of a test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import har_edge

LOCK = Path(__file__).parents[2] / "locks/flower.txt"
# An environment that has Flower already; without it, pip makes one.
VARIABLE = "HAR_EDGE_FLOWER"


def make_environment(folder: Path) -> Path:
    """Return the folder of the programs of an environment with Flower by the lock file, and this har_edge.

    Skips, with what pip said, where pip gets no packages; in CI that fails.
    """
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]) / "bin"
    if sys.version_info < (3, 11):
        pytest.skip(f"Flower needs Python 3.11, this is {sys.version.split()[0]}")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    done = subprocess.run(
        [*pip, "--require-hashes", "--only-binary", ":all:", "-r", str(LOCK)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        problem = f"Flower cannot be installed: {done.stderr.strip().splitlines()[-1]}"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(f"{problem}; {VARIABLE} may name an environment that has it")
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "har_edge_under_test.pth").write_text(f"{Path(har_edge.__file__).resolve().parents[1]}\n")
    return folder / "bin"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass(frozen=True, slots=True)
class Federation:
    """A SuperLink with SuperNodes."""

    programs: Path
    folder: Path
    environment: dict[str, str]
    nodes: list[int] = field(default_factory=list)

    def run(self, app: Path, config: dict[str, object]) -> str:
        """Run an app to its end; return its log. `flwr run` exits with 0 also where the app failed."""
        options = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
        done = subprocess.run(
            [str(self.programs / "flwr"), "run", str(app), "test", "--stream", "--run-config", options],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        return done.stdout + done.stderr

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")


@contextmanager
def federation(
    programs: Path, folder: Path, nodes: Sequence[str], through: Callable[[int], int] = lambda port: port
) -> Iterator[Federation]:
    """Start a SuperLink, and a SuperNode for each configuration; stop them at the end.

    The nodes connect to the port that `through` makes of the SuperLink's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    link_port, *ports = free_ports(1 + len(nodes))
    address = f"127.0.0.1:{link_port}"
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "{address}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    environment.pop("PYTHONPATH", None)
    here = Federation(programs, folder, environment)
    link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
    started = [_start(here, "link", [*link, "--host", "127.0.0.1", "--port", str(link_port)])]
    try:
        _wait(here, "link", started[0], "Application startup complete", 1)
        reached = f"127.0.0.1:{through(link_port)}"
        for number, (config, port) in enumerate(zip(nodes, ports, strict=True)):
            node = [
                "flower-supernode",
                "--insecure",
                "--superlink",
                reached,
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
            ]
            started.append(_start(here, f"node{number}", [*node, "--node-config", config]))
            here.nodes.append(started[-1].pid)
        _wait(here, "link", started[0], "[Fleet.ActivateNode]", len(nodes))
        yield here
    finally:
        for process in reversed(started):
            _stop(process)


def _start(here: Federation, name: str, command: list[str]) -> subprocess.Popen[bytes]:
    with (here.folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [str(here.programs / command[0]), *command[1:]],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=here.environment,
            cwd=here.folder,
            start_new_session=True,
        )


def _wait(here: Federation, name: str, process: subprocess.Popen[bytes], text: str, count: int) -> None:
    deadline = time.monotonic() + 120
    while here.log(name).count(text) < count:
        assert process.poll() is None and time.monotonic() < deadline, f"{name} says:\n{here.log(name)[-2000:]}"
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started: they share its session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
