"""The files that a training on devices leaves: the model, a table, a chart."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.console import say
from har_edge.cli.reports.training import rounds_csv, traffic_line
from har_edge.errors import ConfigError
from har_edge.files import write_atomic
from har_edge.protocol.training import RunState
from har_edge.units import duration, plural, size

if TYPE_CHECKING:
    from har_edge.learning.preparation import TrainableModel
    from har_edge.learning.server import TrainingServer
    from har_edge.runtime.stop import Stop

# The run ended before its last epoch: what there is was written.
EXIT_INCOMPLETE = 1


def write_results(args: argparse.Namespace, server: TrainingServer, trainable: TrainableModel, stop: Stop) -> int:
    """Write what there is and say so; return the exit code."""
    import time

    from har_edge.learning.vectors import unflatten
    from har_edge.tflite.gradient.weights import replace_weights

    run, record, finished = server.settings.job.run, server.record, server.state is RunState.FINISHED
    said = server.progress(time.time())
    if not finished:
        kept = args.out / f"{run}.checkpoint"
        say(f"not finished: {server.problem}" + (f"; the same command goes on from {kept}" if kept.exists() else ""))
    if record.rounds:
        content = bytes(replace_weights(trainable.model, unflatten(server.weights, trainable.spec.weights)))
        path = args.out / f"{run}.tflite"
        _store(path, content)
        say(f"{path}: {size(len(content))}, float32, sha256 {hashlib.sha256(content).hexdigest()}")
        table = args.out / f"{run}.csv"
        _store(table, rounds_csv(record.rounds, record.epochs).encode())
        say(f"{table}: {plural(len(record.rounds), 'round')}")
        _draw(args, server)
    seconds = record.rounds[-1].seconds if record.rounds else 0.0
    rate = record.total / seconds if seconds else 0.0
    say(f"{plural(record.total, 'sample')} counted in {duration(seconds)}, {rate:.0f} samples/s; {traffic_line(said)}")
    skipped = sum(row.skipped for row in record.epochs)
    if skipped:
        say(f"{plural(skipped, 'sample')} of workers that had gone were left out")
    if said.accuracy is not None:
        kind = "real" if said.real else "synthetic"
        say(
            f"accuracy {said.accuracy:.4f} on {said.held_out} held-out samples of {said.data} ({kind}) after epoch "
            f"{said.accuracy_epoch}; broker {said.broker}"
        )
    if said.privacy:
        say(said.privacy)
    if finished:
        return 0
    return 128 + stop.signal if stop.asked else EXIT_INCOMPLETE


def _store(path: Path, content: bytes) -> None:
    """Write a file as a whole. Raises ConfigError that says how to get it once there is room."""
    try:
        write_atomic(path, content)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}; make room, and run the same command again: it goes on from "
            "the last checkpoint, and writes the model"
        ) from error


def _draw(args: argparse.Namespace, server: TrainingServer) -> None:
    from har_edge.evaluation.training_chart import draw_training

    run, record = server.settings.job.run, server.record
    path = args.out / f"{run}.png"
    losses = [(row.seconds, row.loss) for row in record.rounds if row.loss is not None]
    accuracies = [(row.seconds, row.accuracy) for row in record.epochs if row.accuracy is not None]
    try:
        draw_training(path, f"{run}: {server.settings.figures.data}", losses, accuracies)
    except ConfigError as error:
        say(f"no chart: {error}")
    else:
        say(str(path))
