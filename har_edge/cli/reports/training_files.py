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
from har_edge.protocol.text import escape, with_origin
from har_edge.protocol.training import RunState
from har_edge.units import duration, plural, size

if TYPE_CHECKING:
    from har_edge.cli.training_inputs import TrainingInputs
    from har_edge.learning.model_entry import TrainingOrigin
    from har_edge.learning.server.server import TrainingServer
    from har_edge.runtime.stop import Stop

# The run ended before its last epoch: what there is was written.
EXIT_INCOMPLETE = 1


def write_results(args: argparse.Namespace, server: TrainingServer, inputs: TrainingInputs, stop: Stop) -> int:
    """Write what there is and say so; return the exit code."""
    import time

    run, record, finished = server.settings.job.run, server.record, server.state is RunState.FINISHED
    said = server.progress(time.time())
    if not finished:
        say_unfinished(server.problem, args.out / f"{run}.checkpoint")
    if record.rounds:
        content = trained_content(server, inputs)
        store_trained(args, content, f"{run}.tflite", "float32", inputs)
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
        data = with_origin(said.data, real=said.real)
        say(
            f"accuracy {said.accuracy:.4f} on {said.held_out} held-out samples of {data} after epoch "
            f"{said.accuracy_epoch}; broker {said.broker}"
        )
    if said.privacy:
        say(said.privacy)
    if finished:
        return 0
    return 128 + stop.signal if stop.asked else EXIT_INCOMPLETE


def say_unfinished(problem: str, kept: Path) -> None:
    """Say why a run ended early, which may be in the words of a node, and how it goes on."""
    goes_on = f"; the same command goes on from {kept}" if kept.exists() else ""
    say(f"not finished: {escape(problem)}{goes_on}")


def trained_content(server: TrainingServer, inputs: TrainingInputs) -> bytes:
    """Return the model with the weights that were learned."""
    from har_edge.learning.updates.vectors import unflatten
    from har_edge.tflite.gradient.weights import replace_weights

    trainable = inputs.trainable
    return bytes(replace_weights(trainable.model, unflatten(server.weights, trainable.spec.weights)))


def store_trained(args: argparse.Namespace, content: bytes, name: str, kind: str, inputs: TrainingInputs) -> Path:
    """Write a trained model with its entry in the manifest beside it, and say so; return its path."""
    from har_edge.errors import ModelError
    from har_edge.learning.model_entry import purpose_of, store_model
    from har_edge.tflite.model import read_model

    path: Path = args.out / name
    _store(path, content)
    say(f"{path}: {size(len(content))}, {kind}, sha256 {hashlib.sha256(content).hexdigest()}")
    try:
        purpose = purpose_of(read_model(content), inputs.data.train, inputs.found, inputs.description, args.out)
    except (ConfigError, ModelError) as error:
        say(f"no manifest says what {name} is for: {error}")
        return path
    entry = store_model(content, purpose, _origin(args, inputs), path)
    labels = f", {plural(len(entry.task.labels), 'label')}" if entry.task.labels else ""
    say(f"{args.out / 'manifest.json'}: entry {entry.name!r}{labels}; its options are not needed again")
    return path


def _origin(args: argparse.Namespace, inputs: TrainingInputs) -> TrainingOrigin:
    import numpy as np

    from har_edge.learning.model_entry import TrainingOrigin

    data, base = inputs.data.train, inputs.found.entry if inputs.found is not None else None
    named = np.unique(data.groups).tolist() if data.groups is not None else [data.name]
    known = base if base is not None and not args.from_scratch else None
    where = "nodes' own samples, tested on " if args.own_data else ""
    parts = ["har-edge train --on-devices", f"--model {args.model} --data {args.data}", "--own-data" * args.own_data]
    parts += [f"--epochs {args.epochs or 10} --batch {args.batch} --optimizer {args.optimizer} --seed {args.seed}"]
    return TrainingOrigin(
        f"{where}{data.origin}" + (f"; before: {known.data}" if known is not None else ""),
        data.real and (known is None or known.real or not known.trained_on),
        tuple({*named, *(known.trained_on if known is not None else ())}),
        " ".join(filter(None, parts)),
        args.seed,
    )


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
