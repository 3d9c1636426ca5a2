"""What a model is for: which stream feeds it, through which reducers, and what its answer means."""

from __future__ import annotations

from enum import Enum

import msgspec


class StateRule(Enum):
    """What a stage does about a slice that remembers: refuse it, or set its state back to zero before every window."""

    REFUSE = "refuse"
    RESET = "reset"


class StreamTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The windows a model was trained on: a stream description, and length and hop in samples."""

    description: str
    rate_hz: float
    length: int
    hop: int


class SourceInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the window of one source enters the model, and the reducer its sensor uses."""

    tensor: str
    reducer: str = "none"


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a model is for.

    `inputs` maps each source to its input tensor; `output` is the tensor with one score a class; `labels` names the
    classes by index, and `label_ids` holds the label that the recordings use for each. `state` only
    matters for a model that remembers from one run to the next.
    """

    stream: StreamTask
    inputs: dict[str, SourceInput]
    output: str
    labels: list[str]
    label_ids: list[int]
    state: StateRule = StateRule.REFUSE
