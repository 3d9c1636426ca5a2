"""Stages that stand still while the heartbeats of their nodes go on: how long is the gap, and is every window answered?

    python bench/hangs.py [--rounds 1] [--nodes 6] [--modes HUNG_RUN,HUNG,GHOST,WRONG] [--cold] [--logs FOLDER]

A private Mosquitto with brokers/mosquitto.conf, a coordinator, nodes and a sensor a source, each a process, as in
bench/faults.py. Nodes run a script of this bench around `har-edge`, which misbehaves as a file says:

HUNG_RUN: the thread of a stage hangs in a run of its slice, for good. HUNG: it hangs outside of a run. GHOST: the node
says that the stage runs, keeps its connection, and takes nothing. WRONG: what the slice gives has another shape.

Each is done to each stage in turn; the last stage gives results, which have no shape. The nodes have the slices in
their caches, unless --cold is given. `moved` is the time until the plan names another node, `gap` the longest time
between two results of a stream, without the usual spacing.

Exit codes: 1 when a window is lost, doubled or different, or a stage is not moved; else 2 when a gap is above 4 s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from har_edge.cluster.cluster import CACHE
from har_edge.data.locate import find_data
from har_edge.errors import NodeError
from har_edge.experiments.cluster import RecordedCluster
from har_edge.experiments.environment import Environment, local_environment
from har_edge.experiments.load import AnswerCheck, Load
from har_edge.experiments.reference import Reference, prepare_reference
from har_edge.protocol.topics import COORDINATOR

MODEL, STAGES, SUBJECTS = "int8", 3, ("subject7", "subject8")
HOP, SPEED = 25, 8.0
WANTED_S = 4.0
MOVED_S, CALM_S, PATIENCE_S = 30.0, 2.0, 60.0

# Wraps `har-edge`: its first argument is a folder, in which a file of a node's name says how the node misbehaves.
SCRIPT = """
import pathlib, sys, threading, time
import numpy as np
from har_edge.cli.main import main
from har_edge.inference.interpreter import Interpreter
from har_edge.runtime.stage.loop import StageLoop

folder = pathlib.Path(sys.argv.pop(1))
name = sys.argv[sys.argv.index("--name") + 1] if "--name" in sys.argv else ""
run, poll = Interpreter.run, StageLoop._poll

def mode():
    try:
        return (folder / name).read_text() if name and threading.current_thread().name.startswith("stage-") else ""
    except OSError:
        return ""

def hanging_run(interpreter, values):
    found = mode()
    while found == "HUNG_RUN":
        time.sleep(3600.0)
    made = run(interpreter, values)
    return {key: np.stack([one, one], -1) for key, one in made.items()} if found == "WRONG" else made

def hanging_poll(loop):
    while mode() == "HUNG":
        time.sleep(0.1)
    if mode() == "GHOST":
        time.sleep(0.05)
        return time.monotonic()
    return poll(loop)

Interpreter.run, StageLoop._poll = hanging_run, hanging_poll
sys.exit(main())
"""


class Misbehaviour(Enum):
    """A way to misbehave; the value is its name in the table."""

    HUNG_RUN = "hangs in a run"
    HUNG = "hangs outside of a run"
    GHOST = "says that it runs"
    WRONG = "gives wrong shapes"


@dataclass(frozen=True, slots=True)
class StandstillOutcome:
    """One misbehaviour of the node of one stage; `moved_s` until another node had the stage."""

    mode: Misbehaviour
    stage: int
    moved_s: float
    gap_s: float


@dataclass(slots=True)
class Standstills:
    """Lets nodes misbehave in a cluster under load."""

    cluster: RecordedCluster
    load: Load
    modes: Path
    nodes: Sequence[str]
    cold: bool = False
    outcomes: list[StandstillOutcome] = field(default_factory=list)

    def holder(self, stage: int) -> str:
        """Return which node runs a stage of the current generation."""
        deployment = self.cluster.recorder.deployment
        assert deployment is not None
        return deployment.holder(deployment.epoch, stage, 0) or ""

    def run(self, mode: Misbehaviour, stage: int) -> StandstillOutcome:
        """Let the node of a stage misbehave until the stage is moved and results flow; NodeError where they do not."""
        self.await_calm()
        victim = self.holder(stage)
        self._share_cached()
        began = time.monotonic()
        sign = self.modes / victim
        sign.write_text(mode.name)
        self.cluster.until(lambda: self.holder(stage) != victim, f"stage {stage} stays on {victim}", MOVED_S)
        moved_s = time.monotonic() - began
        self.cluster.until(self.load.is_flowing, "no results", PATIENCE_S)
        self.cluster.run_for(1.0)
        pauses = [self.cluster.recorder.longest_pause(one, began, time.monotonic()) for one in self.load.streams]
        sign.unlink()
        self.outcomes.append(StandstillOutcome(mode, stage, moved_s, max(0.0, max(pauses) - self.load.spacing_s)))
        return self.outcomes[-1]

    def _share_cached(self) -> None:
        """Copy the slices of the current generation into the caches of all nodes."""
        deployment = self.cluster.recorder.deployment
        assert deployment is not None and deployment.current is not None
        for stage, entry in enumerate(deployment.current.manifest.slices):
            for node in () if self.cold else self.nodes:
                if node != self.holder(stage):
                    self.cluster.copy_cached(node, entry.sha256, self.holder(stage))

    def await_calm(self) -> None:
        """Wait until results have flowed for a while, with enough of a round to come."""
        since = time.monotonic()

        def is_calm() -> bool:
            nonlocal since
            if not (self.load.left_s > 8.0 and self.load.is_flowing() and self.cluster.recorder.is_settled()):
                since = time.monotonic()
            return time.monotonic() - since > CALM_S

        self.cluster.until(is_calm, "the pipeline has not settled", 2 * PATIENCE_S)


@contextlib.contextmanager
def open_standstills(
    environment: Environment, folder: Path, reference: Reference, nodes: int, windows: int, *, cold: bool = False
) -> Iterator[Standstills]:
    """Start a coordinator, nodes and sensors that replay so many windows of each stream, again and again."""
    modes = folder / "modes"
    modes.mkdir(exist_ok=True)
    pipeline, program = reference.pipeline, (sys.executable, "-c", SCRIPT, str(modes))
    variables = {CACHE: str(folder / "caches" / "others")}
    if reference.data == "synthetic":  # sensors must not find real ones by themselves
        variables["HAR_EDGE_DATA"] = ""
    with RecordedCluster(pipeline, environment, folder, variables=variables, program=program) as cluster:
        coordinator = ["coordinator", "--model", str(reference.model), "--stages", str(STAGES)]
        cluster.start(*coordinator, name=COORDINATOR)
        names = [f"device-{number}" for number in range(1, nodes + 1)]
        for name in names:
            cluster.start_node(name)
        cluster.until(cluster.recorder.is_settled, "the model is not deployed", 2 * PATIENCE_S)
        options = ["--subjects", ",".join(reference.streams), "--speed", str(SPEED), "--no-notice"]
        spacing_s = reference.spacing_s / SPEED
        load = Load(cluster, list(pipeline.task.inputs), reference.streams, windows, spacing_s, options)
        environment.broker.save()
        load.start()
        yield Standstills(cluster, load, modes, names, cold)


def show(outcomes: Sequence[StandstillOutcome], check: AnswerCheck, problem: str) -> int:
    """Print a row a misbehaviour and stage; return the exit code."""
    print(f"{'node':<24} {'stage':>5} {'count':>5} {'moved s':>8} {'max':>6} {'gap s':>7} {'max':>6}")
    for mode, stage in dict.fromkeys((one.mode, one.stage) for one in outcomes):
        same = [one for one in outcomes if (one.mode, one.stage) == (mode, stage)]
        moved, gaps = [one.moved_s for one in same], [one.gap_s for one in same]
        print(
            f"{mode.value:<24} {stage:>5} {len(same):>5} {statistics.median(moved):>8.2f} {max(moved):>6.2f} "
            f"{statistics.median(gaps):>7.2f} {max(gaps):>6.2f}"
        )
    print(
        f"{check.windows} windows, {check.answered} answered, {check.lost} lost, {check.doubled} doubled, "
        f"{check.different} different"
    )
    if problem or not check.good:
        print(f"NOT RIGHT: {problem or 'not every window was answered once and right'}")
        return 1
    late = [one for one in outcomes if one.gap_s > WANTED_S]
    print(f"{len(late)} of {len(outcomes)} gaps above {WANTED_S:g} s")
    return 2 if late else 0


def main() -> int:
    """Do all of it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    parser.add_argument("--nodes", type=int, default=6, metavar="N")
    parser.add_argument("--cold", action="store_true", help="nodes fetch a slice that they get")
    parser.add_argument("--modes", default=",".join(Misbehaviour.__members__), metavar="LIST")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what every process said")
    args = parser.parse_args()
    modes = [Misbehaviour[name] for name in args.modes.split(",")]
    with contextlib.ExitStack() as stack:
        folder = args.logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-hangs-")))
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        environment = stack.enter_context(local_environment(folder))
        reference = prepare_reference(MODEL, folder, find_data(None), SUBJECTS, stages=STAGES, hop=HOP, name="hangs")
        made = reference.windows()
        each = min(sum(window.stream == stream for window in made) for stream in reference.streams)
        print(
            f"{environment.broker.description}, {MODEL} in {STAGES} stages on {args.nodes} nodes; {reference.data} "
            f"windows, {SPEED / reference.spacing_s:g} a second and stream; {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f}",
            flush=True,
        )
        problem = ""
        with open_standstills(environment, folder, reference, args.nodes, each, cold=args.cold) as standstills:
            try:
                for mode, stage in [(mode, k) for _ in range(args.rounds) for mode in modes for k in range(STAGES)]:
                    if mode is Misbehaviour.WRONG and stage == STAGES - 1:
                        continue
                    one = standstills.run(mode, stage)
                    print(f"{mode.value}, stage {stage}: moved {one.moved_s:.2f} s, gap {one.gap_s:.2f} s", flush=True)
                standstills.load.finish(300)
            except NodeError as error:
                problem = str(error)
            check = standstills.load.check_answers(reference.answers(made))
        return show(standstills.outcomes, check, problem)


if __name__ == "__main__":
    sys.exit(main())
