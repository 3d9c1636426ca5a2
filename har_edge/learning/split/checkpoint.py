"""The state of a split run after some steps, as bytes: from it a run goes on, with whatever stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

from har_edge.errors import ModelError
from har_edge.learning.server.checkpoints import MAX_ROWS, bytes_of, vector_of
from har_edge.learning.split.record import EpochScore, RecoveryRow, SplitRecord, StepRow
from har_edge.learning.split.state import WholeState
from har_edge.learning.updates.vectors import Vector, WeightLike
from har_edge.protocol.training_fields import Name, Number, Seconds, Sha256

VERSION = 1


class SplitCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The state after `step` steps; weights and the optimizer's vectors are float32, little-endian, by weight.

    `settings` is the hash of what has to be the same to go on.
    """

    version: int = VERSION
    settings: Sha256
    run: Name
    step: Number
    optimizer_steps: Number
    weights: dict[str, bytes]
    vectors: Annotated[dict[str, dict[str, bytes]], msgspec.Meta(max_length=8)]
    seconds: Seconds
    steps: Annotated[tuple[StepRow, ...], msgspec.Meta(max_length=MAX_ROWS)] = ()
    recoveries: Annotated[tuple[RecoveryRow, ...], msgspec.Meta(max_length=MAX_ROWS)] = ()
    scores: Annotated[tuple[EpochScore, ...], msgspec.Meta(max_length=MAX_ROWS)] = ()


encode_split_checkpoint = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SplitCheckpoint).decode


def save_whole(whole: WholeState, record: SplitRecord, settings: str, run: str, now: float) -> SplitCheckpoint:
    """Return the checkpoint of a state."""
    return SplitCheckpoint(
        settings=settings,
        run=run,
        step=whole.step,
        optimizer_steps=whole.optimizer_steps,
        weights={name: bytes_of(values) for name, values in whole.weights.items()},
        vectors={
            kind: {name: bytes_of(values) for name, values in arrays.items()} for kind, arrays in whole.vectors.items()
        },
        seconds=record.seconds(now),
        steps=tuple(row for row in record.steps if row.step < whole.step)[-MAX_ROWS:],
        recoveries=tuple(record.recoveries)[-MAX_ROWS:],
        scores=tuple(record.scores)[-MAX_ROWS:],
    )


def read_split_checkpoint(content: bytes, settings: str, run: str) -> SplitCheckpoint:
    """Return the checkpoint that bytes hold. Raises ModelError for what is none, or that of another training."""
    try:
        found = _decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"a checkpoint cannot be read: {error}; begin anew with --fresh") from None
    if found.version != VERSION:
        raise ModelError(f"a checkpoint of version {found.version} came; expected {VERSION}; begin anew with --fresh")
    if found.settings != settings or found.run != run:
        raise ModelError(
            f"the checkpoint of run {found.run!r} was made with another model, data, batch or optimizer; go on with "
            "what it was made with, choose another --run-name, or begin anew with --fresh"
        )
    return found


def whole_of(found: SplitCheckpoint, weights: Sequence[WeightLike]) -> WholeState:
    """Return the state in a checkpoint. Raises ModelError where it is not that of these weights."""
    shapes = {one.name: tuple(one.shape) for one in weights}
    arrays = {"weights": found.weights, **found.vectors}
    for kind, by_name in arrays.items():
        if set(by_name) != set(shapes):
            raise ModelError(f"a checkpoint has {kind} of another model; begin anew with --fresh")

    def read(by_name: dict[str, bytes]) -> dict[str, Vector]:
        found = {}
        for name, data in by_name.items():
            if len(data) != 4 * int(np.prod(shapes[name], dtype=np.int64)):
                raise ModelError(f"a checkpoint has {len(data)} bytes for weight {name}; begin anew with --fresh")
            found[name] = vector_of(data).reshape(shapes[name])
            if not np.isfinite(found[name]).all():
                raise ModelError("a checkpoint holds values that are not finite; begin anew with --fresh")
        return found

    return WholeState(
        found.step,
        read(found.weights),
        found.optimizer_steps,
        {kind: read(by_name) for kind, by_name in found.vectors.items()},
    )
