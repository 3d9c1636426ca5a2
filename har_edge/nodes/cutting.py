"""From a model file to a folder that stages can run: slices, manifest and pipeline file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from har_edge.graph.folder import write_folder
from har_edge.graph.model import Model, read_model
from har_edge.graph.slices import slice_model
from har_edge.graph.state import state_of
from har_edge.inference.measure import Segment, measure_segments, overhead_s, segment_bounds, time_whole
from har_edge.planning.partition import StagePlan, balance, plan_stages
from har_edge.planning.pipeline import BrokerConfig, Pipeline, load_pipeline, write_pipeline
from har_edge.planning.state import starts_fresh
from har_edge.planning.task import Task

Watch = Callable[[Iterable[Segment], int], Iterable[Segment]]


def plan_cuts(
    model: Model, stages: int, *, threads: int = 1, watch: Watch = lambda segments, total: segments
) -> StagePlan:
    """Return the operators to cut at for stages of even time, as measured on this machine.

    `watch` sees the segments pass as they are measured, and how many there will be.

    Raises CutError when the model has too few legal cuts, ModelError when the runtime cannot run a part of it.
    """
    total = len(segment_bounds(model)) - 1
    balance([1.0] * total, stages, [0] * (total - 1))  # too many stages: say so before measuring
    segments = list(watch(measure_segments(model, threads=threads), total))
    return plan_stages(segments, overhead_s(segments, time_whole(model, threads=threads)), stages)


def prepare(
    path: Path,
    task: Task,
    folder: Path,
    *,
    stages: int,
    cuts: Sequence[int] | None = None,
    name: str = "har",
    broker: BrokerConfig | None = None,
) -> Pipeline:
    """Cut a model (at `cuts`, else into `stages` balanced slices) into `folder`, and return its pipeline.

    Raises ConfigError when the model remembers and its task does not say what to do about it.
    """
    model = read_model(path)
    starts_fresh(state_of(model), task, f"model {path}")
    chosen = list(cuts) if cuts is not None else plan_cuts(model, stages).cuts
    write_folder(model, slice_model(model, chosen), folder)
    write_pipeline(folder, task, name=name, broker=broker)
    return load_pipeline(folder)
