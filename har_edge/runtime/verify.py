"""Prove that stages, which run the slices of a model and send each other messages, give the bits of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from har_edge.config.pipeline_config import MQTT_MAX_BYTES
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.config.wiring import find_wiring, is_batched
from har_edge.errors import HarEdgeError, MessageError, ModelError
from har_edge.inference.interpreter import Array, Delegate, Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.shard_program import ShardProgram
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol import wire
from har_edge.protocol.topics import ALL_SOURCES, Topics
from har_edge.runtime.stage.setup import Run, StageSetup
from har_edge.runtime.stage.stage import Stage
from har_edge.tflite.folder import make_manifest
from har_edge.tflite.manifest import NEWEST_WIRE, SliceManifest
from har_edge.tflite.model import Model
from har_edge.tflite.slices import Slice, slice_model, write_slice, write_whole

RUNS = 3
SEED = 0
_OTHER_BATCH = 3
_STREAM, _TOPICS, _EPOCH = "check", Topics("har", "check"), 1


@dataclass(frozen=True, slots=True)
class CutCheck:
    """The result of one way to cut: `difference` says what was not equal, None when every bit was."""

    cuts: tuple[int, ...]
    difference: str | None


@dataclass(frozen=True, slots=True)
class WholeRun:
    """One run of the whole model: how many windows, what went in and what came out, by the names of the slices."""

    count: int
    values: dict[str, Array]
    results: dict[str, Array]


def check_cuts(
    model: Model,
    ways: Sequence[Sequence[int]],
    *,
    runs: int = RUNS,
    threads: int = 1,
    wire_version: int = NEWEST_WIRE,
    delegate: Delegate = Delegate.XNNPACK,
) -> Iterator[CutCheck]:
    """Compare the whole model with its stages, for each way to cut, and yield each result as it is known.

    All inputs and crossing tensors go through messages of that wire version, and each stage checks them as in a
    pipeline. Every way runs `runs` random inputs in a row, so that recurrent state counts, and where messages may carry
    several windows as many again with a batch of 3. Raises ModelError when the runtime cannot run the whole model, and
    when the whole model itself gives different results for the same input (then nothing can be proven).
    """
    load = partial(Interpreter, threads=threads, delegate=delegate)
    expected = run_whole(model, runs, load)
    for cuts in ways:
        pieces = slice_model(model, cuts)
        yield CutCheck(tuple(cuts), _difference(model, pieces, expected, load, wire_version))


def run_whole(model: Model, runs: int, load: Callable[[bytes], Interpreter]) -> list[WholeRun]:
    """Run the model as it stands in its file, twice."""
    try:
        content = write_whole(model)
        whole, again = load(content), load(content)
    except ModelError as error:
        raise ModelError(
            f"{model.name}: the runtime cannot run the whole model here, so nothing can be compared: {error}; "
            "cut it without --check"
        ) from error
    names = [model.main.tensors[i].name for i in model.main.inputs]
    outs = [model.main.tensors[i].name for i in model.main.outputs]
    rng = np.random.default_rng(SEED)
    batches = [1] * runs
    if any(-1 in port.shape[:1] for port in whole.inputs):
        batches += [_OTHER_BATCH] * runs
    expected = []
    for batch in batches:
        values = sample(whole.inputs, rng, batch=batch)
        try:
            results, repeated = whole.run(values), again.run(values)
        except MessageError as error:
            if batch > 1:
                break  # it takes one window at a time, and so do its slices
            raise ModelError(
                f"{model.name}: the whole model cannot run random inputs, so nothing can be compared: {error}"
            ) from error
        if any(_bits(results[name]) != _bits(repeated[name]) for name in results):
            raise ModelError(
                f"{model.name} gives another result for the same input each time, so nothing can be compared"
            )
        expected.append(
            WholeRun(
                batch,
                dict(zip(names, values.values(), strict=True)),
                dict(zip(outs, (results[port.name] for port in whole.outputs), strict=True)),
            )
        )
    return expected


def _difference(
    model: Model,
    pieces: Sequence[Slice],
    expected: Sequence[WholeRun],
    load: Callable[[bytes], Interpreter],
    wire_version: int,
) -> str | None:
    try:
        line = MessageLine(model, make_manifest(model, pieces, wire=wire_version))
    except HarEdgeError as error:
        return str(error)
    runs = [run for run in expected if run.count == 1 or line.batched]
    made = [dict(run.values) for run in runs]  # an output that is an input needs no stage
    posts: list[list[Outgoing]] = [line.windows(number, run) for number, run in enumerate(runs)]
    for number, piece in enumerate(pieces):
        # One slice at a time, all runs through it: only one set of weights is in memory.
        try:
            interpreter = load(bytes(write_slice(model, piece)))
            stage, heard = line.stage(number, interpreter, made), line.filters(number)
            for index, post in enumerate(posts):
                stage.run = index
                for outgoing in [one for one in post if one.topic in heard]:
                    post += stage.handle(outgoing)
                if stage.complaint:
                    return f"slice {number}: {stage.complaint}"
        except (MessageError, ModelError) as error:
            return f"slice {number}: {error}"
    for run, values in zip(runs, made, strict=True):
        for name, wanted in run.results.items():
            if name not in values:
                return f"output {name}: no stage gave it"
            if not _same(wanted, values[name]):
                return f"output {name}: {_describe(wanted, values[name])}"
    return None


class MessageLine:
    """The stages of one way to cut, and the messages between them."""

    def __init__(self, model: Model, manifest: SliceManifest) -> None:
        tensors = [model.main.tensors[i].name for i in model.main.inputs]
        self._sources = {f"source-{number}": tensor for number, tensor in enumerate(tensors)}
        inputs = {source: SourceInput(tensor) for source, tensor in self._sources.items()}
        self._task = Task(StreamTask("none", 1.0, 1, 1), inputs, "", [], [])
        self._manifest, ids = manifest, manifest.ids
        self._ids = {source: ids[tensor] for source, tensor in self._sources.items() if tensor in ids}
        self._names = {number: name for name, number in ids.items()}
        self._names |= {number: source for source, number in self._ids.items()}
        self._wirings = [find_wiring(manifest, self._task, number) for number in range(len(manifest.slices))]
        self.batched = all(
            is_batched(spec)
            for wiring in self._wirings
            for spec in (*wiring.entry.inputs, *wiring.entry.outputs)
            if spec.name in wiring.sends or spec in wiring.entry.inputs
        )

    def windows(self, number: int, run: WholeRun) -> list[Outgoing]:
        """Return the message that sensors send for the windows of a run."""
        codes = {source: run.values[tensor] for source, tensor in self._sources.items()}
        seq = number * _OTHER_BATCH
        message = wire.Message(_STREAM, seq, _EPOCH, (0.0,) * run.count, codes)
        payload = wire.encode(message, self._manifest.wire, self._ids)
        return [Outgoing(_TOPICS.window(_STREAM, ALL_SOURCES), payload)]

    def filters(self, number: int) -> set[str]:
        """Return the topics that a stage needs messages of."""
        wiring = self._wirings[number]
        windows = {_TOPICS.window(_STREAM, ALL_SOURCES)} if wiring.sources else set[str]()
        return windows | {_TOPICS.activation(_EPOCH, level, _STREAM) for level in wiring.levels}

    def stage(self, number: int, interpreter: Interpreter, made: Sequence[dict[str, Array]]) -> _Checked:
        """Return a stage that notes what its slice gives, in the entry of the run that it is told."""
        return _Checked(self.setup(number, interpreter.run), made)

    def setup(self, number: int, run: Run, program: ShardProgram | None = None) -> StageSetup:
        """Return the setup of a stage that gives no results, only activations."""
        wiring = self._wirings[number]
        return StageSetup(
            topics=_TOPICS,
            epoch=_EPOCH,
            task=self._task,
            wiring=wiring,
            run=run,
            result_port=None,
            feeds={source: lambda codes, count=1: codes for source in wiring.sources},
            max_payload_bytes=MQTT_MAX_BYTES,
            join_timeout_s=3600.0,
            join_capacity=16,
            wire_version=self._manifest.wire,
            ids=self._manifest.ids,
            names=self._names,
            program=program,
        )


class _Checked:
    """A stage, and what its slice gives for each run."""

    def __init__(self, setup: StageSetup, made: Sequence[dict[str, Array]]) -> None:
        self.run = 0

        def run(values: Mapping[str, Array]) -> Mapping[str, Array]:
            results = setup.run(values)
            made[self.run].update(results)
            return results

        self._stage = Stage(replace(setup, run=run), clock=lambda: 0.0, monotonic=lambda: 0.0)
        self._token = 0

    @property
    def complaint(self) -> str:
        return self._stage.complaint

    def handle(self, outgoing: Outgoing) -> list[Outgoing]:
        self._token += 1
        return self._stage.handle(Delivery(outgoing.topic, outgoing.payload, (0, self._token)))


def _same(wanted: Array, got: Array) -> bool:
    # By bytes: -0.0 is not 0.0. Any NaN equals any other: kernels give them a sign and a payload of their own.
    return wanted.shape == got.shape and wanted.dtype == got.dtype and _bits(wanted) == _bits(got)


def _bits(array: Array) -> bytes:
    if array.dtype.kind not in "fc":
        return array.tobytes()
    return np.where(np.isnan(array), np.array(np.nan, array.dtype), array).tobytes()


def _describe(wanted: Array, got: Array) -> str:
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return f"{got.dtype} {list(got.shape)} instead of {wanted.dtype} {list(wanted.shape)}"
    different = int(np.count_nonzero(wanted != got))
    return f"{different} of {wanted.size} elements differ"
