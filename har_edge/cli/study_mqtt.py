"""Measure the rows of a study over a real broker, with sensors and stages as processes, and count all their bytes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from har_edge.cli.arguments.options import chosen_client
from har_edge.cli.local_pipeline import open_cluster, start_nodes
from har_edge.config.catalog import FoundModel
from har_edge.config.task import Task
from har_edge.data.grouping import regroup, regroup_recording
from har_edge.errors import ModelError
from har_edge.evaluation.comparison import Answer, compare_answers
from har_edge.evaluation.results import MeasuredTraffic
from har_edge.evaluation.rows import name_of
from har_edge.evaluation.traffic import encode_window, measure_traffic
from har_edge.evaluation.trial import Deployed, Trial
from har_edge.evaluation.trial_store import MODEL, TrialStore
from har_edge.mqtt.connect import ClientLibrary
from har_edge.runtime.build import topics_of

if TYPE_CHECKING:
    from har_edge.evaluation.trial_runner import StudyConfig


def measure_rows(args: argparse.Namespace, config: StudyConfig, trials: Sequence[Trial]) -> Iterator[MeasuredTraffic]:
    """Run the first fold of every variant as a pipeline on this machine; yield the traffic for each batch size."""
    seen = set()
    for trial in trials:
        if trial.variant is not None and trial.variant not in seen:
            seen.add(trial.variant)
            for batch in config.batches:
                yield _measure(argparse.Namespace(**vars(args)), config, trial, batch)


def _measure(args: argparse.Namespace, config: StudyConfig, trial: Trial, batch: int) -> MeasuredTraffic:
    assert trial.variant is not None
    store, key = TrialStore(config.out), config.system_key(trial)
    folder, system = store.system_folder(key), store.system(key)
    if system is None:
        raise ModelError(
            f"{folder}: the system of {trial} is gone or damaged; remove {config.out}/cells and start again"
        )
    grouping, task = trial.variant.grouping, _locate(args, system.task)
    channels = {source.name: len(source.channels) for source in regroup(config.description, grouping).sources}
    deployed = Deployed(system, folder, channels)
    recordings = [regroup_recording(recording, config.description, grouping) for recording in config.recordings]
    windows = list(trial.fold.test_windows(recordings, config.length, config.hop))
    encoded = [encode_window(window, deployed.reducers, task.label_ids) for window in windows]
    index = {label: position for position, label in enumerate(task.label_ids)}
    found = FoundModel(folder / MODEL, "", None)
    with open_cluster(args, found, stages=args.stages or 1, task=task) as cluster:
        pipeline = cluster.pipeline
        traffic = measure_traffic(encoded, deployed.reducers, batch, topics_of(pipeline), pipeline.config.epoch)
        start_nodes(cluster, args, trial.fold.test, speed=None, batch=batch)
        aliased = chosen_client(args, pipeline.config.broker) is ClientLibrary.NATIVE
        results = [arrival.result for arrival in cluster.arrivals() if arrival is not None]
        sent = cluster.view.sum_of("sent_bytes", "sensor")
    came = {(result.stream, result.seq): Answer(index[result.label_id], result.confidence) for result in results}
    comparison = compare_answers(map(deployed.classifier.predict, windows), came, deployed.output)
    seconds = len(windows) * config.hop / config.description.rate_hz
    return MeasuredTraffic(
        row=name_of(trial.variant, batch),
        protocol=trial.protocol,
        fold=trial.fold.name,
        windows=len(windows),
        identical=comparison.identical,
        computed_bytes_per_s=(traffic.wire_bytes if aliased else traffic.named_bytes) / seconds,
        sent_bytes_per_s=sent / seconds,
        raw_bytes_per_s=config.raw_bytes_per_s,
        broker=cluster.described,
    )


def _locate(args: argparse.Namespace, task: Task) -> Task:
    """Return the task with a path of its description that is valid in any folder."""
    if not (args.stream or "").endswith(".toml"):
        return task
    stream = msgspec.structs.replace(task.stream, description=str(Path(args.stream).resolve()))
    return msgspec.structs.replace(task, stream=stream)
