"""Stages whose node is gone, fails or wants to leave, and the nodes that take them on: same generation, same cuts.

This is the way after a crash, so nothing is measured, planned or cut here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from har_edge.coordinator.membership import Health, Membership
from har_edge.planner.relocation import Candidate, Key, StageLoad, relocate
from har_edge.protocol.deployment import Deployment, Generation, Phase, Placement
from har_edge.protocol.status import StagePhase
from har_edge.timing import HANDOVER_S


@dataclass(frozen=True, slots=True)
class StageCost:
    """The cost of a stage on the reference device: seconds a window, bytes of memory beside a process."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Reassignment:
    """A stage that goes from one node to another."""

    key: Key
    source: str
    target: str
    reason: str

    @property
    def text(self) -> str:
        """The lines for a person to read."""
        epoch, stage, replica = self.key
        which = f"stage {stage}" + (f", replica {replica}," if replica else "")
        return f"epoch {epoch}: {which} goes from {self.source} to {self.target}: {self.reason}"


@dataclass(slots=True)
class Reassigner:
    """Finds nodes for stages; it remembers nothing but since when each node wants to leave."""

    membership: Membership
    stage_costs: dict[int, tuple[StageCost, ...]] = field(default_factory=dict)
    _leaving: dict[str, float] = field(default_factory=dict)

    def reassign(
        self,
        deployment: Deployment,
        candidates: Sequence[Candidate],
        failing: Collection[str],
        now: float,
        standing: Mapping[Key, str] = MappingProxyType({}),
    ) -> tuple[Deployment, list[Reassignment]]:
        """Return the deployment with a living node for every stage that sensors may need, and what moved.

        Generations that are being prepared are left alone: a rollout that cannot finish is withdrawn. Nodes in
        `failing` keep a stage that failed on them only when there is no other node; so do those with a stage that is
        `standing` still, with the reason.
        """
        self._leaving = {
            name: self._leaving.get(name, now)
            for name, member in self.membership.members.items()
            if member.health is Health.LEAVING
        }
        reasons = self._orphans(deployment, candidates, failing, standing)
        leaving = {
            (generation.epoch, *placement.key)
            for generation in _needed(deployment)
            for placement in generation.placements
            if placement.node in self._leaving
        }
        nodes = {candidate.name for candidate in candidates}
        targets = relocate(self._loads(deployment, {*reasons, *leaving}, nodes), candidates)
        reassignments: list[Reassignment] = []
        generations = tuple(
            generation
            if deployment.phase(generation.epoch) is Phase.PREPARING
            else msgspec.structs.replace(
                generation,
                placements=tuple(
                    self._settle(generation.epoch, placement, reasons, targets, reassignments, now)
                    for placement in generation.placements
                ),
            )
            for generation in deployment.generations
        )
        return msgspec.structs.replace(deployment, generations=generations), reassignments

    def costs_of(self, generation: Generation) -> tuple[StageCost, ...]:
        """Return what the stages of a generation take, as the planner said; equal work where nobody knows."""
        count = len(generation.manifest.slices)
        known = self.stage_costs.get(generation.epoch)
        if known is not None and len(known) == count:
            return known
        predicted = generation.predicted_s if len(generation.predicted_s) == count else (1.0,) * count
        return tuple(StageCost(seconds, 0) for seconds in predicted)

    def _orphans(
        self,
        deployment: Deployment,
        candidates: Sequence[Candidate],
        failing: Collection[str],
        standing: Mapping[Key, str],
    ) -> Mapping[Key, str]:
        """Return the stages that nobody runs, and why."""
        found: dict[Key, str] = {}
        others = any(candidate.name not in failing for candidate in candidates)
        for generation in _needed(deployment):
            for placement in generation.placements:
                key, health = (generation.epoch, *placement.key), self.membership.health(placement.node)
                report = self.membership.report(generation.epoch, placement)
                if health in (Health.LOST, Health.GONE, Health.UNFIT):
                    found[key] = f"{placement.node} is {health.value}"
                elif report is not None and report.phase is StagePhase.FAILED and others:
                    found[key] = f"it failed on {placement.node}: {report.detail or 'no reason given'}"
                elif key in standing and any(candidate.name != placement.node for candidate in candidates):
                    found[key] = standing[key]
        return found

    def _loads(self, deployment: Deployment, orphans: Collection[Key], nodes: Collection[str]) -> list[StageLoad]:
        loads = []
        for generation in deployment.generations:
            stage_costs, spared = self.costs_of(generation), set(generation.manifest.spared)
            for placement in generation.placements:
                key, work = (generation.epoch, *placement.key), stage_costs[placement.stage]
                seconds = work.seconds / max(1, generation.replicas(placement.stage))
                node = None if key in orphans else placement.node
                # A parity stands for one shard, so a node that is lost must not take two of them.
                apart = generation.epoch if placement.stage in spared else None
                if key in orphans or placement.node in nodes:
                    loads.append(StageLoad(key, seconds, work.memory_bytes, node, apart))
        return loads

    def _settle(
        self,
        epoch: int,
        placement: Placement,
        reasons: Mapping[Key, str],
        targets: Mapping[Key, str],
        reassignments: list[Reassignment],
        now: float,
    ) -> Placement:
        """Return where a stage is from now on."""
        key, ready = (epoch, *placement.key), self._successor(epoch, placement)
        if key in reasons:
            target = ready or targets.get(key, placement.node)
            if target == placement.node:
                return placement
            reassignments.append(Reassignment(key, placement.node, target, reasons[key]))
            return Placement(placement.stage, target, placement.replica)
        since = self._leaving.get(placement.node)
        if since is None:
            return msgspec.structs.replace(placement, standby=()) if placement.standby else placement
        if ready is None:
            target = targets.get(key, "")
            return msgspec.structs.replace(placement, standby=(target,)) if target else placement
        report = self.membership.report(epoch, placement, ready)
        if report is not None and report.phase in (StagePhase.PREPARED, StagePhase.RUNNING):
            reassignments.append(
                Reassignment(key, placement.node, ready, f"{placement.node} leaves, and {ready} has loaded it")
            )
        elif now > since + HANDOVER_S:
            reassignments.append(
                Reassignment(key, placement.node, ready, f"{placement.node} leaves, and {ready} has not loaded it")
            )
        else:
            return placement
        return Placement(placement.stage, ready, placement.replica)

    def _successor(self, epoch: int, placement: Placement) -> str | None:
        """Return the node in standby that may take a stage."""
        for name in placement.standby:
            report = self.membership.report(epoch, placement, name)
            failed = report is not None and report.phase is StagePhase.FAILED
            if self.membership.health(name) is Health.LIVE and not failed:
                return name
        return None


def _needed(deployment: Deployment) -> list[Generation]:
    """Return the generations that windows may still go through."""
    return [one for one in deployment.generations if deployment.phase(one.epoch) is not Phase.PREPARING]
