"""Pieces of the windows of a source, for shards that take some rows of them: what a sensor sends, and to whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from har_edge.tflite.manifest import SliceManifest, TensorRegion

ROWS = 1  # the axis of rows: the first one after the batch


@dataclass(frozen=True, slots=True)
class SourcePiece:
    """Samples [start, stop) of each window of a source; `level` names the piece in the topic."""

    source: str
    level: str
    start: int
    stop: int


def piece_of(
    source: str, region: TensorRegion | None, shape: Sequence[int], length: int, channels: int
) -> SourcePiece | None:
    """Return the samples of a window [length, channels] that are a region of an input of this shape.

    None where these are no consecutive samples: for all of the input, for another axis than that of the rows, and for
    an input with channel after channel.
    """
    if region is None or region.axis != ROWS or len(shape) < 3 or shape[-1] != channels:
        return None
    rows = shape[ROWS]
    if math.prod(shape[ROWS:-1]) != length or region.stop > rows:
        return None
    samples = length // rows
    level = f"{source}-{region.start}-{region.stop}"
    return SourcePiece(source, level, region.start * samples, region.stop * samples)


def find_pieces(
    manifest: SliceManifest, source: str, tensor: str, shape: Sequence[int], length: int, channels: int
) -> tuple[SourcePiece, ...]:
    """Return the pieces that all takers of a source take, none where one of them needs whole windows."""
    found: dict[str, SourcePiece] = {}
    for entry in manifest.slices:
        for spec in entry.inputs:
            if spec.of == tensor:
                piece = piece_of(source, spec.region, shape, length, channels)
                if piece is None:
                    return ()
                found[piece.level] = piece
    return tuple(found.values())
