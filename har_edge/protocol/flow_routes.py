"""The brokers that the flows of a stage go through, by the plan: a table of routes for its bus (mqtt/routed.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from har_edge.config.flows import broker_of
from har_edge.config.wiring import Wiring, flow_level
from har_edge.protocol.deployment import Generation
from har_edge.protocol.topics import Topics

CENTRAL = ""
_SHARE = "$share/"


@dataclass(frozen=True, slots=True)
class FlowRoutes:
    """The routes of one stage, by the level of a flow in topics that begin with `prefix`.

    `targets` are the brokers that it sends its own flows to, `listening` those at which it takes the flows of others
    beside the central broker. `known` are all brokers of the generation. Brokers are named by their addresses.
    """

    prefix: str = ""
    targets: Mapping[str, str] = field(default_factory=dict)
    listening: Mapping[str, frozenset[str]] = field(default_factory=dict)
    known: frozenset[str] = frozenset()

    @property
    def needed(self) -> frozenset[str]:
        return frozenset(self.targets.values()).union(*self.listening.values())

    def target(self, topic: str) -> str:
        """Return the broker that a topic is published at."""
        return self.targets.get(self._level(topic), CENTRAL)

    def listens(self, text: str) -> frozenset[str]:
        """Return the brokers at which a filter, which may be shared, is subscribed to beside the central one."""
        if text.startswith(_SHARE):
            text = text.split("/", 2)[2]
        return self.listening.get(self._level(text), frozenset())

    def _level(self, topic: str) -> str:
        return topic[len(self.prefix) :].partition("/")[0] if self.prefix and topic.startswith(self.prefix) else ""


def flow_routes(topics: Topics, generation: Generation, wiring: Wiring) -> FlowRoutes:
    """Return the routes of the stage with this wiring."""
    brokers, flows = generation.brokers, generation.flows
    if not brokers:
        return FlowRoutes()
    own = [flow_level(wiring.index, flow) for flow in wiring.flows]
    makers = {
        level: {placement.node for placement in generation.placements if placement.stage == maker_of(level)}
        for level in wiring.takes
    }
    listening = {
        level: frozenset(brokers[node] for node in {*nodes, flows.get(level, "")} if node in brokers)
        for level, nodes in makers.items()
    }
    return FlowRoutes(
        topics.activation(generation.epoch, "", "").removesuffix("/"),
        {level: brokers[flows[level]] for level in own if level in flows},
        {level: found for level, found in listening.items() if found},
        frozenset(brokers.values()),
    )


def fixed_routes(topics: Topics, epoch: int, flows: Mapping[str, str], wiring: Wiring) -> FlowRoutes:
    """Return the routes of a stage of a fixed folder; `flows` gives brokers by flow, or by stage for all its flows."""
    own = {level: broker_of(flows, level) for level in (flow_level(wiring.index, flow) for flow in wiring.flows)}
    others = {level: broker_of(flows, level) for level in wiring.takes}
    return FlowRoutes(
        topics.activation(epoch, "", "").removesuffix("/"),
        {level: url for level, url in own.items() if url},
        {level: frozenset([url]) for level, url in others.items() if url},
        frozenset(flows.values()),
    )


def maker_of(level: str) -> int:
    """Return the stage whose flow a level of a topic names."""
    return int(level.partition("-")[0])
