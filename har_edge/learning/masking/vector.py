"""An update as the words of a masked sum, and the sum of updates out of the sum of words.

Behind the values stand three words more: the loss, the right answers and the samples, so that the sum alone tells them.
The server knows of how many samples the sum is: where the last word differs, masks did not cancel, or a worker sent
something else than it should, and the sum is not used. Junk gets past this once in 2**32 times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from har_edge.errors import NodeError
from har_edge.learning.masking.fixed_point import FixedPoint, Words
from har_edge.learning.updates.vectors import Vector
from har_edge.protocol.masks import MaskTerms
from har_edge.protocol.training import TrainingJob

# The words behind the values: loss, right answers, samples.
EXTRA_WORDS = 3
KIND = "u4"
# The most of a mean loss; what is above counts as this, since it is for people alone.
_LOSS_LIMIT = 1024.0
# The largest value of an update that is not clipped: of a change of weights, or of the mean gradient of a sample.
PLAIN_LIMIT = 64.0
# Noise beyond so many of its deviations does not come (once in 10**22 values).
_DEVIATIONS = 10.0


class JunkSum(NodeError):
    """A masked sum is not that of the updates: masks did not cancel, or a worker sent something else."""


@dataclass(frozen=True, slots=True)
class UpdateSum:
    """The sum of updates: that of gradients, or the mean change of weights by samples; loss and right answers."""

    vector: Vector
    loss: float
    correct: int


def limit_of(job: TrainingJob, most: int, *, local: bool) -> float:
    """Return the largest value that an update of a job may have, where the largest task has `most` samples."""
    if job.clip:
        return job.clip * (1 + _DEVIATIONS * job.noise)
    return PLAIN_LIMIT if local else PLAIN_LIMIT * most


@dataclass(frozen=True, slots=True)
class UpdateWords:
    """The way between updates and words under the terms of a sum.

    With `local` steps an update is the change of weights, and counts by its samples; else it is a sum of gradients.
    Each value of the sum is off by at most `devices` half steps of FixedPoint.
    """

    terms: MaskTerms
    local: bool

    def encode(self, vector: Vector, samples: int, loss: float, correct: int) -> Words:
        """Return an update of `samples` as words. Raises ModelError for a value beyond the limit of the terms."""
        terms = self.terms
        share = samples / terms.most if self.local else 1.0
        words = self._values.encode((vector * np.float32(share)) if self.local else vector)
        lost = self._losses.encode(np.array([min(_LOSS_LIMIT, max(0.0, loss / terms.most))], np.float32))
        return np.concatenate([words, lost, np.array([correct, samples], np.uint32)])

    def decode(self, total: Words, samples: int) -> UpdateSum:
        """Return the sum of updates. Raises JunkSum where the words are not those of `samples` samples."""
        values, (lost, correct, counted) = total[:-EXTRA_WORDS], total[-EXTRA_WORDS:]
        if int(counted) != samples:
            raise JunkSum("the masked sum is not that of the updates: a worker sent something else")
        vector = self._values.decode(values)
        if self.local:
            vector *= np.float32(self.terms.most / samples)
        loss = float(self._losses.decode(np.array([lost], np.uint32))[0]) * self.terms.most
        return UpdateSum(vector, max(0.0, loss), int(correct))

    @property
    def error(self) -> float:
        """The most that rounding changes a value of the sum by."""
        return self.terms.devices / 2 / self._values.steps

    @property
    def _values(self) -> FixedPoint:
        return FixedPoint(self.terms.limit, self.terms.devices)

    @property
    def _losses(self) -> FixedPoint:
        return FixedPoint(_LOSS_LIMIT, self.terms.devices)
