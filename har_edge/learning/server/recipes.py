"""The optimizer of a run that names none, and the check of one that the server has for mean changes."""

from __future__ import annotations

import math

from har_edge.errors import ConfigError
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.optimizers.rates import AUTO
from har_edge.learning.server.modes import TrainingMode

# The rate of one device for LeNet-5, and the batch that it fits.
_RATE, _BATCH = 0.05, 32


def choose_optimizer(asked: str, mode: TrainingMode, global_batch: int, compress: str) -> str:
    """Return the text of the optimizer that was asked for, or the one that fits a run.

    The gradient of more samples has less noise, and fewer steps are made: the rate rises with the root of the global
    batch (Krizhevsky 2014, section 5). Values that top-k sends late would keep a momentum up, so that there is none.
    """
    if asked != AUTO:
        return asked
    if mode is TrainingMode.SYNC and compress.startswith("topk"):
        return "sgd:lr=0.3,schedule=cosine,warmup=50"
    return f"momentum:lr={_RATE * math.sqrt(global_batch / _BATCH):.4f},schedule=cosine"


def check_server_optimizer(server: str, mode: TrainingMode) -> None:
    """Raise ConfigError for an optimizer of the mean change that there is not, or in a mode that has no such."""
    if not server:
        return
    make_optimizer(server, 1)
    if mode not in (TrainingMode.AUTO, TrainingMode.LOCAL):
        raise ConfigError(
            f"--server-optimizer {server} with --mode {mode.value}: it steps by the mean change of workers that make "
            "steps of their own; take --mode local or auto"
        )
