"""The settings of a coordinator, and the texts for its plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from har_edge.config.pipeline_config import PipelineConfig
from har_edge.coordinator.membership import names_in
from har_edge.coordinator.replan import PlacementSpec, cuts_of
from har_edge.mqtt.bus import Outgoing
from har_edge.planner.relocation import Forecast
from har_edge.protocol.deployment import Deployment, Generation
from har_edge.protocol.topics import Topics
from har_edge.units import duration


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """The settings of a coordinator.

    `files` are the contents that the task needs beside the slices, by name, with their hashes in `hashes`. `probe`
    makes the messages of a probe through a generation, from its stream and number. `first_epoch` is that of a pipeline
    without a plan. With `local_brokers`, flows go through the brokers of the nodes that make them, where those carry
    some. Nodes that do not know all of `packings`, in which activations travel, get no stage.
    """

    topics: Topics
    config: PipelineConfig
    model_sha256: str
    hashes: Mapping[str, str]
    files: Mapping[str, bytes]
    author: str
    started: float
    first_epoch: int
    spec: PlacementSpec
    margin: float
    settle_s: float
    probe: Callable[[Generation, str, int], list[Outgoing]]
    local_brokers: bool = False
    packings: frozenset[str] = frozenset()


def hashes_of(generation: Generation) -> set[str]:
    """Return the hashes of the slices of a generation."""
    return {sha256 for entry in generation.manifest.slices for sha256 in entry.files.values()}


def names_of(deployment: Deployment) -> set[str]:
    """Return the nodes that a deployment names."""
    return set[str]().union(*(names_in(one.placements) for one in deployment.generations))


def arrangement_of(generation: Generation) -> str:
    """Return the stages of a generation in words."""
    count, cuts = len(generation.manifest.slices), cuts_of(generation.manifest)
    homes = ", ".join(
        f"{stage} on {'+'.join(one.node for one in generation.placements if one.stage == stage)}"
        for stage in range(count)
    )
    stages = "1 stage" if count == 1 else f"{count} stages"
    where = f" (cuts {', '.join(map(str, cuts))})" if cuts else ""
    if any(entry.steps for entry in generation.manifest.slices):
        where = " that share operators"
    return f"{stages}{where}: {homes}"


def promise_of(forecast: Forecast) -> str:
    """Return what is expected of a generation in words."""
    return f"a window every {duration(forecast.period_s)}, each takes {duration(forecast.latency_s)}"
