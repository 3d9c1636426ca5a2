"""Run a detector of anomalies on pictures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from har_edge.config.anomaly import HEAT_MAP, PICTURE, SCORE
from har_edge.errors import DataError, ModelError
from har_edge.inference.interpreter import Interpreter

BATCH = 16


@dataclass(frozen=True, slots=True)
class AnomalyOutcome:
    """The scores of pictures, float32 [n], and their heat maps, float32 [n, h, w]."""

    scores: NDArray[np.float32] = field(repr=False)
    heat_maps: NDArray[np.float32] = field(repr=False)


class AnomalyDetector:
    """A detector as `har-edge train --task anomaly` writes it; ModelError for another model."""

    def __init__(self, content: bytes) -> None:
        self._interpreter = Interpreter(content)
        inputs = {port.name: port for port in self._interpreter.inputs}
        outputs = {port.name for port in self._interpreter.outputs}
        if list(inputs) != [PICTURE] or not {SCORE, HEAT_MAP} <= outputs:
            raise ModelError(
                f"a model with inputs {', '.join(inputs)} and outputs {', '.join(sorted(outputs))} came; expected a "
                f"detector of anomalies: {PICTURE} in, {SCORE} and {HEAT_MAP} out"
            )
        self.shape = inputs[PICTURE].shape[1:]

    def run(self, pictures: NDArray[np.uint8]) -> AnomalyOutcome:
        """Return scores and heat maps of pictures uint8 [n, height, width, channels]; DataError for another shape."""
        if pictures.dtype != np.uint8 or pictures.shape[1:] != self.shape or not len(pictures):
            raise DataError(
                f"pictures came as {pictures.dtype} {list(pictures.shape)}; expected uint8 [n, "
                f"{', '.join(map(str, self.shape))}], one at least"
            )
        scores, maps = [], []
        for start in range(0, len(pictures), BATCH):
            batch = np.ascontiguousarray(pictures[start : start + BATCH])
            filled = batch if len(batch) == BATCH else np.resize(batch, (BATCH, *self.shape))
            found = self._interpreter.run({PICTURE: filled})
            scores.append(found[SCORE].reshape(-1)[: len(batch)])
            maps.append(found[HEAT_MAP][: len(batch)])
        return AnomalyOutcome(np.concatenate(scores), np.concatenate(maps))
