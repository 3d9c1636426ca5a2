"""A small deployment under load, one fault, and what must hold after it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from har_edge.cluster.cluster import CACHE
from har_edge.cluster.processes import PROGRAM
from har_edge.errors import NodeError
from har_edge.experiments.cluster import RecordedCluster
from har_edge.experiments.environment import Environment
from har_edge.experiments.faults import FaultInjector, FaultKind, Outcome
from har_edge.experiments.load import Answers, Load
from har_edge.experiments.reference import Reference
from har_edge.protocol.topics import COORDINATOR

WINDOWS = 120
SPEED = 8.0
# Recovery takes one or two seconds; processes of others may hold both cores.
PATIENCE_S = 10.0


# A device whose model takes 5 ms longer (ten times as long and more) from when a file names it.
SLOWED = """
import pathlib, sys, time
from har_edge.cli.main import main
from har_edge.inference.interpreter import Interpreter
run, sign = Interpreter.run, pathlib.Path(sys.argv.pop(1))

def slowed(interpreter, values):
    if sign.exists() and sign.read_text() in sys.argv:
        time.sleep(0.005)
    return run(interpreter, values)

Interpreter.run = slowed
sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class FaultScenario:
    """A cluster in which results flow."""

    cluster: RecordedCluster
    injector: FaultInjector
    load: Load

    def hurt(self, kind: FaultKind, victim: str | None = None) -> Outcome:
        """Do it; the pipeline must get over it."""
        outcome = self.injector.run(kind, victim)
        assert outcome.gap_s < PATIENCE_S, self.cluster.processes.last_lines()
        assert outcome.noticed_s is None or outcome.noticed_s < PATIENCE_S
        return outcome

    def holder(self, stage: int) -> str:
        """Return which node runs a stage."""
        deployment = self.cluster.recorder.deployment
        assert deployment is not None
        holder = deployment.holder(deployment.epoch, stage, 0)
        assert holder is not None
        return holder

    def held(self, node: str) -> list[int]:
        """Return the stages that a node runs."""
        deployment = self.cluster.recorder.deployment
        assert deployment is not None and deployment.current is not None
        return [one.stage for one in deployment.current.of(node)]

    def check(self, expected: Answers) -> None:
        """Let the load come to its end: every window is answered, once, as the whole model answers it."""
        try:
            self.load.finish(40.0)
        except NodeError as error:
            statuses = [status for status in self.cluster.recorder.statuses.values() if status.role == "sensor"]
            raise AssertionError(f"{self.load.check_answers(expected)}, {statuses}: {error}") from error
        check = self.load.check_answers(expected)
        assert check.good, f"{check}\n{self.cluster.processes.last_lines()}"
        assert check.answered == len(expected) * len(self.load.rounds)


@contextmanager
def open_scenario(
    environment: Environment,
    folder: Path,
    reference: Reference,
    *,
    nodes: int = 3,
    absent: Sequence[str] = (),
    options: Sequence[str] = (),
    slow: Path | None = None,
) -> Iterator[FaultScenario]:
    """Start coordinator (`options` are its) and nodes (not those absent), and sensors once the model is deployed.

    The device that the file `slow` names is slow.
    """
    names = [f"device-{number}" for number in range(1, nodes + 1)]
    pipeline = reference.pipeline
    coordinator = ["coordinator", "--model", str(reference.model), "--stages", "3", *options]
    # Without recordings, wherever the tests run; one profile of the model does for all of them.
    variables = {"HAR_EDGE_DATA": "", CACHE: str(reference.model.parent / "cache")}
    program = PROGRAM if slow is None else (sys.executable, "-c", SLOWED, str(slow))
    with RecordedCluster(pipeline, environment, folder, variables=variables, program=program) as cluster:
        cluster.start(*coordinator, name=COORDINATOR)
        for name in names:
            if name not in absent:
                cluster.start_node(name)
        cluster.until(cluster.recorder.is_settled, "the model is not deployed")
        replay = ["--subjects", ",".join(reference.streams), "--speed", str(SPEED), "--no-notice"]
        spacing_s = reference.spacing_s / SPEED
        load = Load(cluster, list(pipeline.task.inputs), reference.streams, WINDOWS, spacing_s, replay)
        # As after its first minute: a broker killed before has forgotten who wants results, and some are never seen.
        environment.broker.save()
        load.start()
        injector = FaultInjector(
            cluster, load, names, coordinator, random.Random(0), margin_s=2.0, hang_s=(2.5, 2.5), join_s=1.0
        )
        yield FaultScenario(cluster, injector, load)
