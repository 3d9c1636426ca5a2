"""The messages of split training: one model over several devices, each with the weights of its stages.

They are MessagePack maps below `train/<run>/`, on levels of their own, so that devices which know nothing of them hear
nothing of them. A key that a reader does not know is passed over.

    split                 retained: the training, which nodes answer with a report
    stages                retained: who holds which stage, and from which step all go on
    stage/<worker>        the report of a worker; its will says that it is lost
    forward/<worker>      what enters a stage, for one micro-batch
    backward/<worker>     the gradients of what left it
    labels/<worker>       targets and sample weights for the last stage
    loss/<worker>         the loss of one micro-batch, from the last stage
    done/<worker>         a step of a stage is done, and how long it took
    reduce/<worker>       the gradients of a stage, between its replicas
    state/<worker>        weights and state of the optimizer, to a neighbour or a successor
    saved/<worker>        the same, from this worker to the command that trains
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias

import msgspec

from har_edge.errors import MessageError
from har_edge.protocol.training import MAX_JSON_BYTES, MAX_ROUND_BYTES, TrainingFile, VectorPart
from har_edge.protocol.training_fields import Name, Number, Seconds, Sha256, Size, Text

VERSION = 1
MAX_STAGES = 64
MAX_REPLICAS = 64
MAX_MICRO_BATCHES = 4096
MAX_IN_FLIGHT = 4096
MAX_LOSS = 1e30
# The formats of what a VectorPart carries here: the bytes of tensors, one after the other, and those of a state.
TENSORS, STATE = "tensors", "state"

_Operator = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_StageIndex = Annotated[int, msgspec.Meta(ge=0, lt=MAX_STAGES)]
_Micro = Annotated[int, msgspec.Meta(ge=0, lt=MAX_MICRO_BATCHES)]
_Micros = Annotated[int, msgspec.Meta(ge=1, le=MAX_MICRO_BATCHES)]
_Slot = Annotated[int, msgspec.Meta(ge=0, lt=MAX_REPLICAS)]
_Figure = Annotated[float, msgspec.Meta(ge=-MAX_LOSS, le=MAX_LOSS)]


class SplitLevel(str, enum.Enum):
    """The kinds of message of a split training; all but the first two are followed by a worker's name."""

    SPLIT = "split"
    STAGES = "stages"
    STAGE = "stage"
    FORWARD = "forward"
    BACKWARD = "backward"
    LABELS = "labels"
    LOSS = "loss"
    DONE = "done"
    REDUCE = "reduce"
    STATE = "state"
    SAVED = "saved"


class SplitState(str, enum.Enum):
    """The state of a worker, as it says itself, or its last will."""

    READY = "ready"  # it may be given stages
    LOADED = "loaded"  # it has loaded the stages of `generation`
    FAILED = "failed"  # it cannot go on; `detail` says why
    STOPPED = "stopped"
    LOST = "lost"


class SplitStage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One stage of a plan: operators [start, stop), and the workers that hold its weights.

    With `keep`, the forward pass also gives what the backward pass reads, which is held until then; else the backward
    pass computes it anew. A worker has at most `in_flight` micro-batches that went forward and not yet back. Several
    workers are replicas: micro-batch m goes to `workers[slots[m % len(slots)]]`, by default to each in turn.
    """

    start: _Operator
    stop: _Operator
    workers: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=MAX_REPLICAS)]
    keep: bool = False
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=MAX_IN_FLIGHT)] = 1
    slots: Annotated[tuple[_Slot, ...], msgspec.Meta(max_length=256)] = ()

    def replica(self, micro: int) -> int:
        """Return which of the workers takes a micro-batch."""
        if self.slots:
            return self.slots[micro % len(self.slots)] % len(self.workers)
        return micro % len(self.workers)


class SplitTrainingPlan(msgspec.Struct, frozen=True):
    """The stages in order, and the size and number of the micro-batches of one step."""

    stages: Annotated[tuple[SplitStage, ...], msgspec.Meta(min_length=1, max_length=MAX_STAGES)]
    micro_batch: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    micro_batches: _Micros

    @property
    def batch(self) -> int:
        """How many samples a step has."""
        return self.micro_batch * self.micro_batches

    @property
    def workers(self) -> tuple[str, ...]:
        """All workers, each once, in the order of the stages."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.workers))


class SplitJob(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The training, retained as long as it runs. `probe` is a training graph that each node times, and `probe_spec` its
    description.
    """

    version: int = VERSION
    run: Name
    author: Text
    started: Seconds
    probe: TrainingFile
    probe_spec: TrainingFile
    model: Text = ""
    data: Text = ""
    sealed: Text = ""


class StageFiles(msgspec.Struct, frozen=True, omit_defaults=True):
    """The files of a stage: its description, and its graphs where it has them (learning/split/graphs.py)."""

    spec: TrainingFile
    forward: TrainingFile | None = None
    backward: TrainingFile | None = None


class StateSource(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state that a stage goes on from: its hash, the worker that has it, and those that it sends it to.

    Without a `holder` it is a file that the command has published.
    """

    file: TrainingFile
    holder: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_-]{0,128}\Z")] = ""
    lacking: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_REPLICAS)] = ()


class AssignedStage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stage with its files, the state that it begins with, and the neighbour that keeps a copy of it."""

    stage: SplitStage
    files: StageFiles
    state: StateSource
    neighbour: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_-]{0,128}\Z")] = ""


class SplitAssignment(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Who holds which stage, retained. Messages of an earlier generation count no more; `step` steps are done."""

    version: int = VERSION
    run: Name
    author: Text
    generation: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    step: Number
    stages: Annotated[tuple[AssignedStage, ...], msgspec.Meta(min_length=1, max_length=MAX_STAGES)]
    micro_batch: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    micro_batches: _Micros
    optimizer: Text
    sealed: Text = ""

    @property
    def plan(self) -> SplitTrainingPlan:
        """The plan that this carries out."""
        return SplitTrainingPlan(tuple(one.stage for one in self.stages), self.micro_batch, self.micro_batches)


class HeldState(msgspec.Struct, frozen=True, array_like=True):
    """A state that a worker has: of operators [start, stop) after `step` steps."""

    start: _Operator
    stop: _Operator
    step: Number
    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class SplitReport(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The word of a worker, with each change and once a second.

    `memory_bytes` is what it may use for training, 0 where it does not know; `probe_s` the seconds of one run of the
    job's probe; `peak_bytes` the most memory that it has used. `step` steps are done in `generation`. `lacks` is a file
    that it could not fetch.
    """

    version: int = VERSION
    run: Name
    author: Text
    worker: Name
    instance: Text
    state: SplitState
    detail: Text = ""
    software: Text = ""
    memory_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    probe_s: Seconds = 0.0
    peak_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    generation: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0
    step: Number = 0
    held: Annotated[tuple[HeldState, ...], msgspec.Meta(max_length=4 * MAX_STAGES)] = ()
    lacks: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    reconnects: Number = 0
    sealed: Text = ""


class _Data(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The head of all that stages send each other."""

    version: int = VERSION
    run: Name
    author: Text
    sender: Text
    generation: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    stage: _StageIndex
    step: Number
    part: VectorPart
    sealed: Text = ""


class MicroBatch(_Data, frozen=True, omit_defaults=True, kw_only=True):
    """Part of the tensors of a micro-batch, for a stage: what enters it, the gradients of what left it, or labels.

    `micros` is how many micro-batches the step has, `samples` how many samples. After a step with `snapshot` each stage
    copies its state to its neighbour, with `save` to the command, too. States before step `committed` are not needed
    any more.
    """

    micro: _Micro
    micros: _Micros
    samples: Size
    snapshot: bool = False
    save: bool = False
    committed: Number = 0


class GradientShare(_Data, frozen=True, omit_defaults=True, kw_only=True):
    """Part of the gradients of a replica for a step, to the first replica; with `total`, the sum of all from there.

    The sum brings what a replica without a micro-batch of the step has to know of it, as MicroBatch does.
    """

    total: bool = False
    micros: _Micros
    samples: Size
    snapshot: bool = False
    save: bool = False
    committed: Number = 0


class StateMessage(_Data, frozen=True, omit_defaults=True, kw_only=True):
    """Part of the state of a stage after `step` steps (learning/split/state.py)."""

    held: HeldState


class MicroLoss(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The sums over a micro-batch: its loss, and how many samples were classified as they should be."""

    version: int = VERSION
    run: Name
    author: Text
    worker: Name
    generation: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    step: Number
    micro: _Micro
    loss: _Figure
    correct: Number = 0
    sealed: Text = ""


class StageDone(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A worker has done a step of a stage: `step` steps are done.

    `forward_s`, `backward_s` and `update_s` are the seconds that it computed, `idle_s` those that it waited since the
    step before, `longest_s` the longest of its operations. Bytes are those of the tensors and gradients of the step.
    """

    version: int = VERSION
    run: Name
    author: Text
    worker: Name
    generation: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    stage: _StageIndex
    step: Number
    forward_s: Seconds = 0.0
    backward_s: Seconds = 0.0
    update_s: Seconds = 0.0
    idle_s: Seconds = 0.0
    longest_s: Seconds = 0.0
    sent_bytes: Number = 0
    peak_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    problem: Text = ""
    sealed: Text = ""


SplitMessage: TypeAlias = (
    SplitJob | SplitAssignment | SplitReport | MicroBatch | GradientShare | StateMessage | MicroLoss | StageDone
)
_TYPES: Mapping[SplitLevel, tuple[Any, int]] = MappingProxyType(
    {
        SplitLevel.SPLIT: (SplitJob, MAX_JSON_BYTES),
        SplitLevel.STAGES: (SplitAssignment, MAX_JSON_BYTES),
        SplitLevel.STAGE: (SplitReport, MAX_JSON_BYTES),
        SplitLevel.FORWARD: (MicroBatch, MAX_ROUND_BYTES),
        SplitLevel.BACKWARD: (MicroBatch, MAX_ROUND_BYTES),
        SplitLevel.LABELS: (MicroBatch, MAX_ROUND_BYTES),
        SplitLevel.LOSS: (MicroLoss, MAX_JSON_BYTES),
        SplitLevel.DONE: (StageDone, MAX_JSON_BYTES),
        SplitLevel.REDUCE: (GradientShare, MAX_ROUND_BYTES),
        SplitLevel.STATE: (StateMessage, MAX_ROUND_BYTES),
        SplitLevel.SAVED: (StateMessage, MAX_ROUND_BYTES),
    }
)
_decoders: Mapping[SplitLevel, Callable[[bytes], Any]] = {
    level: msgspec.msgpack.Decoder(kind).decode for level, (kind, _) in _TYPES.items()
}
_UNNAMED = (SplitLevel.SPLIT, SplitLevel.STAGES)
SPLIT_LEVELS = frozenset(level.value for level in SplitLevel)


def decode_split(levels: tuple[str, ...], payload: bytes) -> SplitMessage | None:
    """Return the message on `train/<levels>`; None for an empty one, which removes what was retained.

    Raises MessageError for one that is malformed, too large, sealed, of another version, or not of its topic.
    """
    run, level_text, *worker = levels
    level = SplitLevel(level_text)
    if bool(worker) is (level in _UNNAMED):
        raise MessageError(
            f"train/{'/'.join(levels)} came; expected {'no' if worker else 'a'} worker after {level_text}"
        )
    if not payload:
        return None
    limit = _TYPES[level][1]
    if len(payload) > limit:
        raise MessageError(f"a {level_text} of {len(payload)} bytes came; expected at most {limit}")
    try:
        message: SplitMessage = _decoders[level](payload)
    # msgspec has no error of its own for broken UTF-8 and for deep nesting.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(
            f"what came is no {level_text} of a split training: {error}; see docs/reference/wire.md"
        ) from None
    _check(message, level_text, run, worker)
    return message


def _check(message: SplitMessage, level: str, run: str, worker: list[str]) -> None:
    if message.run != run:
        raise MessageError(f"a {level} of run {message.run!r} came on the topic of {run!r}; expected its own")
    if message.version != VERSION:
        raise MessageError(
            f"a {level} of version {message.version} came; expected {VERSION}: update the older of the two"
        )
    if message.sealed:
        raise MessageError(f"a {level} sealed with {message.sealed!r} came; this version opens none")
    if isinstance(message, SplitReport | MicroLoss | StageDone) and [message.worker] != worker:
        raise MessageError(f"a {level} of {message.worker!r} came on the topic of {worker[0]!r}; expected its own")
    if isinstance(message, _Data) and message.part.part >= message.part.parts:
        raise MessageError(f"part {message.part.part} of {message.part.parts} came; expected one below the number")
    if isinstance(message, MicroBatch) and message.micro >= message.micros:
        raise MessageError(f"micro-batch {message.micro} of {message.micros} came; expected one below the number")
    if isinstance(message, SplitAssignment):
        _check_assignment(message)


def _check_assignment(message: SplitAssignment) -> None:
    place = message.stages[0].stage.start
    for one in message.stages:
        stage = one.stage
        if stage.start != place or stage.stop <= stage.start:
            raise MessageError(
                f"a stage of operators {stage.start} to {stage.stop} came after one that ends at {place}; expected "
                "stages that follow each other"
            )
        if len(set(stage.workers)) != len(stage.workers):
            raise MessageError(f"stage {stage.start} to {stage.stop} names a worker twice; expected each once")
        if any(slot >= len(stage.workers) for slot in stage.slots):
            raise MessageError(f"stage {stage.start} to {stage.stop} has a slot without a worker")
        place = stage.stop
