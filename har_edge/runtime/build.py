"""Build sensors and stages from a pipeline file."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.files import ReducerFiles
from har_edge.codecs.identity import IdentityReducer
from har_edge.codecs.quantize import AffineQuantizer
from har_edge.codecs.reducer import Reducer
from har_edge.config.message_sizes import HEAD_BYTES, largest_message, tensor_bytes
from har_edge.config.model_state import starts_fresh
from har_edge.config.pipeline import Pipeline
from har_edge.config.pipeline_config import PipelineConfig
from har_edge.config.source_pieces import SourcePiece, find_pieces
from har_edge.config.task import ArrayOutput, Task, with_reducers
from har_edge.config.wiring import Wiring
from har_edge.data.recording import Recording
from har_edge.data.replay import replay
from har_edge.data.windows import windows
from har_edge.errors import ConfigError, MessageError
from har_edge.inference.codecs import FolderFiles
from har_edge.inference.input_adapter import (
    check_picture_input,
    choose_input_form,
    make_input_adapter,
    make_picture_adapter,
    window_shape,
)
from har_edge.inference.load_check import LoadCheck, default_check
from har_edge.inference.saturation import NODE_EVERY, QuantizedRange, Saturation, range_of, range_taken
from har_edge.protocol.topics import ALL_SOURCES, Topics, is_id
from har_edge.runtime.sensor.send_policy import Batch
from har_edge.runtime.sensor.sensor import BYTES_A_RAW_VALUE, FIRST_ROOM, Sensor, SensorSetup
from har_edge.runtime.stage.packed import check_packings
from har_edge.runtime.stage.setup import StageSetup
from har_edge.runtime.stage.shard import make_stage
from har_edge.runtime.stage.stage import Stage
from har_edge.tflite.manifest import QUANTISED, SliceEntry

if TYPE_CHECKING:
    from pathlib import Path

    from har_edge.inference.input_adapter import InputAdapter
    from har_edge.inference.interpreter import Delegate, Port
    from har_edge.inference.loaded_slice import LoadedSlice, Runner

_log = logging.getLogger(__name__)
# Bytes that may wait in a stage's memory; two messages at least, so that it need not wait for the next.
RECEIVE_BYTES = 64 * 1024 * 1024
RECEIVE_LEAST, RECEIVE_MAX = 2, 1024
# Bytes that the messages of all windows under way may have, at each cut of the model.
UNDER_WAY_BYTES = 256 * 1024 * 1024


def topics_of(pipeline: Pipeline) -> Topics:
    """Return the topics of a pipeline."""
    return Topics(pipeline.config.base, pipeline.config.name)


def override(pipeline: Pipeline, reducers: Mapping[str, str]) -> Pipeline:
    """Return the pipeline with other reducers for some sources; sensors and stages need the same ones."""
    task = with_reducers(pipeline.task, reducers)
    return dataclasses.replace(pipeline, config=msgspec.structs.replace(pipeline.config, task=task))


def reducer_of(pipeline: Pipeline, source: str) -> Reducer:
    """Return the reducer of a source, its files checked.

    Raises ConfigError when the pipeline takes no such source, or when windows, reducer and model do not belong together
    (other channels, another length); ModelError for a file that is not what it should be.
    """
    task = pipeline.task
    if source not in task.inputs:
        raise ConfigError(f"source {source!r} came; expected one of {', '.join(task.inputs)}, which the model takes")
    return open_reducer(
        task,
        source,
        pipeline.channels(source),
        pipeline.source_shape(source),
        FolderFiles(pipeline.folder, task.files, delegate_of(pipeline.config)),
    )


def open_reducer(task: Task, source: str, channels: int, shape: Sequence[int], files: ReducerFiles) -> Reducer:
    """Return the reducer of a source with so many channels, which enters an input of this shape; see `reducer_of`."""
    enters, length = task.inputs[source], task.stream.length
    try:
        reducer = make_reducer(enters.reducer, length, channels, files)
    except ConfigError as error:
        raise ConfigError(f"source {source!r}: {error}") from None
    entered = window_shape(tuple(shape))
    if task.image is None:
        choose_input_form(source, reducer, enters.tensor, entered, length, channels)
    else:
        check_picture_input(task.image, enters.tensor, entered)
        if not reducer.restores:
            raise ConfigError(f"source {source!r}: reducer {enters.reducer!r} does not restore pictures; use another")
    return reducer


def delegated(pipeline: Pipeline, delegate: str | None) -> Pipeline:
    """Return the pipeline with what one device was told of its delegate, instead of what the pipeline says."""
    if delegate is None:
        return pipeline
    config = msgspec.convert(msgspec.to_builtins(pipeline.config) | {"delegate": delegate}, PipelineConfig)
    return dataclasses.replace(pipeline, config=config)


def delegate_of(config: PipelineConfig) -> str | None:
    """Return who computes; None where the pipeline leaves it to the runtime."""
    return None if config.delegate is msgspec.UNSET else config.delegate


def build_stage(
    pipeline: Pipeline, index: int, *, threads: int = 1, replicas: int = 1, deployed: bool = False
) -> Stage:
    """Load slice `index` (its hash is checked first) and return its stage; see `build_setup`."""
    setup = build_setup(pipeline, index, threads=threads, replicas=replicas, deployed=deployed)
    return make_stage(setup, clock=time.time, monotonic=time.monotonic)


def build_setup(
    pipeline: Pipeline,
    index: int,
    *,
    threads: int = 1,
    replicas: int = 1,
    deployed: bool = False,
    check: LoadCheck | None = None,
    sandbox: bool = False,
) -> StageSetup:
    """Load slice `index` and return the setup of its stage; a slice that is `deployed` has run once when it returns.

    `check` runs the slice in a process of its own first; the default is that of this process. Several `replicas` take
    turns. Raises ModelError when the file does not match its hash. Raises ConfigError for a slice that mixes windows,
    or that has replicas and needs more than one message for a window.

    With `sandbox`, the files are loaded and run in processes of their own only, without rights (inference/sandbox.py).
    """
    from har_edge.inference.interpreter import Delegate, load_slice  # a sensor does without LiteRT
    from har_edge.inference.loaded_slice import LoadedSlice
    from har_edge.runtime.node.capabilities import applied_delegate

    wiring, task = pipeline.wiring(index), pipeline.task
    check_packings(wiring.entry)
    _check_replicas(wiring, replicas)
    _check_shard(pipeline, wiring)
    folder = pipeline.folder / pipeline.config.slices
    fresh = starts_fresh(wiring.entry.state, task, f"slice {folder / wiring.entry.file}")
    delegate = Delegate(delegate_of(pipeline.config) or Delegate.XNNPACK)

    if not sandbox:
        _check_files(folder, wiring.entry, check or default_check(), delegate)

    def load(file: str, sha256: str) -> Runner:
        if sandbox:
            return _open_sandbox(folder / file, sha256, threads=threads, fresh=fresh, delegate=delegate)
        return load_slice(folder / file, sha256, threads=threads, fresh=fresh, delegate=delegate)

    loaded = LoadedSlice(wiring.entry, load)
    interpreter = loaded.first
    if deployed:
        _warm_up(loaded, wiring)
    ports = {
        source: loaded.input_port(tensor, pipeline.source_shape(source)) for source, tensor in wiring.sources.items()
    }
    # Bytes that enter as they are cannot saturate.
    watched = _saturations(ports) if task.image is None or task.image.mean else {}
    return StageSetup(
        topics=topics_of(pipeline),
        epoch=pipeline.config.epoch,
        task=task,
        wiring=wiring,
        run=loaded.run,
        result_port=_result_port(pipeline, loaded) if wiring.answers else None,
        feeds=_feeds(pipeline, ports, watched),
        max_payload_bytes=pipeline.payload_limit,
        join_timeout_s=pipeline.config.join.timeout_s,
        join_capacity=join_capacity(pipeline),
        ports=ports,
        wire_version=pipeline.manifest.wire,
        ids=pipeline.manifest.ids,
        names=names_of(pipeline),
        carry_on_after_s=pipeline.config.join.patience_s,
        share=f"{pipeline.config.epoch}-{index}" if replicas > 1 else "",
        deployed=deployed,
        delegate=applied_delegate(interpreter, delegate.value),
        saturations=tuple(watched.values()),
        program=loaded.program,
        window_bytes=_window_bytes(pipeline),
        sent=frozenset(spec.name for entry in pipeline.manifest.slices for spec in entry.outputs),
    )


def _window_bytes(pipeline: Pipeline) -> int:
    """Return the most bytes of a message with all sources of one window, whatever their reducers make of it.

    A value of a source takes at most 8 bytes in any code that is one, and heads and names a little.
    """
    values = sum(pipeline.task.stream.length * pipeline.channels(source) for source in pipeline.task.inputs)
    return HEAD_BYTES * (1 + len(pipeline.task.inputs)) + 8 * values


def _open_sandbox(path: Path, sha256: str, *, threads: int, fresh: bool, delegate: Delegate) -> Runner:
    """Load a slice in a process of its own, and log what of that process is not restricted."""
    from har_edge.inference.interpreter import read_slice
    from har_edge.inference.sandbox import SandboxedInterpreter
    from har_edge.inference.sandbox_child import NOT_IN_FORCE

    runner = SandboxedInterpreter(
        read_slice(path, sha256), f"slice {path}", threads=threads, fresh=fresh, delegate=delegate
    )
    _log.info("slice %s runs in a process of its own: %s", path, ", ".join(runner.in_force))
    for one in runner.in_force:
        if one.startswith(NOT_IN_FORCE):
            _log.warning("the process of slice %s: %s", path, one)
    return runner


def _check_files(folder: Path, entry: SliceEntry, check: LoadCheck, delegate: Delegate) -> None:
    """Run each file of a slice once in a process of its own, before the first one is loaded.

    Such a process takes as much memory as the file that it runs. A shard that held other files meanwhile would need
    more than the plan gave it.
    """
    from har_edge.inference.interpreter import read_slice

    files = {step.sha256: step.file for step in entry.steps} or {entry.sha256: entry.file}
    for sha256, file in files.items():
        check(read_slice(folder / file, sha256), f"slice {folder / file}", delegate.value)


def _result_port(pipeline: Pipeline, loaded: LoadedSlice) -> Port | None:
    """Return the port with the scores, of this slice or of an earlier one; None for a model without classes."""
    from har_edge.inference.interpreter import Port

    task = pipeline.task
    if not task.labels or task.anomaly is not None:
        return None
    found = loaded.output_port(task.output)
    if found is not None:
        return found
    spec = next(spec for entry in pipeline.manifest.slices for spec in entry.outputs if spec.name == task.output)
    one = next((one for one in task.arrays if one.tensor == task.output), ArrayOutput(task.output))
    return Port(spec.name, spec.shape, np.dtype(spec.dtype), one.scale, one.zero)


def _saturations(ports: Mapping[str, Port]) -> dict[str, Saturation]:
    """Return what counts the values of each source that saturate in its quantised input."""
    return {
        source: Saturation(source, f"input {port.name!r}", found, NODE_EVERY)
        for source, port in ports.items()
        if (found := range_of(port.dtype.name, port.scale, port.zero_point)) is not None
    }


def _feeds(pipeline: Pipeline, ports: Mapping[str, Port], watched: Mapping[str, Saturation]) -> dict[str, InputAdapter]:
    """Return how the codes of each source enter its input."""
    length, image = pipeline.task.stream.length, pipeline.task.image
    reducers = {source: reducer_of(pipeline, source) for source in ports}
    if image is not None:
        return {
            source: make_picture_adapter(source, reducers[source], port, image, watched.get(source))
            for source, port in ports.items()
        }
    return {
        source: make_input_adapter(
            source, reducers[source], port, length, pipeline.channels(source), watched.get(source)
        )
        for source, port in ports.items()
    }


def source_ids(pipeline: Pipeline) -> dict[str, int]:
    """Return what stands for the names of sources in messages: the ids of the tensors that they enter."""
    ids = pipeline.manifest.ids
    return {source: ids[enters.tensor] for source, enters in pipeline.task.inputs.items() if enters.tensor in ids}


def names_of(pipeline: Pipeline) -> dict[int, str]:
    """Return what short ids in messages stand for: a source where one enters that tensor, else the tensor's name."""
    tensors = {number: name for name, number in pipeline.manifest.ids.items()}
    return tensors | {number: source for source, number in source_ids(pipeline).items()}


def receive_max(wiring: Wiring) -> int:
    """Return how many messages a stage takes from the broker before it has acknowledged them; the others wait there.

    They are in its memory, so large ones are few. A stage that joins parts takes as many as ever: some of them wait for
    others that the broker would hold back.
    """
    if len(wiring.sources) + len(wiring.earlier) != 1:
        return RECEIVE_MAX
    size = sum(map(tensor_bytes, wiring.entry.inputs))
    return max(RECEIVE_LEAST, min(RECEIVE_MAX, RECEIVE_BYTES // max(1, size)))


def _check_shard(pipeline: Pipeline, wiring: Wiring) -> None:
    """Refuse a shard that would run without a source: the others of its group might have run with it."""
    if wiring.entry.steps and wiring.sources and pipeline.config.join.patience_s is not None:
        raise ConfigError(
            f'join.missing is "carry_on", and stage {wiring.index} is a shard that takes {", ".join(wiring.sources)}; '
            "shards of one group could run a window with different sources: cut the model so that one slice takes the "
            'sources, or set join.missing = "wait"'
        )


def join_capacity(pipeline: Pipeline) -> int:
    """Return how many windows may be under way: as many as the pipeline says, fewer where their messages are large."""
    return max(1, min(pipeline.config.join.capacity, UNDER_WAY_BYTES // largest_message(pipeline.manifest)))


def _check_replicas(wiring: Wiring, replicas: int) -> None:
    """Refuse turns at a stage whose parts come in several messages; sources may come in one, with `--combine`."""
    if replicas > 1 and not wiring.may_take_turns:
        raise ConfigError(
            f"{replicas} replicas of stage {wiring.index} came, which hears several others; expected one replica: the "
            "broker would give the parts of a window to different ones"
        )


def _warm_up(loaded: LoadedSlice, wiring: Wiring) -> None:
    """Run once, so that the first window is not the slow one; a model that refuses made-up values goes without."""
    try:
        loaded.run(loaded.sample(np.random.default_rng(0)))
    except MessageError as error:
        _log.info("slice %d was not warmed up: %s", wiring.index, error)


def build_sensor(pipeline: Pipeline, sources: Sequence[str], *, combine: bool = False, look: bool = False) -> Sensor:
    """Return the sensor of one or several sources.

    It counts values that saturate in its reducers, and with `look` those that will in the slices, whose files it reads.
    """
    reducers = {source: reducer_of(pipeline, source) for source in sources}
    setup = SensorSetup(
        topics=topics_of(pipeline),
        epoch=pipeline.config.epoch,
        reducers=reducers,
        labels=frozenset(pipeline.task.label_ids),
        combine=combine,
        max_payload_bytes=pipeline.payload_limit,
        first_room=min(FIRST_ROOM, join_capacity(pipeline)),
        wire_version=pipeline.manifest.wire,
        ids=source_ids(pipeline),
        raw_value_bytes=BYTES_A_RAW_VALUE if pipeline.task.image is None else 1,
        saturations=tuple(_watched(pipeline, reducers, look=look)),
        pieces={source: _pieces(pipeline, source, reducer) for source, reducer in reducers.items()},
    )
    return Sensor(setup)


def _pieces(pipeline: Pipeline, source: str, reducer: Reducer) -> tuple[SourcePiece, ...]:
    """Return the pieces in which shards take a source; none where its codes cannot be cut, sample by sample."""
    length, channels = pipeline.task.stream.length, pipeline.channels(source)
    if not isinstance(reducer, IdentityReducer | AffineQuantizer) or reducer.code_shape != (length, channels):
        return ()
    tensor, shape = pipeline.task.inputs[source].tensor, pipeline.source_shape(source)
    found = find_pieces(pipeline.manifest, source, tensor, shape, length, channels)
    taken = {ALL_SOURCES, *pipeline.task.inputs}
    return found if all(is_id(one.level) and one.level not in taken for one in found) else ()


def _watched(pipeline: Pipeline, reducers: Mapping[str, Reducer], *, look: bool) -> Iterator[Saturation]:
    """Yield what counts values that saturate: in the reducer, else (`look`) in the slice that they enter."""
    for source, reducer in reducers.items():
        found, taker = range_taken(reducer), f"reducer {reducer.spec!r}"
        if found is None and look and reducer.restores:
            tensor = pipeline.task.inputs[source].tensor
            found, taker = _range_of(pipeline, tensor), f"input {tensor!r}"
        if found is not None:
            yield Saturation(source, taker, found, NODE_EVERY)


def _range_of(pipeline: Pipeline, tensor: str) -> QuantizedRange | None:
    """Return the range of a quantised input, by the slice's file; None where it has none, or the file is not here."""
    from har_edge.tflite.model import read_model

    entry = next(one for one in pipeline.manifest.slices if any(spec.of == tensor for spec in one.inputs))
    spec, file = next(spec for spec in entry.inputs if spec.of == tensor), entry.file
    for step in entry.steps[::-1]:
        for taken in step.inputs:
            if taken.of == tensor:
                tensor, file = taken.name, step.file
    path = pipeline.folder / pipeline.config.slices / file
    if spec.dtype not in QUANTISED or not path.is_file():  # a sensor does without the slices
        return None
    graph = read_model(path).main
    found = next((one.raw.quantization for one in graph.tensors if one.name == tensor), None)
    scales = [] if found is None or found.scale is None else list(found.scale)
    zero = 0 if found is None or found.zeroPoint is None or not len(found.zeroPoint) else int(found.zeroPoint[0])
    return range_of(spec.dtype, float(scales[0]), zero) if len(scales) == 1 else None


def batches_of(
    pipeline: Pipeline, recordings: Iterable[Recording], *, speed: float | None, batch: int, limit: int | None
) -> Iterator[Batch]:
    """Yield the windows of several recordings as they fall due, `batch` consecutive ones of a stream together.

    `limit` bounds the windows of each stream.
    """
    stream = pipeline.task.stream

    def of_one(recording: Recording) -> Iterator[Batch]:
        due = itertools.islice(replay(recording, stream.length, stream.hop, speed), limit)
        while group := list(itertools.islice(due, batch)):
            yield group

    if speed is None:
        return _in_turn([of_one(recording) for recording in recordings])
    return heapq.merge(*map(of_one, recordings), key=lambda group: group[-1][0])


def count_windows(pipeline: Pipeline, recordings: Iterable[Recording], limit: int | None) -> int:
    """Return how many windows `batches_of` makes."""
    stream = pipeline.task.stream
    cut = (windows(recording, stream.length, stream.hop, within_activity=False) for recording in recordings)
    return sum(sum(1 for _ in itertools.islice(one, limit)) for one in cut)


def _in_turn(streams: list[Iterator[Batch]]) -> Iterator[Batch]:
    while streams:
        for stream in list(streams):
            group = next(stream, None)
            if group is None:
                streams.remove(stream)
            else:
                yield group
