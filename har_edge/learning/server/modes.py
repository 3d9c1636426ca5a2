"""The ways to train with several devices, and the choice between them by what was measured."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from har_edge.errors import ConfigError
from har_edge.units import duration, plural, speed


class TrainingMode(str, enum.Enum):
    """How the updates of workers become one change of the weights.

    SYNC sums gradients of one global batch (synchronous SGD). LOCAL lets each worker make steps of its own and takes
    the mean of the weights, by samples (FedAvg; McMahan et al. 2017). STALE does this without waiting for the slowest
    (stale synchronous parallel; Ho et al. 2013). AUTO chooses SYNC or LOCAL.
    """

    AUTO = "auto"
    SYNC = "sync"
    LOCAL = "local"
    STALE = "stale"


# The part of the time that devices shall compute: what AUTO chooses the number of local steps for.
BUSY = 0.96
# SYNC where devices compute for at least this part of the time: it gives the numbers of one device.
SYNC_BUSY = 0.85
MAX_LOCAL_STEPS = 400
# Rounds that an epoch has at least in LOCAL: with fewer, the models drift apart between two means.
LEAST_ROUNDS = 5
# A round costs so much at least, whatever the link: polling, packing, a turn of the broker.
ROUND_S = 0.05


@dataclass(frozen=True, slots=True)
class ModeChoice:
    """A mode with its number of local steps (1 in SYNC), why, and for how many workers it was chosen."""

    mode: TrainingMode
    local_steps: int
    reason: str
    workers: int = 1


@dataclass(frozen=True, slots=True)
class TrainingCosts:
    """The figures behind a choice: measured step time and link, the size of the vectors, workers and samples.

    `sent_bytes` are those of the weights to a worker, `update_bytes` those of an update in SYNC; `local_bytes` are both
    together in LOCAL. The link is that of the broker or server, through which all of them go.
    """

    step_s: float
    batch: int
    workers: int
    samples: int
    sent_bytes: int
    update_bytes: int
    link_bytes_per_s: float
    local_bytes: int

    @property
    def exchange_s(self) -> float:
        """Seconds of one round that nobody computes: the weights go to each worker, and an update comes of each."""
        return self._seconds(self.sent_bytes + self.update_bytes)

    @property
    def local_exchange_s(self) -> float:
        """The same where workers make steps of their own."""
        return self._seconds(self.local_bytes)

    def _seconds(self, count: int) -> float:
        return ROUND_S + self.workers * count / self.link_bytes_per_s


def choose_mode(costs: TrainingCosts) -> ModeChoice:
    """Return SYNC where one step a worker is long against an exchange, else LOCAL with as many steps as it takes.

    The number of steps is bounded so that an epoch has LEAST_ROUNDS rounds. One worker alone needs no other's weights
    and shares no link: rounds of some tens of steps keep it busy already.
    """
    step_s = costs.step_s
    sync = costs.workers > 1 and step_s / (step_s + costs.exchange_s) >= SYNC_BUSY
    exchange_s = costs.exchange_s if sync else costs.local_exchange_s
    figures = (
        f"a step of {costs.batch} samples takes {duration(step_s)}, an exchange with "
        f"{plural(costs.workers, 'worker')} {duration(exchange_s)} at {speed(costs.link_bytes_per_s)}"
    )
    if sync:
        return ModeChoice(TrainingMode.SYNC, 1, figures, costs.workers)
    wanted = math.ceil(exchange_s * BUSY / (1 - BUSY) / step_s)
    most = max(1, costs.samples // (costs.workers * costs.batch * LEAST_ROUNDS))
    return ModeChoice(TrainingMode.LOCAL, max(1, min(wanted, most, MAX_LOCAL_STEPS)), figures, costs.workers)


def parse_mode(text: str) -> tuple[TrainingMode, int | None]:
    """Return the mode of a text, and its number: `auto`, `sync`, `local[:STEPS]`, `stale[:ROUNDS]`."""
    name, colon, number = text.partition(":")
    try:
        mode = TrainingMode(name)
    except ValueError:
        raise ConfigError(f"mode {text!r}; expected auto, sync, local[:STEPS] or stale[:ROUNDS]") from None
    if not colon:
        return mode, None
    if mode not in (TrainingMode.LOCAL, TrainingMode.STALE) or not number.isdecimal() or not 0 < int(number) <= 10_000:
        raise ConfigError(f"mode {text!r}; expected auto, sync, local[:STEPS] or stale[:ROUNDS], 1 to 10000")
    return mode, int(number)
