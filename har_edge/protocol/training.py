"""The messages of a training on the devices: the job, its rounds, what workers send back, checkpoints and progress.

All but the progress, which people read, are MessagePack maps: a key that a reader does not know is passed over, so that
later versions may add keys. `sealed` names the way in which what follows is encrypted; this version knows none.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import msgspec

from har_edge.errors import MessageError
from har_edge.protocol.masks import MASKED_VERSION, MaskPart, MaskRelay, MaskTerms, check_contents
from har_edge.protocol.training_fields import (
    MAX_PARAMETERS,
    MAX_WORKERS,
    VERSION,
    Name,
    Number,
    Seconds,
    Sha256,
    Size,
    Text,
)
from har_edge.protocol.training_results import MAX_RANGES_BYTES, ModelNote, RangeReport, RangeRequest

MAX_JOB_BYTES = 1024 * 1024
MAX_JSON_BYTES = 256 * 1024
# The most bytes of one part of a vector: a small broker forwards it without holding up the rest of a connection.
PART_BYTES = 1024 * 1024
# Beside the part, a message names the samples of each worker.
MAX_ROUND_BYTES = PART_BYTES + 1024 * 1024
MAX_PARTS = 1024
MAX_BLOCKS = 4096
MAX_RANGES = 4096
MAX_CLIP, MAX_NOISE = 1e12, 1e6

# An epoch is one of four 32-bit words that seed the order of its samples (learning/data/blocks.py).
Epoch = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_Source = tuple[Annotated[str, msgspec.Meta(max_length=100)], Size]
Sources = Annotated[tuple[_Source, ...], msgspec.Meta(max_length=256)]


class TrainingLevel(str, enum.Enum):
    """The kinds of message below `train/<run>/`.

    UPDATE, WORKER, RANGES and MASK must be followed by a worker's name, ROUND and RELAY may.
    """

    JOB = "job"
    ROUND = "round"
    UPDATE = "update"
    WORKER = "worker"
    PROGRESS = "progress"
    CHECKPOINT = "checkpoint"
    CALIBRATE = "calibrate"
    RANGES = "ranges"
    MODEL = "model"
    MASK = "mask"
    RELAY = "relay"


class WorkerState(str, enum.Enum):
    """The state of a worker, as it says itself, or its last will."""

    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"


class RunState(str, enum.Enum):
    """The state of a training."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"


class TrainingFile(msgspec.Struct, frozen=True, array_like=True):
    """A file that workers fetch (`file/<sha256>`), and its bytes."""

    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class BlockFile(msgspec.Struct, frozen=True, array_like=True):
    """A block of samples as a file that workers fetch, and how many samples it has."""

    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    samples: Size

    @property
    def file(self) -> TrainingFile:
        """The block as a file."""
        return TrainingFile(self.sha256, self.size)


class TrainingJob(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The training, retained as long as it runs: what workers need before its first round.

    `author` is new with each start of the server: what was made for another is not used. `batch` is that of the graph,
    `parameters` the length of its flat vector of weights. `shape` is that of one sample, `classes` their names, empty
    where the target is no class. With `own` each worker trains on samples of its own, which it gives no one; the blocks
    are empty then. `clip` bounds the Euclidean norm of what a worker sends, `noise` is the standard deviation of the
    noise that it adds, in units of `clip`. `sources` names what stands along the last axis of a sample, each with its
    channels, where a model has several inputs. With `mask` workers add masks that cancel in the sum
    (protocol/masks.py), and the version is MASKED_VERSION.
    """

    version: int = VERSION
    run: Name
    author: Text
    started: Seconds
    graph: TrainingFile
    spec: TrainingFile
    batch: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    parameters: Size
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=8)]
    classes: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=100)], ...], msgspec.Meta(max_length=4096)] = ()
    blocks: Annotated[tuple[BlockFile, ...], msgspec.Meta(max_length=MAX_BLOCKS)] = ()
    own: bool = False
    compress: Text = "none"
    seed: Number = 0
    clip: Annotated[float, msgspec.Meta(ge=0, le=MAX_CLIP)] = 0.0
    noise: Annotated[float, msgspec.Meta(ge=0, le=MAX_NOISE)] = 0.0
    data: Text = ""
    sources: Sources = ()
    mask: bool = False
    sealed: Text = ""


class VectorPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """One part of a packed vector of `size` numbers: `kind` says how it is packed (learning/updates/compression.py)."""

    kind: Annotated[str, msgspec.Meta(max_length=32)]
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_PARAMETERS)]
    data: Annotated[bytes, msgspec.Meta(max_length=PART_BYTES)]
    part: Annotated[int, msgspec.Meta(ge=0, lt=MAX_PARTS)] = 0
    parts: Annotated[int, msgspec.Meta(ge=1, le=MAX_PARTS)] = 1


class SampleRange(msgspec.Struct, frozen=True, array_like=True, order=True):
    """The samples [start, stop) of a block, by their places in the order of the epoch (learning/server/account.py)."""

    block: Annotated[int, msgspec.Meta(ge=0, lt=MAX_BLOCKS)]
    start: Annotated[int, msgspec.Meta(ge=0, le=MAX_PARAMETERS)]
    stop: Annotated[int, msgspec.Meta(ge=0, le=MAX_PARAMETERS)]

    @property
    def samples(self) -> int:
        """How many samples these are."""
        return self.stop - self.start


class TrainingTask(msgspec.Struct, frozen=True, omit_defaults=True):
    """The share of a worker in a round: which samples, and after how many seconds it sends what it has by then.

    `number` is unique in a run of the server, `after` that of the worker's last task whose update was counted.
    """

    number: Number
    ranges: Annotated[tuple[SampleRange, ...], msgspec.Meta(min_length=1, max_length=MAX_RANGES)]
    budget_s: Seconds
    after: Number = 0

    @property
    def samples(self) -> int:
        """How many samples these are."""
        return sum(one.samples for one in self.ranges)


class Round(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A round: the weights that it begins with, and who computes what.

    With an `optimizer` each worker makes steps of its own and sends the change of its weights; without, it sends the
    sum of the gradients over its samples, packed as `compress` says. `seed` is that of the epoch's order. `mask` has
    the terms of the masked sum that the updates are for.
    """

    version: int = VERSION
    run: Name
    author: Text
    number: Number
    epoch: Epoch
    seed: Number
    tasks: Annotated[dict[Name, TrainingTask], msgspec.Meta(max_length=MAX_WORKERS)]
    weights: VectorPart
    optimizer: Text = ""
    compress: Text = "none"
    mask: MaskTerms | None = None
    sealed: Text = ""


class Update(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The outcome of a task, for its first `samples` samples in the order of its ranges.

    `loss` is a sum over them, `correct` how many were classified as they should be, before the step that used them;
    a masked vector holds both. `seconds` is the time that its steps took.
    `problem` says why it has nothing to send, `samples` is 0 then.
    """

    version: int = VERSION
    run: Name
    author: Text
    worker: Name
    round: Number
    task: Number
    samples: Number
    vector: VectorPart
    loss: float = 0.0
    correct: Number = 0
    seconds: Seconds = 0.0
    problem: Text = ""
    sealed: Text = ""


class WorkerReport(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The word of a worker that has made ready for a job, cannot, or leaves; its will says that it is lost.

    `step_s` is the time of one step with a full batch, `samples` how many samples of its own it has, `shape` and
    `classes` those of its data, `heard` the number of the last task that came, `lacks` a file that it could not fetch.
    """

    version: int = VERSION
    run: Name
    author: Text
    worker: Name
    instance: Text
    state: WorkerState
    detail: Text = ""
    software: Text = ""
    step_s: Seconds = 0.0
    samples: Annotated[int, msgspec.Meta(ge=0, le=MAX_PARAMETERS)] = 0
    heard: Number = 0
    lacks: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=8)] = ()
    classes: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=100)], ...], msgspec.Meta(max_length=4096)] = ()
    key: Annotated[bytes, msgspec.Meta(max_length=256)] = b""
    sealed: Text = ""


class CheckpointNote(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The place of the last checkpoint, retained; `settings` is the hash of what has to be the same to go on."""

    version: int = VERSION
    run: Name
    author: Text
    file: TrainingFile
    settings: Sha256
    round: Number
    epoch: Number
    sealed: Text = ""


class WorkerProgress(msgspec.Struct, frozen=True):
    """The part of a worker: its samples in this run, its speed, the bytes of its updates, and whether it takes part."""

    name: Name
    active: bool = True
    samples: Number = 0
    samples_per_s: Seconds = 0.0
    received_bytes: Number = 0
    dropped: Number = 0
    detail: Text = ""


class TrainingProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a training is, as JSON for people and dashboards, retained.

    `loss` and `train_accuracy` are means over the samples of the last round, `accuracy` that on `held_out` samples, at
    the end of `accuracy_epoch`. `privacy` is what was spent, in words, where updates have noise. `received_bytes` are
    those of updates, `sent_bytes` those of rounds.
    """

    run: Name
    author: Text
    state: RunState
    time: Seconds
    model: Text = ""
    round: Number = 0
    epoch: Number = 0
    epochs: Number = 0
    counted: Number = 0
    samples: Number = 0
    loss: float | None = None
    train_accuracy: float | None = None
    accuracy: float | None = None
    accuracy_epoch: Number = 0
    held_out: Number = 0
    samples_per_s: Seconds = 0.0
    sent_bytes: Number = 0
    received_bytes: Number = 0
    dropped: Number = 0
    mode: Text = ""
    data: Text = ""
    real: bool = False
    broker: Text = ""
    detail: Text = ""
    privacy: Text = ""
    workers: Annotated[tuple[WorkerProgress, ...], msgspec.Meta(max_length=MAX_WORKERS)] = ()


TrainingMessage = (
    TrainingJob
    | Round
    | Update
    | WorkerReport
    | CheckpointNote
    | TrainingProgress
    | RangeRequest
    | RangeReport
    | ModelNote
    | MaskPart
    | MaskRelay
)
# The type of each level, its most bytes, and how it is written.
_PACKED: Mapping[TrainingLevel, tuple[Any, int]] = MappingProxyType(
    {
        TrainingLevel.JOB: (TrainingJob, MAX_JOB_BYTES),
        TrainingLevel.ROUND: (Round, MAX_ROUND_BYTES),
        TrainingLevel.UPDATE: (Update, MAX_ROUND_BYTES),
        TrainingLevel.WORKER: (WorkerReport, MAX_JSON_BYTES),
        TrainingLevel.CHECKPOINT: (CheckpointNote, MAX_JSON_BYTES),
        TrainingLevel.CALIBRATE: (RangeRequest, MAX_JSON_BYTES),
        TrainingLevel.RANGES: (RangeReport, MAX_RANGES_BYTES),
        TrainingLevel.MODEL: (ModelNote, MAX_JSON_BYTES),
        TrainingLevel.MASK: (MaskPart, MAX_JSON_BYTES),
        TrainingLevel.RELAY: (MaskRelay, MAX_JSON_BYTES),
    }
)
_decoders: Mapping[TrainingLevel, Callable[[bytes], Any]] = {
    level: msgspec.msgpack.Decoder(kind).decode for level, (kind, _) in _PACKED.items()
} | {TrainingLevel.PROGRESS: msgspec.json.Decoder(TrainingProgress).decode}
_LIMITS = {level: limit for level, (_, limit) in _PACKED.items()} | {TrainingLevel.PROGRESS: MAX_JSON_BYTES}
# Levels that a worker's name follows: never, or always; after a round and a relay it may.
_NAMED = {
    TrainingLevel.UPDATE: True,
    TrainingLevel.WORKER: True,
    TrainingLevel.MASK: True,
    TrainingLevel.RANGES: True,
    TrainingLevel.ROUND: None,
    TrainingLevel.RELAY: None,
}
encode_progress = msgspec.json.Encoder().encode
encode_training = msgspec.msgpack.Encoder().encode
_Message = TypeVar("_Message", bound=TrainingMessage)


def decode_training(levels: tuple[str, ...], payload: bytes) -> TrainingMessage | None:
    """Return the message on `train/<levels>`; None for an empty one, which removes what was retained.

    Raises MessageError for one that is malformed, too large, sealed, of another version, or not of its topic.
    """
    run, level_text, *worker = levels
    try:
        level = TrainingLevel(level_text)
    except ValueError:
        known = ", ".join(one.value for one in TrainingLevel)
        raise MessageError(f"train/{run}/{level_text} came; expected one of {known}") from None
    named = _NAMED.get(level, False)
    if named is not None and bool(worker) is not named:
        raise MessageError(
            f"train/{'/'.join(levels)} came; expected {'a' if named else 'no'} worker after {level.value}"
        )
    if not payload:
        return None
    if len(payload) > _LIMITS[level]:
        raise MessageError(f"{_named(level)} of {len(payload)} bytes came; expected at most {_LIMITS[level]}")
    try:
        message: TrainingMessage = _decoders[level](payload)
    # msgspec has no error of its own for broken UTF-8 and for deep nesting.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(
            f"what came is no {level.value} of a training: {error}; see docs/reference/wire.md"
        ) from None
    _check(message, level, run, worker)
    return message


def _named(level: TrainingLevel) -> str:
    return f"{'an' if level is TrainingLevel.UPDATE else 'a'} {level.value}"


def _check(message: TrainingMessage, level: TrainingLevel, run: str, worker: list[str]) -> None:
    if message.run != run:
        raise MessageError(f"{_named(level)} of run {message.run!r} came on the topic of {run!r}; expected its own")
    if not isinstance(message, TrainingProgress):
        expected = MASKED_VERSION if isinstance(message, TrainingJob) and message.mask else VERSION
        if message.version != expected:
            raise MessageError(
                f"{_named(level)} of version {message.version} came; expected {expected}: update the older of the two"
            )
        if message.sealed:
            raise MessageError(f"{_named(level)} sealed with {message.sealed!r} came; this version opens none")
    if isinstance(message, Update | WorkerReport | RangeReport | MaskPart) and [message.worker] != worker:
        raise MessageError(
            f"{_named(level)} of {message.worker!r} came on the topic of {worker[0]!r}; expected its own"
        )
    if isinstance(message, MaskPart | MaskRelay):
        check_contents(message)
    if isinstance(message, Round | Update):
        part = message.weights if isinstance(message, Round) else message.vector
        if part.part >= part.parts:
            raise MessageError(f"part {part.part} of {part.parts} came; expected one below {part.parts}")
    if isinstance(message, Round):
        for name, task in message.tasks.items():
            if any(one.stop <= one.start for one in task.ranges):
                raise MessageError(f"the task of {name!r} has a range without samples; expected start below stop")
            places = sorted(task.ranges)
            if any(one.block == after.block and after.start < one.stop for one, after in pairwise(places)):
                raise MessageError(f"the task of {name!r} has samples twice; expected ranges that do not overlap")
