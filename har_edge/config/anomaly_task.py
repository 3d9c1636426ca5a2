"""The task of a model that finds anomalies in pictures, from its file and from options."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from har_edge.config.anomaly import HEAT_MAP, SCORE, THRESHOLD, read_anomaly_note
from har_edge.config.anomaly_outputs import is_number, map_size
from har_edge.config.image_task import Normalization, derive_image_task
from har_edge.config.model_outputs import list_arrays, list_tensors
from har_edge.config.task import HEAT_MAP_SIDE, VERDICTS, AnomalyOutput, Task
from har_edge.data.pictures import AspectRule
from har_edge.errors import ConfigError
from har_edge.tflite.model import Model, Tensor


def derive_anomaly_task(
    model: Model,
    *,
    threshold: float | None = None,
    side: int = HEAT_MAP_SIDE,
    normalization: Normalization | None = None,
    fit: AspectRule | None = None,
) -> Task | None:
    """Return the task of a model that finds anomalies in pictures; None where neither its note nor `threshold` says so.

    The threshold is `threshold`, else the output that holds it, else that of the note. Results have heat maps with at
    most `side` cells along each side. Raises ConfigError for a model without a score, and as `derive_image_task` does.
    """
    note = read_anomaly_note(model)
    if note is None and threshold is None:
        return None
    rule = fit or (AspectRule.STRETCH if note is None else note.fit)
    task = derive_image_task(model, normalization=normalization, fit=rule, arrays=True)
    anomaly = find_anomaly_outputs(model, side)
    if threshold is not None:
        anomaly = msgspec.structs.replace(anomaly, threshold=threshold, limit=None)
    elif anomaly.limit is None and note is not None:
        anomaly = msgspec.structs.replace(anomaly, threshold=note.threshold)
    return msgspec.structs.replace(
        task,
        output=anomaly.score.tensor,
        labels=list(VERDICTS),
        label_ids=list(range(len(VERDICTS))),
        arrays=(),
        anomaly=anomaly,
    )


def find_anomaly_outputs(model: Model, side: int) -> AnomalyOutput:
    """Return the outputs of a model that finds anomalies, by their names, or else by their shapes.

    Its score is the output of that name, or the only one with one value a picture; so is its heat map, with values by
    height and width. Raises ConfigError for a model without a score.
    """
    tensors = [model.main.tensors[index] for index in model.main.outputs]
    computed = [one for one in tensors if not one.constant]
    score = _named(computed, SCORE) or _only([one for one in computed if is_number(one.signature)])
    if score is None:
        raise ConfigError(
            f"no output of the model is the score of a picture: {list_tensors(tensors)}; expected one named "
            f"{SCORE!r}, or one with one value a picture"
        )
    maps = [one for one in computed if one is not score and map_size(one.signature) is not None]
    heat_map, limit = _named(maps, HEAT_MAP) or _only(maps), _named(tensors, THRESHOLD)
    named = {one.tensor: one for one in list_arrays(tensors)}
    return AnomalyOutput(
        named[score.name],
        heat_map=None if heat_map is None else named[heat_map.name],
        limit=None if limit is None or not is_number(limit.signature) else named[limit.name],
        side=side,
    )


def _named(tensors: Sequence[Tensor], name: str) -> Tensor | None:
    return next((one for one in tensors if one.name == name), None)


def _only(tensors: Sequence[Tensor]) -> Tensor | None:
    return tensors[0] if len(tensors) == 1 else None
