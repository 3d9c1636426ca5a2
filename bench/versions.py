"""Run older and newer nodes together on one Mosquitto: which of them answer, and what an old one says to what is new.

    python bench/versions.py --old /path/to/old/venv/bin/har-edge [--windows 40]

The old command is an installed har_edge of another state; this one is the new. Folders are cut by the new one: a model
with wire version 1, and with 3. Each line runs three stages, a sensor and a watcher, and counts answers; an old stage
that does not know wire 3 is to refuse it. Answers are compared with those of new nodes alone.

Then coordinators deploy the model in three stages on four nodes of either version, and two sensors follow the plan.
While windows flow, a node that runs a stage is killed, and then the coordinator, which the other version replaces.

The exit code is 1 where a window is missing, an answer differs, the refusal is not clear, or a deployment does not get
over the loss of a node or of its coordinator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from har_edge.cluster.cluster import Cluster
from har_edge.cluster.processes import PROGRAM, Command, Processes, spawn_here
from har_edge.config.catalog import find_model
from har_edge.config.pipeline import load_pipeline
from har_edge.config.pipeline_config import BrokerConfig
from har_edge.data.locate import find_data
from har_edge.errors import NodeError
from har_edge.mqtt.address import Address
from har_edge.mqtt.broker.launcher import start_mosquitto
from har_edge.protocol.status import State
from har_edge.protocol.topics import COORDINATOR
from har_edge.resources import find_folder
from har_edge.runtime.slicing import prepare

NEW = [sys.executable, "-m", "har_edge.cli.main"]
CUTS = (4, 9)
READY_S, END_S = 30.0, 180.0
# A stage that has not ended by then runs.
RUNS_S = 10.0
# Who runs the stages, the sensor and the watcher.
TEAMS = {
    "all new": ("new", "new", "new", "new", "new"),
    "all old": ("old", "old", "old", "old", "old"),
    "new, old, new; old sensor": ("new", "old", "new", "old", "new"),
    "old, new, old; new sensor": ("old", "new", "old", "new", "new"),
    "old stages, new sensor": ("old", "old", "old", "new", "new"),
    "new stages, old sensor": ("new", "new", "new", "old", "old"),
}
# Who is the coordinator, the nodes and the sensors of a deployment; of the coordinator's successor it is the other one.
DEPLOYED = {
    "all new": ("new", "new new new new", "new new"),
    "new coordinator, mixed nodes": ("new", "old new old new", "old new"),
    "old coordinator, mixed nodes": ("old", "new old new old", "new old"),
    "new coordinator, old nodes": ("new", "old old old old", "old old"),
    "old coordinator, new nodes": ("old", "new new new new", "new new"),
}
OTHER = {"new": "old", "old": "new"}
SUBJECTS = (7, 8)
SPEED = "10"  # times as fast as it was recorded: four windows a second of each stream
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
            known = reads(commands["old"], folder / "wire-3")
            for wire, teams in ((1, TEAMS), (3, TEAMS if known else {"all new": TEAMS["all new"]})):
                for who, team in teams.items():
                    answers = run_team([commands[one] for one in team], folder / f"wire-{wire}", args.windows)
                    expected = expected or answers
                    same = answers == expected and len(answers) == 2 * args.windows
                    wrong += not same
                    verdict = "as expected" if same else "NOT AS EXPECTED"
                    print(
                        f"wire {wire}, {who:30}{len(answers):5} of {2 * args.windows} answered, {verdict}", flush=True
                    )
            assert expected is not None
            for who in DEPLOYED:
                wrong += not run_deployment(who, commands, folder, broker.address, args.windows, expected)
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
        where, subjects = ["--data", str(data)] if data else [], ",".join(map(str, SUBJECTS))
        words = [*where, "--subjects", subjects, "--speed", "max", "--windows", str(windows)]
        sending = start([*sensor, "sensor", *config, *words])
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


@dataclass(slots=True)
class Deployment:
    """A deployment on nodes of both versions: what runs which version, and the answers so far."""

    cluster: Cluster
    version: dict[str, str]
    answers: Answers = field(default_factory=dict)

    def until(self, done: Callable[[], object], what: str) -> None:
        """Take answers until something holds; raises NodeError, with the end of every log, when that takes too long."""
        deadline = time.monotonic() + END_S
        while not done():
            for one in self.cluster.poll():
                self.answers[one.result.stream, one.result.seq] = one.result.label, one.result.confidence
            if time.monotonic() > deadline:
                raise NodeError(f"{what} after {END_S:.0f} s\n{self.cluster.processes.last_lines()}")

    def is_settled_without(self, victim: str) -> bool:
        """Return whether every stage runs, none of them on a node."""
        deployment = self.cluster.view.deployment
        current = deployment.current if deployment else None
        return current is not None and not current.of(victim) and self.cluster.view.is_settled()

    def run(self, windows: int) -> None:
        """Deploy, send windows, kill a node that runs a stage, and let the other version be the coordinator."""
        cluster, view, model = self.cluster, self.cluster.view, find_model("int8").path.resolve()
        cluster.start_coordinator(model, len(CUTS) + 1)
        for name in (one for one in self.version if one.startswith("node-")):
            cluster.start_node(name)
        self.until(view.is_settled, "the model is not deployed")
        data = find_data(None)
        words = ["--speed", SPEED, "--windows", str(windows), *(["--data", str(data.resolve())] if data else [])]
        sensors = [name for name in self.version if name.startswith("sensor-")]
        for name in sensors:
            cluster.start(name, "sensor", "--name", name, "--subjects", name.removeprefix("sensor-"), *words)
        self.until(lambda: len(self.answers) >= windows // 2, "too few answers came")
        deployment = view.deployment
        assert deployment is not None and deployment.current is not None
        victim = deployment.current.placements[1].node
        cluster.kill(victim)
        self.until(lambda: self.is_settled_without(victim), f"nobody took over the stage of {victim}")
        cluster.kill(COORDINATOR)
        self.version[COORDINATOR] = OTHER[self.version[COORDINATOR]]
        view.forget(COORDINATOR)
        cluster.start_coordinator(model, len(CUTS) + 1)
        self.until(lambda: not cluster.processes.alive(sensors), "the sensors did not end")
        self.until(lambda: view.state(COORDINATOR) is State.READY, "the next coordinator was not ready")
        self.until(lambda: self.is_settled_without(victim), "not every stage ran at the end")


def run_deployment(
    who: str, commands: Mapping[str, list[str]], folder: Path, address: Address, windows: int, expected: Answers
) -> bool:
    """Return whether a deployment of both versions answers every window, although a node and the coordinator die."""
    coordinator, nodes, sensors = DEPLOYED[who]
    version = {COORDINATOR: coordinator}
    version |= {f"node-{number}": one for number, one in enumerate(nodes.split(), 1)}
    version |= {f"sensor-{subject}": one for subject, one in zip(SUBJECTS, sensors.split(), strict=True)}

    def spawn(name: str, command: Command) -> subprocess.Popen[bytes]:
        words = [*commands[version[name]], *command.words[len(PROGRAM) :]]
        return spawn_here(name, replace(command, words=words, folder=Path(tempfile.gettempdir())))

    own = folder / who.replace(", ", "-").replace(" ", "-")
    own.mkdir()
    pipeline = load_pipeline(folder / "wire-1")
    pipeline = replace(pipeline, config=msgspec.structs.replace(pipeline.config, name=own.name))
    problem = ""
    with Cluster(pipeline, address, folder=own, deployed=True, processes=Processes(spawn)) as cluster:
        deployment = Deployment(cluster, version)
        try:
            deployment.run(windows)
        except NodeError as error:
            problem = str(error)
    answers = deployment.answers
    same = answers == expected and not problem
    print(
        f"deployed, {who:28}{len(answers):5} of {len(expected)} answered, "
        f"{'as expected' if same else 'NOT AS EXPECTED'}\n{problem}".rstrip(),
        flush=True,
    )
    return same


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a node outside the source tree, so that each command runs its own har_edge."""
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tempfile.gettempdir()
    )


def reads(old: list[str], folder: Path) -> bool:
    """Return whether an old stage runs a folder of wire version 3; raises NodeError where it neither runs nor says why.

    One that does not know the version must end at once, and say what is the matter.
    """
    process = subprocess.Popen(
        [*old, "stage", "--config", str(folder), "--index", "0", "--forget"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tempfile.gettempdir(),
    )
    try:
        _, errors = process.communicate(timeout=RUNS_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate(timeout=END_S)
        print("wire 3, an old stage: it runs")
        return True
    said = " ".join(errors.split())
    print(f"wire 3, an old stage: exit code {process.returncode}: {said}")
    if process.returncode == 0 or "manifest" not in said or "Traceback" in said:
        raise NodeError("an old stage does not say clearly that it cannot run a folder of wire version 3")
    return False


if __name__ == "__main__":
    sys.exit(main())
