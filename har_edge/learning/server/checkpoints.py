"""The state of a training between two rounds, as bytes: from it a restarted server goes on to the same numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from har_edge.errors import ModelError
from har_edge.files import read_regular, write_atomic
from har_edge.learning.updates.vectors import Vector
from har_edge.protocol.training import MAX_BLOCKS, SampleRange
from har_edge.protocol.training_fields import MAX_PARAMETERS, MAX_WORKERS, Name, Number, Seconds, Sha256

VERSION = 1
MAX_CHECKPOINT_BYTES = 2**31 - 1
MAX_ROWS = 20_000


class RoundRow(msgspec.Struct, frozen=True, array_like=True):
    """One round, as a row of the table that a run leaves; `seconds` since its first round, bytes since its start."""

    round: int
    epoch: int
    seconds: float
    samples: int
    loss: float | None
    train_accuracy: float | None
    workers: int
    sent_bytes: int
    received_bytes: int
    dropped: int


class EpochRow(msgspec.Struct, frozen=True, array_like=True):
    """One epoch, with accuracy and loss on held-out samples."""

    epoch: int
    seconds: float
    samples: int
    skipped: int
    accuracy: float | None
    loss: float | None
    held_out: int


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a run before round `round`.

    `settings` is the hash of what has to be the same to go on. `weights` and the vectors of the optimizer are float32,
    little-endian. `free` are the samples of the epoch that nobody has counted, `speeds` what shares are made from.
    `privacy` is what was spent, where updates have noise.
    """

    version: int
    settings: Sha256
    run: Name
    round: Number
    epoch: Number
    task: Number
    total: Number
    seconds: Seconds
    mode: Annotated[str, msgspec.Meta(max_length=32)]
    local_steps: Number
    workers: Number
    optimizer: Annotated[str, msgspec.Meta(max_length=400)]
    weights: bytes
    steps: Number
    state: Annotated[dict[str, bytes], msgspec.Meta(max_length=8)]
    free: Annotated[tuple[SampleRange, ...], msgspec.Meta(max_length=1_000_000)]
    counted: Number
    skipped: Number
    sizes: Annotated[dict[int, int], msgspec.Meta(max_length=MAX_BLOCKS)]
    homes: Annotated[dict[int, Name], msgspec.Meta(max_length=MAX_WORKERS)]
    batch: Number
    speeds: Annotated[dict[Name, float], msgspec.Meta(max_length=MAX_WORKERS)]
    held: Annotated[dict[Name, tuple[int, ...]], msgspec.Meta(max_length=MAX_WORKERS)]
    rounds: Annotated[tuple[RoundRow, ...], msgspec.Meta(max_length=MAX_ROWS)] = ()
    epochs: Annotated[tuple[EpochRow, ...], msgspec.Meta(max_length=MAX_ROWS)] = ()
    privacy: Annotated[dict[str, float], msgspec.Meta(max_length=8)] = {}
    server_optimizer: Annotated[str, msgspec.Meta(max_length=400)] = ""


encode_checkpoint = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Checkpoint).decode


def read_checkpoint(content: bytes, settings: str, run: str, parameters: int) -> Checkpoint:
    """Return the state in a checkpoint. Raises ModelError for what is none, or that of another training."""
    try:
        found = _decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"a checkpoint cannot be read: {error}; begin anew with --fresh") from None
    if found.version != VERSION:
        raise ModelError(f"a checkpoint of version {found.version} came; expected {VERSION}; begin anew with --fresh")
    if found.settings != settings or found.run != run:
        raise ModelError(
            f"the checkpoint of run {found.run!r} was made with another model, data, batch, optimizer or mode; go on "
            "with what it was made with, choose another --run-name, or begin anew with --fresh"
        )
    vectors = {"weights": found.weights, **found.state}
    wrong = [name for name, data in vectors.items() if len(data) != 4 * parameters]
    if wrong or parameters > MAX_PARAMETERS:
        raise ModelError(
            f"a checkpoint holds {wrong} of another size than {parameters} numbers; begin anew with --fresh"
        )
    if not np.isfinite(vector_of(found.weights)).all():
        raise ModelError("a checkpoint holds weights that are not finite; begin anew with --fresh and a lower rate")
    return found


def vector_of(data: bytes) -> Vector:
    """Return a vector from its bytes, float32 little-endian, as one of its own."""
    return np.frombuffer(data, "<f4").astype(np.float32)


def bytes_of(vector: Vector) -> bytes:
    """Return the bytes of a vector, float32 little-endian."""
    return bytes(vector.astype("<f4", copy=False).data)


def settings_hash(*parts: object) -> str:
    """Return the SHA-256 of settings that JSON can hold."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def store_checkpoint(path: Path, content: bytes) -> None:
    """Write a checkpoint as a whole. Raises OSError, and leaves the last one as it is, where the disk is full."""
    write_atomic(path, content)


def load_checkpoint(path: Path) -> bytes | None:
    """Return what was stored; None where nothing was. Raises ModelError where it cannot be read."""
    try:
        return read_regular(path, MAX_CHECKPOINT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"checkpoint {path}: {error.strerror or error}; mend it, or begin anew with --fresh") from None
