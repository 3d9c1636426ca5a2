"""Train a network for anomalies, or sum features, on the nodes that are there, as `train --on-devices` does."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli import device_training
from har_edge.cli.console import say
from har_edge.cli.reports.training import traffic_line
from har_edge.errors import NodeError
from har_edge.units import plural

if TYPE_CHECKING:
    from har_edge.learning.data.datasets import Dataset
    from har_edge.learning.preparation import TrainableModel
    from har_edge.learning.updates.vectors import Vector


def train_on_devices(
    args: argparse.Namespace, run: str, trainable: TrainableModel, data: Dataset, optimizer: str, epochs: int
) -> Vector:
    """Return the weights, or sums, after some passes over the samples on the nodes.

    Sums are made in one round, in which each node computes its share. Raises NodeError where the training stops before
    its end; a checkpoint is kept then, and the same command goes on from it.
    """
    import time

    from har_edge.learning.optimizers.optimizers import SUM, make_optimizer
    from har_edge.learning.optimizers.rates import with_steps
    from har_edge.learning.server.held_out import Unscored
    from har_edge.protocol.topics import Topics
    from har_edge.protocol.training import RunState
    from har_edge.runtime.artifact_store import LIMIT_BYTES, Store, default_folder
    from har_edge.runtime.stop import Stop

    make_optimizer(with_steps(optimizer, 1), 1)  # whether there is such a one, before anything is sent
    own = copy.copy(args)
    own.model, own.optimizer, own.epochs, own.loss = Path(run), optimizer, epochs, "mean-squared"
    if optimizer == SUM:
        own.mode, own.global_batch, own.compress, own.clip, own.noise = "sync", len(data), "none", None, 0.0
    store = Store(args.cache or default_folder(), LIMIT_BYTES)
    topics, stop = Topics(args.base, args.pipeline), Stop().catch_signals()
    job = device_training.make_job(own, run, trainable, data, store)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = device_training.make_settings(own, topics, job, data, 0)
    say(f"{run}: {plural(trainable.spec.elements, 'value')}, {plural(len(data), 'picture')}")
    bus, settings, server, before = device_training.open_server(own, settings, trainable.weights, store)
    try:
        device_training.follow(own, bus, server, store, Unscored(), stop, before)
    finally:
        bus.close(forget=True)
    if server.state is not RunState.FINISHED:
        raise NodeError(f"{run} did not finish: {server.problem or 'it was stopped'}; the same command goes on from it")
    said = server.progress(time.time())
    say(f"{run}: {plural(server.record.total, 'picture')} counted; {traffic_line(said)}")
    weights: Vector = server.weights
    return weights
