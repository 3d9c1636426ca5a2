"""The commands of the README work as they stand there.

Every block marked ```bash runs as one script, in order, in an empty folder. What runs this test, or needs root, a
network or another machine, is marked ```sh instead: those blocks are only for reading.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from har_edge.cli.main import COMMANDS

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.usefixtures("mosquitto")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number: int, folder: Path) -> None:
    script = BLOCKS[number].replace("1883", str(free_port()))
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin"
    environment = os.environ | {"PATH": path, "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder)}
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    # Output goes to a file, and the group is ended by us: what a block leaves in the background must not hold the test.
    log = folder / f"block-{number}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(120)
        finally:
            with_group(process.pid, signal.SIGTERM)
    assert code == 0, log.read_text()


def with_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def test_there_are_blocks_and_they_show_every_command() -> None:
    text = README.read_text(encoding="utf-8")
    missing = [command for command in COMMANDS if f"har-edge {command}" not in text]
    assert len(BLOCKS) >= 3 and missing == []


def test_every_documented_option_exists() -> None:
    helps = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("cli/help/*.txt"))
    lines = [line for block in BLOCKS for line in block.splitlines() if line.startswith("har-edge")]
    unknown = {option for line in lines for option in re.findall(r"--[a-z-]+", line) if option not in helps}
    assert lines and unknown == set()
