"""A probe: one window that asks whether the pipeline answers; its result is for nobody else."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np

from har_edge.config.pipeline import Pipeline
from har_edge.data.recording import Window
from har_edge.mqtt.bus import Outgoing
from har_edge.runtime.build import build_sensor


def probe(pipeline: Pipeline, epoch: int, stream: str, now: float, number: int = 0) -> list[Outgoing]:
    """Return the messages of one window of zeros of every source, for the stages of an epoch.

    `stream` starts with PROBE, so that nobody takes the answer for a person's; `number` is that of the window in it;
    `now` is the time in seconds since 1970.
    Raises what `reducer_of` does.
    """
    config = msgspec.structs.replace(pipeline.config, epoch=epoch)
    sensor = build_sensor(dataclasses.replace(pipeline, config=config), list(pipeline.task.inputs))
    length = pipeline.task.stream.length
    samples = {source: np.zeros((length, pipeline.channels(source)), np.float32) for source in pipeline.task.inputs}
    return sensor.handle([Window(stream, number, 0, samples, None)], [now])
