"""The learning rate of each step: constant, in steps, or along a cosine, after a warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateSchedule:
    """A learning rate by the number of steps done.

    `kind` is "constant", "step" (times `factor` every `every` steps) or "cosine" (down to `floor` times the rate at
    step `steps`, then no further; Loshchilov and Hutter 2017, without restarts). The first `warmup` steps rise in a
    line to the full rate, and the kind counts from there (Goyal et al. 2017, section 2.2).

    >>> [round(RateSchedule("step", 0.1, every=2, factor=0.5, warmup=2).rate(step), 4) for step in range(7)]
    [0.05, 0.1, 0.1, 0.1, 0.05, 0.05, 0.025]
    """

    kind: str
    peak: float
    steps: int = 0
    floor: float = 0.0
    every: int = 0
    factor: float = 0.1
    warmup: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of the step after `step` others."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        return self.peak * KINDS[self.kind](self, step - self.warmup)


def _constant(_schedule: RateSchedule, _step: int) -> float:
    return 1.0


def _step(schedule: RateSchedule, step: int) -> float:
    return float(schedule.factor ** (step // schedule.every))


def _cosine(schedule: RateSchedule, step: int) -> float:
    part = min(step / schedule.steps, 1.0)
    return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * part))


KINDS: dict[str, Callable[[RateSchedule, int], float]] = {"constant": _constant, "step": _step, "cosine": _cosine}
# The option that a kind cannot do without.
NEEDED = {"constant": None, "step": "every", "cosine": "steps"}
