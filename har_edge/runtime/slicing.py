"""From a model file to a folder that stages can run: slices, manifest and pipeline file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from har_edge.codecs.spec import file_names
from har_edge.config.model_state import starts_fresh
from har_edge.config.pipeline import Pipeline, load_pipeline
from har_edge.config.pipeline_config import FILE_NAME, BrokerConfig
from har_edge.config.pipeline_writer import write_pipeline
from har_edge.config.task import Task, describe, find_description, with_hashes, with_reducers
from har_edge.data.description import load_description
from har_edge.data.grouping import regroup
from har_edge.errors import ConfigError, CutError
from har_edge.inference.codecs import FolderFiles, hash_file
from har_edge.inference.interpreter import Delegate
from har_edge.inference.load_check import default_check
from har_edge.inference.segment_timing import (
    ROUNDS,
    Segment,
    fastest_times,
    measure_segments,
    overhead_s,
    segment_bounds,
    time_whole,
)
from har_edge.inference.tensor_observation import open_model
from har_edge.planner.devices import DeviceClass, PlannerDevice, SensorMessages
from har_edge.planner.partition import balance
from har_edge.planner.plan import Objective, make_plan, make_planning_problem
from har_edge.planner.profile import SegmentCost
from har_edge.runtime.build import open_reducer
from har_edge.tflite.folder import write_folder
from har_edge.tflite.manifest import NEWEST_WIRE
from har_edge.tflite.model import Model, gather_outputs
from har_edge.tflite.slices import slice_model
from har_edge.tflite.split.folder import write_split
from har_edge.tflite.split.plan_file import load_plan
from har_edge.tflite.split.program import SplitLayout, ordinary, split_model
from har_edge.tflite.split.spec import parse_split
from har_edge.tflite.state import state_of

# Processor seconds of a stage for a message in or out; `har-edge profile` measures 120 to 300 us (docs/results.md).
MESSAGE_S = 100e-6

Watch = Callable[[Iterable[Segment], int], Iterable[Segment]]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Operators to cut at, and the predicted seconds of each slice, messages not counted."""

    cuts: tuple[int, ...]
    seconds: tuple[float, ...]


def plan_cuts(
    model: Model,
    stages: int,
    *,
    threads: int = 1,
    watch: Watch = lambda segments, total: segments,
    delegate: str | None = None,
) -> StagePlan:
    """Return the operators to cut at so that the slowest of so many equal devices is as fast as can be.

    The model's time is measured on this machine, with this delegate. A message counts MESSAGE_S, for a slice of a small
    model takes less time than that; one brings the windows of all sources. `watch` sees the segments pass as they are
    measured, and how many there will be.

    Raises CutError when the model has too few legal cuts, ModelError when the runtime cannot run a part of it.
    """
    total = len(segment_bounds(model)) - 1
    balance([1.0] * total, stages, [0] * (total - 1))  # too many stages: say so before measuring
    chosen = Delegate(delegate or Delegate.XNNPACK)
    default_check()(model.data, model.name, chosen.value)
    if stages == 1:
        return StagePlan((), (time_whole(model, threads=threads, delegate=chosen),))
    segments = fastest_times(watch(measure_segments(model, threads=threads, delegate=chosen), ROUNDS * total))
    whole_s = time_whole(model, threads=threads, delegate=chosen)
    return even_stages(model, segments, overhead_s(segments, whole_s), stages)


def even_stages(
    model: Model, segments: Sequence[Segment] | Sequence[SegmentCost], overhead_s: float, stages: int
) -> StagePlan:
    """Return the cuts for so many equal devices; `overhead_s` is what each run costs whatever it runs."""
    kind = DeviceClass(
        work_s=tuple(max(0.0, segment.seconds - overhead_s) for segment in segments),
        overhead_s=overhead_s,
        message_s=MESSAGE_S,
        message_byte_s=0.0,
        link_bytes_per_s=math.inf,
        latency_s=0.0,
        memory_bytes=None,
        base_bytes=0,
        growth=1.0,
    )
    bounds = [*(segment.start for segment in segments), segments[-1].stop]
    devices = [PlannerDevice(str(number), kind) for number in range(stages)]
    planning = make_planning_problem(model, bounds, devices, replicas=1, sensors=SensorMessages.TOGETHER)
    plan = make_plan(replace(planning, least=stages), Objective.THROUGHPUT)
    return StagePlan(plan.cuts, tuple(stage.compute_s for stage in plan.stages))


def lay_out(model: Model, split: str | Path) -> SplitLayout:
    """Return how devices share a model, by a text (tflite/split/spec.py) or by the file of a plan.

    Raises CutError for what the model cannot take, and for the plan of another model.
    """
    if isinstance(split, str):
        return split_model(model, parse_split(split, model))
    plan = load_plan(split)
    if plan.model_sha256 != model.sha256:
        raise CutError(
            f"{split} is a plan for the model with sha256 {plan.model_sha256}, but {model.name} has {model.sha256}; "
            "plan this model"
        )
    return split_model(model, [one.split or ordinary(one.start, one.stop) for one in plan.stages])


def prepare(
    path: Path,
    task: Task,
    folder: Path,
    *,
    stages: int,
    cuts: Sequence[int] | None = None,
    split: str | Path | None = None,
    name: str = "har",
    broker: BrokerConfig | None = None,
    reducers: Mapping[str, str] = MappingProxyType({}),
    wire: int | None = NEWEST_WIRE,
    delegate: str | None = None,
) -> Pipeline:
    """Cut a model (at `cuts`, else into `stages` balanced slices) into `folder`, and return its pipeline.

    `reducers` stand in for those of the task; for `wire` see `outline`. Files of fitted ones, and the stream
    description, are copied from beside the model. Raises ConfigError when the model remembers and its task does not say
    what to do about it, when a reducer and the model do not belong together, and when the description is missing;
    ModelError for a fitted file that is missing or not what its hash says.
    """
    model = open_model(path, delegate)
    starts_fresh(state_of(model), task, f"model {path}")
    task = settle_reducers(model, task, reducers, path.parent)
    model = gather_outputs(model, task.results) if task.gathers else model
    companions = read_companions(task, path.parent)
    if split is not None:
        write_split(lay_out(model, split), folder, companions)
    else:
        chosen = list(cuts) if cuts is not None else plan_cuts(model, stages, delegate=delegate).cuts
        write_folder(model, slice_model(model, chosen), folder, companions, wire=wire)
    write_pipeline(folder, task, name=name, broker=broker, delegate=delegate)
    return load_pipeline(folder)


def settle_reducers(model: Model, task: Task, reducers: Mapping[str, str], beside: Path) -> Task:
    """Return the task with these reducers instead of its own, and the hashes of the files beside the model they name.

    Raises ConfigError where a reducer, the model and the task's windows do not belong together; nothing is written.
    """
    task = with_reducers(task, reducers)
    named = {name for enters in task.inputs.values() for name in file_names(enters.reducer)}
    task = with_hashes(task, {name: hash_file(beside / name) for name in named - task.files.keys()})
    shapes = {tensor.name: tensor.signature for tensor in map(model.main.tensors.__getitem__, model.main.inputs)}
    check_description(task, beside)
    stream = regroup(describe(task, beside), task.stream.grouping)
    files = FolderFiles(beside, task.files)
    for source, enters in task.inputs.items():
        if enters.tensor not in shapes:
            raise ConfigError(
                f"the task feeds source {source!r} to tensor {enters.tensor!r}, but the model takes "
                f"{', '.join(shapes)}; use the task that belongs to this model"
            )
        open_reducer(task, source, len(stream.source(source).channels), shapes[enters.tensor], files)
    return task


def read_companions(task: Task, beside: Path) -> dict[str, bytes]:
    """Return what a pipeline needs beside its file, by name: files of fitted reducers (hashes checked), a description.

    A description under an absolute path stays where it is. Raises ConfigError for one that is missing or in another
    folder, ModelError for a fitted file that is missing or not what its hash says.
    """
    files = FolderFiles(beside, task.files)
    content = {name: files.read(name) for name in task.files}
    described = check_description(task, beside)
    if described is None:
        return content
    load_description(described)  # before anything is written
    return content | {task.stream.description: described.read_bytes()}


def check_description(task: Task, beside: Path) -> Path | None:
    """Return the stream description that goes with the slices; None for one that is built in or stays where it is.

    Raises ConfigError for a name that cannot stand beside the pipeline file.
    """
    name, described = task.stream.description, find_description(task, beside)
    if described is None or Path(name).is_absolute():
        return None
    if Path(name).name != name or described.suffix != ".toml" or name == FILE_NAME:
        raise ConfigError(
            f"the task names the stream description {name!r}; expected the plain name of a .toml file beside the "
            f"model, other than {FILE_NAME}"
        )
    return described
