"""The results of a pipeline: one readable JSON object for each window."""

from __future__ import annotations

from typing import Annotated

import msgspec

from har_edge.config.array_output import MAX_VALUES
from har_edge.config.task import MAX_ARRAYS, MAX_HEAT_MAP_SIDE
from har_edge.errors import MessageError
from har_edge.protocol.topics import MAX_ID_LENGTH
from har_edge.protocol.wire import MAX_MISSING

_MAX_BYTES = 4 * 1024 * 1024
_MAX_COUNT = 2**62
_MAX_RANK = 8
# Classes that a result names at most.
BEST = 5
_Text = Annotated[str, msgspec.Meta(max_length=1024)]
_Stream = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_COUNT)]
_Run = Annotated[int, msgspec.Meta(ge=0)]
_Label = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
_Missing = Annotated[list[_Stream], msgspec.Meta(max_length=MAX_MISSING)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=_MAX_COUNT)]
_Cells = Annotated[int, msgspec.Meta(ge=1, le=MAX_HEAT_MAP_SIDE)]
Room = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class LabelScore(msgspec.Struct, frozen=True):
    """One class of a window with its score."""

    label: _Text
    label_id: _Label
    confidence: float


class NamedArray(msgspec.Struct, frozen=True):
    """One output of the model for a window: its values in the order of `shape`, null for what is no finite number."""

    name: _Text
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=_MAX_RANK)]
    values: Annotated[list[float | int | bool | None], msgspec.Meta(max_length=MAX_VALUES)]


class HeatMap(msgspec.Struct, frozen=True):
    """How unusual each part of a picture is, row by row: `shape` is height and width in cells.

    Raises ValueError, which msgspec reports, for another number of values.
    """

    shape: tuple[_Cells, _Cells]
    values: Annotated[list[float | None], msgspec.Meta(max_length=MAX_HEAT_MAP_SIDE**2)]

    def __post_init__(self) -> None:
        if self.shape[0] * self.shape[1] != len(self.values):
            raise ValueError(f"a heat map of {list(self.shape)} came with {len(self.values)} values")


class AnomalyScore(msgspec.Struct, frozen=True, omit_defaults=True):
    """How unusual a picture is: an `anomaly` where the score is above the threshold."""

    score: float
    threshold: float
    anomaly: bool
    heat_map: HeatMap | None = None


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """The class of one window.

    `label_id` and `truth` are labels as the recordings number them (`truth` only where the window has a known one);
    `confidence` is the model's score, 0 to 1, or 1.0 where the model gives a class without one; `captured` is when the
    last sample of the window was captured and `emitted` when the result was made, both seconds since 1970 by the clock
    of the node that says so; `missing` names the sources that it was made without; `room` is how many messages of a
    stream may be on their way (runtime/stage/stream_quota.py); `sent` the run of a sensor, and how many windows of the
    stream that run had sent before (protocol/wire.py).

    Results of pictures have the best classes in `classes`, the best first. Results of a model with other outputs than
    classes have these in `arrays`; where none gives a class, `label` is empty, `label_id` -1 and `confidence` 0. Those
    that say how unusual a picture is have `anomaly`, the label "normal" or "anomaly", and a `confidence` of 1.
    """

    stream: _Stream
    seq: _Count
    label: _Text
    label_id: _Label
    confidence: float
    captured: float
    emitted: float
    epoch: _Count
    truth: _Label | None = None
    missing: _Missing = []
    room: Room | None = None
    sent: tuple[_Run, _Count] | None = None
    classes: Annotated[list[LabelScore], msgspec.Meta(max_length=BEST)] = []
    arrays: Annotated[list[NamedArray], msgspec.Meta(max_length=MAX_ARRAYS)] = []
    anomaly: AnomalyScore | None = None


_encode = msgspec.json.Encoder().encode
_decode_one = msgspec.json.Decoder(Result).decode
_decode_many = msgspec.json.Decoder(list[Result]).decode


def encode_results(results: list[Result]) -> bytes:
    """Return one JSON object for one result, an array of them for a batch."""
    return _encode(results[0] if len(results) == 1 else results)


def decode_results(payload: bytes) -> list[Result]:
    """Return the results in a payload; raises MessageError for anything else."""
    if len(payload) > _MAX_BYTES:
        raise MessageError(f"a result of {len(payload)} bytes came; expected at most {_MAX_BYTES}")
    try:
        return _decode_many(payload) if payload[:1] == b"[" else [_decode_one(payload)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(
            f"a result came that is no result: {error}; expected the JSON of docs/reference/wire.md"
        ) from None
