"""Run older and newer nodes together on one Mosquitto: which of them answer, and what an old one says to what is new.

    python bench/versions.py --old /path/to/old/venv/bin/har-edge [--windows 40]

The old command is an installed har_edge of another state; this one is the new. Folders are cut by the new one: a model
with wire version 1, and with 3. Each line runs three stages, a sensor and a watcher, and counts answers; with wire 3
the old stage is to refuse. Answers are compared with those of new nodes alone. The exit code is 1 where a window is
missing, an answer differs, or the refusal is not clear.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from har_edge.config.catalog import find_model
from har_edge.config.pipeline import BrokerConfig
from har_edge.data.locate import find_data
from har_edge.mqtt.broker.launcher import start_mosquitto
from har_edge.resources import find_folder
from har_edge.runtime.slicing import prepare

NEW = [sys.executable, "-m", "har_edge.cli.main"]
CUTS = (4, 9)
READY_S, END_S = 30.0, 180.0
# Who runs the stages, the sensor and the watcher.
TEAMS = {
    "all new": ("new", "new", "new", "new", "new"),
    "all old": ("old", "old", "old", "old", "old"),
    "new, old, new; old sensor": ("new", "old", "new", "old", "new"),
    "old, new, old; new sensor": ("old", "new", "old", "new", "new"),
    "old stages, new sensor": ("old", "old", "old", "new", "new"),
    "new stages, old sensor": ("new", "new", "new", "old", "old"),
}
Answers = dict[tuple[str, int], tuple[str, float]]


def main() -> int:
    """Run every team; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="the har-edge command of another state")
    parser.add_argument("--windows", type=int, default=40)
    args = parser.parse_args()
    commands = {"new": NEW, "old": [str(args.old)]}
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="har-edge-versions-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with start_mosquitto(find_folder("brokers") / "mosquitto.conf", folder / "broker") as broker:
            found = find_model("int8")
            assert found.entry is not None
            for wire in (1, 3):
                prepare(
                    found.path,
                    found.entry.task,
                    folder / f"wire-{wire}",
                    stages=3,
                    cuts=CUTS,
                    name=f"wire{wire}",
                    broker=BrokerConfig(url=broker.address.url),
                    wire=wire,
                )
            print(
                f"{broker.description}, {found.path.name} cut at {CUTS}, {args.windows} windows of each of 2 subjects"
            )
            expected: Answers | None = None
            for wire, teams in ((1, TEAMS), (3, {"all new": TEAMS["all new"]})):
                for who, team in teams.items():
                    answers = run_team([commands[one] for one in team], folder / f"wire-{wire}", args.windows)
                    expected = expected or answers
                    same = answers == expected and len(answers) == 2 * args.windows
                    wrong += not same
                    verdict = "as expected" if same else "NOT AS EXPECTED"
                    print(
                        f"wire {wire}, {who:30}{len(answers):5} of {2 * args.windows} answered, {verdict}", flush=True
                    )
            wrong += not refuses(commands["old"], folder / "wire-3")
    return 1 if wrong else 0


def run_team(commands: list[list[str]], folder: Path, windows: int) -> Answers:
    """Return what the watcher heard."""
    config = ["--config", str(folder)]
    *stages, sensor, watcher = commands
    processes: list[subprocess.Popen[str]] = []
    try:
        watching = start([*watcher, "watch", *config, "--json", "--windows", str(2 * windows)])
        processes.append(watching)
        for index, command in reversed(list(enumerate(stages))):
            process = start([*command, "stage", *config, "--index", str(index), "--forget"])
            processes.append(process)
            assert process.stdout is not None
            process.stdout.readline()  # it says that it is connected
        time.sleep(1.0)
        data = find_data(None)
        where = ["--data", str(data)] if data else []
        sending = start(
            [*sensor, "sensor", *config, *where, "--subjects", "7,8", "--speed", "max", "--windows", str(windows)]
        )
        processes.append(sending)
        sending.wait(END_S)
        try:
            text, _ = watching.communicate(timeout=READY_S)
        except subprocess.TimeoutExpired:
            watching.terminate()
            text, _ = watching.communicate()
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(END_S)
    answers = {}
    for line in filter(lambda line: line.startswith("{"), text.splitlines()):
        one = json.loads(line)
        answers[one["stream"], one["seq"]] = one["label"], one["confidence"]
    return answers


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a node outside the source tree, so that each command runs its own har_edge."""
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tempfile.gettempdir()
    )


def refuses(old: list[str], folder: Path) -> bool:
    """Return whether an old stage ends at once, and says what is the matter with a folder of wire version 3."""
    done = subprocess.run(
        [*old, "stage", "--config", str(folder), "--index", "0"],
        capture_output=True,
        text=True,
        timeout=END_S,
        cwd=tempfile.gettempdir(),
        check=False,
    )
    said = " ".join(done.stderr.split())
    print(f"wire 3, an old stage: exit code {done.returncode}: {said}")
    return done.returncode != 0 and "manifest" in said and "Traceback" not in said


if __name__ == "__main__":
    sys.exit(main())
