"""The rows of a study over a real broker: sensors and stages as processes, every byte of theirs counted."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from har_edge.cli.options import chosen_client
from har_edge.cli.whole import open_whole, start_nodes
from har_edge.config.catalog import FoundModel
from har_edge.config.task import Task
from har_edge.data.grouping import regroup, regroup_recording
from har_edge.errors import ModelError
from har_edge.evaluation.cell import Deployed, Job
from har_edge.evaluation.comparison import Answer, compare_answers
from har_edge.evaluation.rows import name_of
from har_edge.evaluation.sheet import Measured
from har_edge.evaluation.store import MODEL, Store
from har_edge.evaluation.traffic import encode_window, measure_traffic
from har_edge.messaging.mqtt import Client
from har_edge.nodes.build import topics_of

if TYPE_CHECKING:
    from har_edge.evaluation.work import Setting


def measure_rows(args: argparse.Namespace, setting: Setting, jobs: Sequence[Job]) -> Iterator[Measured]:
    """Run the first fold of every design as a pipeline on this machine; yield what was sent, for each batch size."""
    seen = set()
    for job in jobs:
        if job.design is not None and job.design not in seen:
            seen.add(job.design)
            for batch in setting.batches:
                yield _measure(argparse.Namespace(**vars(args)), setting, job, batch)


def _measure(args: argparse.Namespace, setting: Setting, job: Job, batch: int) -> Measured:
    assert job.design is not None
    store, key = Store(setting.out), setting.system_key(job)
    folder, system = store.system_folder(key), store.system(key)
    if system is None:
        raise ModelError(
            f"{folder}: the system of {job} is gone or damaged; remove {setting.out}/cells and start again"
        )
    grouping, task = job.design.grouping, _locate(args, system.task)
    channels = {source.name: len(source.channels) for source in regroup(setting.description, grouping).sources}
    deployed = Deployed(system, folder, channels)
    recordings = [regroup_recording(recording, setting.description, grouping) for recording in setting.recordings]
    windows = list(job.fold.test_windows(recordings, setting.length, setting.hop))
    encoded = [encode_window(window, deployed.reducers, task.label_ids) for window in windows]
    index = {label: position for position, label in enumerate(task.label_ids)}
    found = FoundModel(folder / MODEL, "", None)
    with open_whole(args, found, stages=args.stages or 1, task=task) as whole:
        pipeline = whole.local.pipeline
        traffic = measure_traffic(encoded, deployed.reducers, batch, topics_of(pipeline), pipeline.config.epoch)
        start_nodes(whole, args, job.fold.test, speed=None, batch=batch)
        aliased = chosen_client(args, pipeline.config.broker) is Client.NATIVE
        results = [arrival.result for arrival in whole.local.results() if arrival is not None]
        sent = whole.local.sum_of("sent_bytes", "sensor")
    came = {(result.stream, result.seq): Answer(index[result.label_id], result.confidence) for result in results}
    comparison = compare_answers(map(deployed.classifier.predict, windows), came, deployed.output)
    seconds = len(windows) * setting.hop / setting.description.rate_hz
    return Measured(
        row=name_of(job.design, batch),
        protocol=job.protocol,
        fold=job.fold.name,
        windows=len(windows),
        identical=comparison.identical,
        computed_bytes_per_s=(traffic.wire_bytes if aliased else traffic.named_bytes) / seconds,
        sent_bytes_per_s=sent / seconds,
        raw_bytes_per_s=setting.raw_bytes_per_s,
        broker=whole.broker,
    )


def _locate(args: argparse.Namespace, task: Task) -> Task:
    """Return the task with a description that is found from any folder."""
    if not (args.stream or "").endswith(".toml"):
        return task
    stream = msgspec.structs.replace(task.stream, description=str(Path(args.stream).resolve()))
    return msgspec.structs.replace(task, stream=stream)
