"""The optimizer of a run that names none, and the check of one that the server has for mean changes."""

from __future__ import annotations

import math

from har_edge.errors import ConfigError
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.optimizers.rates import AUTO
from har_edge.learning.server.modes import TrainingMode

# The rate of one device for LeNet-5, and the batch that it fits.
_RATE, _BATCH = 0.05, 32
# Weight decay: what workers that step alone lose without it is in docs/explanation/training.md.
_DECAY = 0.001
# Workers that step alone take at most so many times the rate of one device: beyond, their models drift apart.
_MOST_LOCAL = 2.0
# A sample shall change the mean of their weights by so many times what it changes those of one device.
_WEIGHT_OF_SAMPLE = 1.2
_LEAST_BETA = 0.1


def choose_optimizer(asked: str, mode: TrainingMode, global_batch: int, compress: str, *, decays: bool) -> str:
    """Return the text of the optimizer that was asked for, or the one that fits a run.

    The gradient of more samples has less noise, and fewer steps are made: the rate rises with the root of the global
    batch (Krizhevsky 2014, section 5). Values that top-k sends late would keep a momentum up, so that there is none.
    With `decays` weights decay; the gradients of a mean squared error are too small for that.
    """
    if asked != AUTO:
        return asked
    if mode is TrainingMode.SYNC and compress.startswith("topk"):
        return "sgd:lr=0.3,schedule=cosine,warmup=50"
    decay = f",decay={_DECAY:g}" if decays else ""
    return f"momentum:lr={_RATE * _factor(mode, global_batch):.4f}{decay},schedule=cosine"


def choose_server_optimizer(mode: TrainingMode, global_batch: int, workers: int) -> str:
    """Return the text of the optimizer for the mean change in a run that names none; "" where the mean is taken itself.

    With more workers a sample moves the mean less; a momentum of the server makes up for it (Wang et al. 2020, SlowMo).
    """
    beta = 1 - _factor(mode, global_batch) * _BATCH / (_WEIGHT_OF_SAMPLE * global_batch)
    if mode is not TrainingMode.LOCAL or workers < 2 or beta < _LEAST_BETA:
        return ""
    return f"momentum:lr=1,beta={beta:.2f},nesterov=1"


def explain_recipe(mode: TrainingMode, global_batch: int, *, server_steps: bool) -> str:
    """Return in words why a run that names no optimizer has the one that it has."""
    text = f"optimizer chosen: the rate of one device x {_factor(mode, global_batch):.2f}, for a global batch of "
    text += f"{global_batch}"
    if mode is not TrainingMode.SYNC and _factor(mode, global_batch) == _MOST_LOCAL:
        text += " (at most x 2 with local steps: models drift apart at more)"
    return f"{text}; the server's momentum makes up for small shares of each worker" if server_steps else text


def _factor(mode: TrainingMode, global_batch: int) -> float:
    """Return how many times the rate of one device fits a global batch."""
    root = math.sqrt(global_batch / _BATCH)
    return root if mode is TrainingMode.SYNC else min(root, _MOST_LOCAL)


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
