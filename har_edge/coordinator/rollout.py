"""A change of cuts while data flows: which steps it takes, and when each of them is done or has failed.

IDLE ─> LOADING ─> PREPARING ─> PROBING ─> DRAINING ─> IDLE
          └───────────┴────────────┴─> IDLE (withdrawn: the older generation stays current)
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import msgspec

from har_edge.coordinator.membership import SERVING, Health, Membership
from har_edge.protocol.deployment import Deployment, Generation, Phase
from har_edge.protocol.status import StagePhase
from har_edge.timing import SWITCH_S

# Without any change of a stage's phase for so long, a generation that gets ready is withdrawn.
STUCK_S = 60.0
PROBE_S = 10.0
# How long stages may take to have nothing under way, before a generation goes all the same.
DRAIN_S = 30.0


class Step(enum.Enum):
    """The step that a rollout has reached."""

    IDLE = "idle"
    LOADING = "publishing slices"
    PREPARING = "preparing"
    PROBING = "probing"
    DRAINING = "draining"


NEXT = {
    Step.IDLE: frozenset({Step.LOADING, Step.PREPARING, Step.DRAINING}),  # the last two after a restart
    Step.LOADING: frozenset({Step.PREPARING, Step.IDLE}),
    Step.PREPARING: frozenset({Step.PROBING, Step.IDLE}),
    Step.PROBING: frozenset({Step.DRAINING, Step.IDLE}),
    Step.DRAINING: frozenset({Step.IDLE}),
}


class StepOutcome(enum.Enum):
    """The outcome of a step."""

    WAIT = "wait"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StepResult:
    """The outcome of a step with its cause; `node` caused a failure, empty where none did."""

    outcome: StepOutcome
    text: str = ""
    node: str = ""


_WAIT, _DONE = StepResult(StepOutcome.WAIT), StepResult(StepOutcome.DONE)


@dataclass(slots=True)
class Rollout:
    """The step of a rollout, since when, and the generation that it brings."""

    step: Step = Step.IDLE
    since: float = 0.0
    generation: Generation | None = None
    _phases: tuple[str, ...] = field(default=())
    _moved: float = 0.0

    def enter(self, step: Step, now: float, generation: Generation | None = None) -> None:
        """Go to the next step; AssertionError for one that does not follow."""
        assert step in NEXT[self.step], f"{step} after {self.step}"
        self.step, self.since, self._moved = step, now, now
        if generation is not None or step is Step.IDLE:
            self.generation = generation

    def resume(self, found: Deployment, now: float) -> None:
        """Go on where a plan stands that another has begun."""
        phases = {found.phase(one.epoch): one for one in found.generations}
        if Phase.PREPARING in phases:
            self.enter(Step.PREPARING, now, phases[Phase.PREPARING])
        elif Phase.DRAINING in phases:
            self.enter(Step.DRAINING, now, found.current)

    def prepared(self, membership: Membership, now: float) -> StepResult:
        """Return whether every stage of the generation runs."""
        assert self.generation is not None
        failure = self._failure(membership)
        if failure is not None:
            return failure
        phases = tuple(_phase(membership, self.generation))
        if all(phase == StagePhase.RUNNING.value for phase in phases):
            return _DONE
        if phases != self._phases:
            self._phases, self._moved = phases, now
        if now < self._moved + STUCK_S:
            return _WAIT
        number = next(k for k, phase in enumerate(phases) if phase != StagePhase.RUNNING.value)
        placement = self.generation.placements[number]
        said = phases[number] or "nothing said"
        return StepResult(
            StepOutcome.FAILED,
            f"stage {placement.stage} on {placement.node}: {said} for {STUCK_S:.0f} s",
            placement.node,
        )

    def probed(self, membership: Membership, answered: bool, now: float, patience_s: float = PROBE_S) -> StepResult:
        """Return whether a window passed through the generation; it may take `patience_s`, and PROBE_S in any case."""
        failure = self._failure(membership)
        if failure is not None or answered:
            return failure or _DONE
        if now < self.since + max(PROBE_S, patience_s):
            return _WAIT
        return StepResult(StepOutcome.FAILED, f"no answer to a probe in {max(PROBE_S, patience_s):.0f} s")

    def drained(self, deployment: Deployment, membership: Membership, now: float) -> StepResult:
        """Return whether nobody needs the generations before the current one any more."""
        behind = membership.behind(deployment.epoch)
        busy = [
            f"stage {placement.stage} of epoch {generation.epoch} on {placement.node}"
            for generation in deployment.generations
            if deployment.phase(generation.epoch) is Phase.DRAINING
            for placement, phase in zip(generation.placements, _phase(membership, generation), strict=True)
            if phase != StagePhase.DRAINED.value
        ]
        if behind and now < self.since + SWITCH_S:
            return _WAIT
        if busy and now < self.since + DRAIN_S:
            return _WAIT
        late = [f"sensor {name}" for name in behind] + busy
        return StepResult(StepOutcome.DONE, f"not waiting any longer for {', '.join(late)}" if late else "")

    def _failure(self, membership: Membership) -> StepResult | None:
        """Return why the generation cannot get ready."""
        assert self.generation is not None
        for placement in self.generation.placements:
            health = membership.health(placement.node)
            if health not in SERVING or health in (Health.UNFIT, Health.LEAVING):
                return StepResult(StepOutcome.FAILED, f"node {placement.node} is {health.value}")
            report = membership.report(self.generation.epoch, placement)
            if report is not None and report.phase is StagePhase.FAILED:
                text = f"stage {placement.stage} failed on {placement.node}: {report.detail or 'no reason given'}"
                return StepResult(StepOutcome.FAILED, text, placement.node)
        return None


def resumable(found: Deployment, model_sha256: str) -> Deployment:
    """Return what a coordinator that starts goes on with: the plan it found, without what it could not bring to an end.

    That is a generation of another model that is getting ready, and one beside which another still drains.
    """
    preparing = [one for one in found.generations if found.phase(one.epoch) is Phase.PREPARING]
    draining = any(found.phase(one.epoch) is Phase.DRAINING for one in found.generations)
    if len(preparing) == 1 and not draining and preparing[0].manifest.model_sha256 == model_sha256:
        return found
    return msgspec.structs.replace(found, generations=tuple(one for one in found.generations if one not in preparing))


def _phase(membership: Membership, generation: Generation) -> list[str]:
    """Return the phase that each placement's node reports, empty where it says nothing yet."""
    reports = (membership.report(generation.epoch, placement) for placement in generation.placements)
    return [report.phase.value if report else "" for report in reports]


def unready(membership: Membership, generation: Generation) -> str:
    """Say which stage of a generation does not run, empty where all do."""
    for placement, phase in zip(generation.placements, _phase(membership, generation), strict=True):
        if phase != StagePhase.RUNNING.value:
            return f"stage {placement.stage} on {placement.node}: {phase or 'nothing said'}"
    return ""


def is_running(membership: Membership, generation: Generation) -> bool:
    """Return whether every stage of a generation runs."""
    return all(phase == StagePhase.RUNNING.value for phase in _phase(membership, generation))
