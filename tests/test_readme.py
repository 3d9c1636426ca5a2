"""The commands of README and of the pages that tell how to do something work as they stand there.

Every block marked ```bash runs as one script in an empty folder of its own. What runs this test, or needs
root, a network or another machine, is marked ```sh instead: those blocks are only for reading. The tutorial is one
script: a block that starts a process for good is a terminal of its own.
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
from har_edge.config.catalog import find_model
from har_edge.tflite.model import read_model
from har_edge.tflite.split.program import split_model
from har_edge.tflite.split.spec import parse_split

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial" / "three-pis.md"
GUIDES = [README, TUTORIAL, *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
ENDLESS = re.compile(r"har-edge (broker|node|coordinator|watch) ")


def blocks(page: Path, kind: str) -> list[str]:
    """Return the blocks of a kind on a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


BLOCKS = [(page, number) for page in GUIDES if page != TUTORIAL for number in range(len(blocks(page, "bash")))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(script: str, folder: Path, name: str, *, recordings: bool = True) -> str:
    """Run a script in a folder as one group of processes, without `recordings` on synthetic data; return its output."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin"
    environment = os.environ | {"PATH": path, "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder)}
    if not recordings:
        environment.pop("HAR_EDGE_DATA", None)
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    # Output goes to a file, and the group is ended by us: what a block leaves in the background must not hold the test.
    log = folder / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script.replace("1883", str(free_port()))],
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
    said = log.read_text(encoding="utf-8")
    assert code == 0, said
    return said


def with_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
@pytest.mark.parametrize(("page", "number"), BLOCKS, ids=[f"{page.stem}-{number}" for page, number in BLOCKS])
def test_block_runs(page: Path, number: int, tmp_path: Path) -> None:
    run(blocks(page, "bash")[number], tmp_path, "block")


WAIT_FOR = {"broker": "grep -q listens broker.out", "coordinator": "grep -q 'probe came through' coordinator.out"}


def rehearsal() -> str:
    """Return the tutorial as one script: its machines are this one, and pi-3 dies while the sensor sends again."""
    lines = ['pause() { for _ in $(seq 100); do "$@" && return; sleep 0.3; done; return 1; }', "declare -A pid"]
    for block in blocks(TUTORIAL, "bash"):
        command = block.strip().replace("box", "127.0.0.1").replace("--host 0.0.0.0", "--directory $PWD/broker")
        if ENDLESS.match(command):
            name = command.partition("--name ")[2] or command.split()[1]
            lines += [f"{command} > {name}.out 2>&1 &", f"pid[{name}]=$!"]
            lines += [f"pause {WAIT_FOR[name]}"] if name in WAIT_FOR else []
        else:
            lines.append(command)
    at = max(index for index, line in enumerate(lines) if line.startswith("har-edge sensor"))
    lines[at : at + 1] = [f"{lines[at]} &", "again=$!", "sleep 3", "kill -9 ${pid[pi-3]}", "wait $again"]
    return "\n".join([*lines, "pause grep -q 'goes from pi-3' coordinator.out", "cat coordinator.out"])


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
def test_the_tutorial_on_one_machine(tmp_path: Path) -> None:
    said = run(rehearsal(), tmp_path, "tutorial", recordings=False)
    assert said.count("done: 120 windows in 360 messages") == 2, said
    assert "ready: a probe window went through" in said and "pi-3 is lost" in said, said


def test_the_readme_is_short_and_shows_what_the_demo_prints() -> None:
    text = README.read_text(encoding="utf-8")
    shown, classes = blocks(README, "text")
    assert len(text.splitlines()) < 150 and "make demo" in text and "make test" in text
    labels = {line.split()[0] for line in shown.splitlines() if re.match(r"[a-z]+ {2,}\S", line)}
    assert labels >= {"data", "broker", "model", "reducer", "windows", "accuracy", "bytes", "latency", "memory", "time"}
    assert "synthetic data" in shown and "0 lost, 0 doubled" in shown
    # The program is an example, which a test of its own runs.
    (program,) = blocks(README, "python")
    assert program == (ROOT / "examples" / "local_cluster.py").read_text(encoding="utf-8").partition('"""\n\n')[2]
    assert re.fullmatch(r"(subject7 \d [a-z ]+\n)+", classes)


def test_there_are_blocks_and_they_show_every_command() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in GUIDES)
    missing = [command for command in COMMANDS if f"har-edge {command}" not in text]
    assert len(BLOCKS) >= 4 and missing == []


def test_every_documented_option_exists() -> None:
    helps = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("cli/help/*.txt"))
    scripts = [block for page in GUIDES for kind in ("bash", "sh") for block in blocks(page, kind)]
    lines = [line for block in scripts for line in block.splitlines() if line.startswith("har-edge")]
    unknown = {option for line in lines for option in re.findall(r"--[a-z-]+", line) if option not in helps}
    assert len(lines) >= 20 and unknown == set()


def test_every_extra_is_on_the_page_that_says_how_to_install() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(
        r"^(\w+) = \[", project.partition("[project.optional-dependencies]")[2].partition("\n[")[0], re.M
    )
    page = (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
    table = page.partition("| extra |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {*extras} - {"broker", "test"}


def test_every_split_on_the_page_of_fixed_slices_fits_the_model_that_it_is_for() -> None:
    page = (ROOT / "docs" / "how-to" / "fixed-slices.md").read_text(encoding="utf-8")
    model = read_model(find_model("int8").path)
    splits = set(re.findall(r"[`\"]((?:rows|parity|whole):\d+-\d+[^`\"]*)[`\"]", page))
    assert len(splits) >= 4
    for text in sorted(splits):
        split_model(model, parse_split(text, model))
