"""The outputs of a model that finds anomalies: their types and shapes, and their tables in a pipeline file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import msgspec

from har_edge.config.task import AnomalyOutput, ArrayOutput
from har_edge.errors import ConfigError
from har_edge.tflite.manifest import QUANTISED, REAL, TensorSpec

# Types of scores and heat maps.
NUMBERS = (*REAL, *QUANTISED)


def is_number(shape: Sequence[int]) -> bool:
    """Return whether an output of this shape has one value a picture, or one for all."""
    return math.prod(shape[1:]) == 1


def map_size(shape: Sequence[int]) -> tuple[int, int] | None:
    """Return height and width of the heat map in an output of this shape; None where it has none."""
    size = heat_map_size([max(1, one) for one in shape])
    return size if size is not None and math.prod(size) > 1 else None


def heat_map_size(shape: Sequence[int]) -> tuple[int, int] | None:
    """Return height and width of a heat map [height, width], with or without a batch and a channel; None for others."""
    sizes = tuple(shape)
    if len(sizes) == 4 and sizes[3] == 1:
        sizes = sizes[:3]
    sizes = sizes[1:] if len(sizes) == 3 else sizes
    return (sizes[0], sizes[1]) if len(sizes) == 2 and min(sizes) > 0 else None


def check_anomaly_outputs(anomaly: AnomalyOutput, outputs: Mapping[str, TensorSpec], what: str) -> None:
    """Raise ConfigError, which begins with `what`, for a score, limit or heat map of another type or shape."""
    for role, one in (("score", anomaly.score), ("limit", anomaly.limit)):
        spec = None if one is None else outputs[one.tensor]
        if spec is not None and (spec.dtype not in NUMBERS or not is_number(spec.shape)):
            raise ConfigError(
                f"{what}: {role} {spec.name!r} is {spec.dtype} {list(spec.shape)}; expected one real number a picture"
            )
    spec = None if anomaly.heat_map is None or not anomaly.side else outputs[anomaly.heat_map.tensor]
    if spec is not None and (spec.dtype not in NUMBERS or map_size(spec.shape) is None):
        raise ConfigError(
            f"{what}: heat map {spec.name!r} is {spec.dtype} {list(spec.shape)}; expected real numbers [1, height, "
            "width], or no heat map (side = 0)"
        )


def write_tables(anomaly: AnomalyOutput) -> list[str]:
    """Return the lines of a pipeline file that say this; a person may want another threshold."""
    lines = ["", "[task.anomaly]     # a score above the threshold is an anomaly"]
    if anomaly.limit is None:
        lines.append(f"threshold = {json.dumps(anomaly.threshold)}")
    lines.append(f"side = {anomaly.side}          # of the heat map in results, at most; 0: none")
    for role in ("score", "heat_map", "limit"):
        one: ArrayOutput | None = getattr(anomaly, role)
        if one is not None:
            lines += ["", f"[task.anomaly.{role}]"]
            values = {key: json.dumps(value, ensure_ascii=False) for key, value in msgspec.to_builtins(one).items()}
            lines += [f"{key} = {value}".replace("\x7f", "\\u007F") for key, value in values.items()]
    return lines


def describe_anomaly(anomaly: AnomalyOutput) -> str:
    """Return in words what results say of a picture."""
    limit = f"the model's {anomaly.limit.tensor!r}" if anomaly.limit is not None else f"{anomaly.threshold:g}"
    said = f"results say anomaly where {anomaly.score.tensor!r} is above {limit}"
    if anomaly.heat_map is None:
        return f"{said}; the model makes no heat map"
    if not anomaly.side:
        return f"{said}; heat maps stay out"
    return f"{said}, with heat maps of at most {anomaly.side} x {anomaly.side} cells"
