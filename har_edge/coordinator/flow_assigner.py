"""The broker that each flow of a generation goes through: that of the node which makes it, where it carries one.

Messages then cross the maker's link once and the taker's link once, and no central one. While data flows, a flow moves
to another broker only after every stage that takes it has said that it listens there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from har_edge.config.flows import is_broker_url
from har_edge.config.task import Task
from har_edge.config.wiring import find_wiring, flow_level
from har_edge.coordinator.membership import SERVING, Health, Membership
from har_edge.errors import HarEdgeError
from har_edge.mqtt.broker.own import is_loopback
from har_edge.protocol.deployment import Deployment, Generation, Phase, Placement
from har_edge.protocol.flow_routes import maker_of
from har_edge.protocol.status import NodeCapabilities

# After how long a broker of a living node that a stage cannot reach is left alone, and for how long.
UNREACHABLE_S = 3.0
BLOCK_S = 300.0


@dataclass(slots=True)
class FlowAssigner:
    """Chooses brokers; without `enabled` all flows go through the central one.

    `note` says why none is chosen though it is enabled; it is empty where nothing is in the way.
    """

    membership: Membership
    task: Task
    enabled: bool
    note: str = ""
    _takers: dict[int, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    _since: dict[tuple[int, str, str], int] = field(default_factory=dict)
    _complaints: dict[str, float] = field(default_factory=dict)
    _blocked: dict[tuple[str, str], float] = field(default_factory=dict)

    def assign(self, deployment: Deployment, now: float) -> tuple[Deployment, list[str]]:
        """Return the deployment with a broker for each flow, and lines for a person to read."""
        epochs = {one.epoch for one in deployment.generations}
        self._takers = {epoch: found for epoch, found in self._takers.items() if epoch in epochs}
        self._since = {key: revision for key, revision in self._since.items() if key[0] in epochs}
        old = sorted(one.name for one in self.membership.live() if (card := self._card(one.name)) and not card.routes)
        self.note = ""
        if self.enabled and old:
            self.note = f"no flow goes through a node's own broker while an older har-edge runs on {', '.join(old)}"
        lines = self._block(deployment, now)
        generations = tuple(self._route(one, deployment, old=bool(old)) for one in deployment.generations)
        for before, after in zip(deployment.generations, generations, strict=True):
            if before.flows != after.flows:
                lines.append(_describe(after))
        return msgspec.structs.replace(deployment, generations=generations), lines

    def _route(self, generation: Generation, deployment: Deployment, *, old: bool) -> Generation:
        if old or not (self.enabled or generation.brokers):
            return msgspec.structs.replace(generation, brokers={}, flows={})
        makers = self._makers(generation) if self.enabled else {}
        offers = {node: self._offer(node, generation) for node in {*makers.values(), *generation.brokers}}
        # A broker that stages listened at stays in the plan while it is there: messages may wait in it.
        brokers = {
            node: url
            for node, url in sorted(offers.items())
            if url and (node in makers.values() or generation.brokers.get(node) == url)
        }
        for node, url in brokers.items():
            known = generation.brokers.get(node) == url
            self._since.setdefault((generation.epoch, node, url), deployment.revision + (not known))
        flows = {
            level: node
            for level, node in makers.items()
            if node in brokers and self._may_use(level, node, brokers[node], generation, deployment)
        }
        return msgspec.structs.replace(generation, brokers=brokers, flows=flows)

    def _may_use(self, level: str, node: str, url: str, generation: Generation, deployment: Deployment) -> bool:
        takers = [one for one in generation.placements if one.stage in self._levels(generation)[level]]
        if not all(self._is_reachable(url, node, one.node) for one in takers):
            return False
        if generation.flows.get(level) == node and generation.brokers.get(node) == url:
            return True
        # Nothing is sent to a generation before all its stages listen everywhere.
        if deployment.phase(generation.epoch) is Phase.PREPARING:
            return True
        since = self._since[(generation.epoch, node, url)]
        return all(self._listens(generation, one, since) for one in takers)

    def _listens(self, generation: Generation, placement: Placement, since: int) -> bool:
        report = self.membership.report(generation.epoch, placement)
        return report is not None and report.routed >= since

    def _makers(self, generation: Generation) -> dict[str, str]:
        """Return the node that makes each flow; a stage of several replicas has none."""
        found = {}
        for level in self._levels(generation):
            nodes = [one.node for one in generation.placements if one.stage == maker_of(level)]
            if len(nodes) == 1:
                found[level] = nodes[0]
        return found

    def _levels(self, generation: Generation) -> Mapping[str, tuple[int, ...]]:
        """Return the stages that take each flow, by its level; none where the slices do not fit the task."""
        known = self._takers.get(generation.epoch)
        if known is None:
            try:
                wirings = [
                    find_wiring(generation.manifest, self.task, k) for k in range(len(generation.manifest.slices))
                ]
            except HarEdgeError:
                wirings = []
            made = [flow_level(one.index, flow) for one in wirings for flow in one.flows]
            known = {level: tuple(one.index for one in wirings if level in one.takes) for level in made}
            self._takers[generation.epoch] = known
        return known

    def _offer(self, node: str, generation: Generation) -> str:
        """Return the address of a node's own broker; empty where it has none that may be used."""
        if self.membership.health(node) not in SERVING - {Health.UNFIT}:
            return ""
        card = self._card(node)
        if card is None:  # it has not said anything to this coordinator yet
            return generation.brokers.get(node, "")
        url = card.broker.url if card.broker else ""
        return url if is_broker_url(url) and (node, url) not in self._blocked else ""

    def _is_reachable(self, url: str, maker: str, taker: str) -> bool:
        """Return whether a node can reach a broker as far as its address tells."""
        if not is_loopback(urlsplit(url).hostname or ""):
            return True
        ours, theirs = self._card(maker), self._card(taker)
        return ours is not None and theirs is not None and ours.machine == theirs.machine

    def _card(self, node: str) -> NodeCapabilities | None:
        member = self.membership.members.get(node)
        return member.status.device if member and member.status else None

    def _block(self, deployment: Deployment, now: float) -> list[str]:
        """Leave brokers alone that stages cannot reach though their nodes live; say so."""
        self._blocked = {key: until for key, until in self._blocked.items() if now < until}
        complaints = dict[str, str]()
        for generation in deployment.generations:
            for placement in generation.placements:
                report = self.membership.report(generation.epoch, placement)
                for node in report.unreachable if report else ():
                    if node in generation.brokers and self.membership.health(node) is Health.LIVE:
                        complaints.setdefault(node, placement.node)
        self._complaints = {node: self._complaints.get(node, now) for node in complaints}
        lines = []
        for node, since in list(self._complaints.items()):
            card = self._card(node)
            if now >= since + UNREACHABLE_S and card is not None and card.broker is not None:
                self._blocked[(node, card.broker.url)] = now + BLOCK_S
                del self._complaints[node]
                lines.append(
                    f"{complaints[node]} cannot reach the broker of {node} at {card.broker.url}: its flows go through "
                    f"the central one for {BLOCK_S:.0f} s; see the firewall there, or --advertise"
                )
        return lines


def _describe(generation: Generation) -> str:
    parts = [f"{level} at {node}" for level, node in sorted(generation.flows.items())]
    where = f"go through nodes' own brokers: {', '.join(parts)}" if parts else "go through the central broker"
    return f"epoch {generation.epoch}: flows {where}"
