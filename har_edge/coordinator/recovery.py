"""Decide for a coordinator that starts which parts of a found plan it keeps, and which it cannot look after."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from har_edge.config.pipeline_config import BrokerConfig
from har_edge.coordinator.config import CoordinatorConfig, names_of
from har_edge.coordinator.membership import MAX_MEMBERS
from har_edge.coordinator.rollout import resumable
from har_edge.errors import HarEdgeError
from har_edge.protocol.deployment import VERSION, Deployment
from har_edge.protocol.topics import PROBE


@dataclass(frozen=True, slots=True)
class Recovery:
    """The plan to begin with, by its new author, and what a person should read about it."""

    deployment: Deployment
    remarks: tuple[str, ...] = ()


def recover(found: Deployment | None, setup: CoordinatorConfig) -> Recovery:
    """Return what a coordinator begins with: what it found, where that is for its task; else a plan of nothing."""
    empty = Deployment(VERSION, 0, setup.author, setup.started, setup.config, 0, dict(setup.hashes), ())
    if found is None:
        return Recovery(empty)
    kept, remarks = resumable(found, setup.model_sha256), list[str]()
    same = msgspec.structs.replace(found.config, epoch=setup.config.epoch, broker=BrokerConfig()) == setup.config
    if not same or found.files != dict(setup.hashes):
        remarks.append("the plan there is for another task: sensors and nodes start anew with this one")
        kept = empty
    flaw = _flaw(kept, setup)
    if flaw:
        remarks.append(f"the plan there is cannot be gone on with: {flaw}; this one begins anew")
        kept = empty
    return Recovery(msgspec.structs.replace(empty, epoch=kept.epoch, generations=kept.generations), tuple(remarks))


def _flaw(found: Deployment, setup: CoordinatorConfig) -> str:
    """Say why this process could not look after a plan that nodes can read; empty where it can."""
    names = names_of(found)
    if len(names) > MAX_MEMBERS:
        return f"it names {len(names)} nodes; expected at most {MAX_MEMBERS}"
    for generation in found.generations:
        try:
            setup.probe(generation, f"{PROBE}{setup.author}", 0)
        except HarEdgeError as error:
            return f"no window goes through epoch {generation.epoch}: {error}"
    return ""
