"""The messages about what comes of a training: ranges of its tensors, and the model that takes another's place."""

from __future__ import annotations

from typing import Annotated

import msgspec

from har_edge.protocol.training_fields import MAX_WORKERS, VERSION, Name, Number, Seconds, Sha256, Text

MAX_TENSORS = 65_536
MAX_REPLACED = 64
MAX_RANGES_BYTES = 1024 * 1024
_Bytes = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
_Block = Annotated[int, msgspec.Meta(ge=0, lt=4096)]
_Blocks = Annotated[tuple[_Block, ...], msgspec.Meta(min_length=1, max_length=4096)]
_Floats = Annotated[bytes, msgspec.Meta(max_length=4 * MAX_TENSORS)]


class RangeRequest(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The request to run a file on samples, and to send the least and the largest value of each of its outputs.

    `sha256` and `size` are those of the file, `outputs` is how many it has. `blocks` names the workers that are asked,
    each with the blocks that it takes samples of: its own where the job has these. It takes `samples` at most.
    """

    version: int = VERSION
    run: Name
    author: Text
    sha256: Sha256
    size: _Bytes
    outputs: Annotated[int, msgspec.Meta(ge=1, le=MAX_TENSORS)]
    samples: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    blocks: Annotated[dict[Name, _Blocks], msgspec.Meta(max_length=MAX_WORKERS)]
    sealed: Text = ""


class RangeReport(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The ranges that one worker measured on `samples` samples: float32, little-endian, in the order of the outputs.

    `problem` says why it has none.
    """

    version: int = VERSION
    run: Name
    author: Text
    worker: Name
    sha256: Sha256
    samples: Number = 0
    lows: _Floats = b""
    highs: _Floats = b""
    problem: Text = ""
    sealed: Text = ""


class ModelNote(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The model that came of a training and takes the place of others, retained as long as a pipeline runs it.

    A coordinator that was started with a model whose SHA-256 is among `replaces` deploys this one. `size` are the bytes
    of its file (`file/<sha256>`), `time` is when the note was written, in seconds since 1970.
    """

    version: int = VERSION
    run: Name
    author: Text
    sha256: Sha256
    size: _Bytes
    replaces: Annotated[tuple[Sha256, ...], msgspec.Meta(min_length=1, max_length=MAX_REPLACED)]
    time: Seconds
    sealed: Text = ""
