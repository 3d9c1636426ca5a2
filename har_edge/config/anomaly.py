"""The note that a detector of anomalies carries behind its graph: its threshold, and where that comes from."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec

from har_edge.data.pictures import AspectRule
from har_edge.errors import ModelError
from har_edge.tflite.metadata import append_files, read_annotations
from har_edge.tflite.model import Model

TASK = "anomaly"
NOTE_FILE = "anomaly.json"
# Tensors of the model: uint8 [n, height, width, channels] in; float32 [n], [n, h, w] and [1] out.
PICTURE, SCORE, HEAT_MAP, THRESHOLD = "picture", "score", "heat_map", "threshold"
_MAX_NOTE_BYTES = 65_536
MAX_TEXT = 1000
_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]


class AnomalyNote(msgspec.Struct, frozen=True):
    """How to read the scores of a detector.

    Attributes:
        method: The method that made it, such as `padim`.
        threshold: A picture whose score is above it is called anomalous.
        quantile: The quantile of the scores of held-out normal pictures that the threshold is.
        held_out: How many these were.
        heat_low: The median of their heat maps, the cold end of colours.
        heat_high: The same quantile of the maxima of their heat maps; a pixel above it is called anomalous.
        fit: How pictures of another aspect ratio were brought to size (an AspectRule).
        data: The name of the training pictures.
        real: Whether these are known to be real.
        features: The network whose features are used, with its hash; "" for none.
    """

    method: _Text
    threshold: float
    quantile: Annotated[float, msgspec.Meta(gt=0, le=1)]
    held_out: Annotated[int, msgspec.Meta(ge=1)]
    heat_low: float
    heat_high: float
    fit: AspectRule
    data: _Text
    real: bool
    features: _Text = ""

    def encode(self) -> bytes:
        """Return the note as JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def with_anomaly_note(content: memoryview, note: AnomalyNote) -> memoryview:
    """Return a model with the note behind it."""
    return append_files(content, {NOTE_FILE: note.encode()})


def read_anomaly_note(model: Model) -> AnomalyNote | None:
    """Return the note of a detector, None where the model has none. Raises ModelError for a note that is damaged."""
    content = read_annotations(model).files.get(NOTE_FILE)
    if content is None:
        return None
    try:
        if len(content) > _MAX_NOTE_BYTES:
            raise ValueError(f"it has {len(content)} bytes, at most {_MAX_NOTE_BYTES} expected")
        note = msgspec.json.decode(content, type=AnomalyNote)
        if not all(map(math.isfinite, (note.threshold, note.heat_low, note.heat_high))):
            raise ValueError("its figures are not finite")
    except (msgspec.MsgspecError, ValueError) as error:
        raise ModelError(
            f"{model.name}: its {NOTE_FILE} cannot be read: {error}; train the detector anew with `har-edge train "
            "--task anomaly`"
        ) from error
    return note
