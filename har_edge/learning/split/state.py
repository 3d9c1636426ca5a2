"""The state of a stage after some steps, as bytes: its weights and the state of their optimizer, float32.

It is what neighbours keep for each other, what a successor goes on from, and what checkpoints are made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import numpy as np

from har_edge.errors import ModelError
from har_edge.learning.optimizers.optimizers import Optimizer, make_optimizer
from har_edge.learning.server.checkpoints import bytes_of, vector_of
from har_edge.learning.updates.vectors import Vector, flatten, unflatten
from har_edge.protocol.training_fields import Number
from har_edge.tflite.gradient.stage_spec import StageSpec

_VERSION = 1


class StateFile(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of a state: of operators [start, stop) after `step` steps; `state` are the optimizer's vectors."""

    version: int = _VERSION
    start: Number
    stop: Number
    step: Number
    optimizer_steps: Number
    weights: bytes
    state: Annotated[dict[str, bytes], msgspec.Meta(max_length=8)]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StateFile).decode


@dataclass(frozen=True, slots=True)
class StageTensors:
    """The weights of a stage after `step` steps, and the vectors of their optimizer, each [elements]."""

    step: int
    weights: Vector = field(repr=False)
    optimizer_steps: int = 0
    vectors: dict[str, Vector] = field(default_factory=dict, repr=False)

    def optimizer(self, spec: str) -> Optimizer:
        """Return the optimizer that goes on from here. Raises ModelError where the state is of another one."""
        optimizer = make_optimizer(spec, self.weights.size)
        if self.optimizer_steps or self.vectors:
            optimizer.load_state({"step": self.optimizer_steps, **self.vectors})
        return optimizer


def state_of(step: int, weights: Vector, optimizer: Optimizer) -> StageTensors:
    """Return the state of weights and their optimizer; the vectors of the optimizer are copies."""
    state = optimizer.state()
    steps = state.pop("step", 0)
    assert isinstance(steps, int)
    vectors = {name: one for name, one in state.items() if not isinstance(one, int)}
    return StageTensors(step, weights, steps, vectors)


def encode_state(state: StageTensors, start: int, stop: int) -> bytes:
    """Return a state as bytes: equal states give equal bytes."""
    return _encode(
        StateFile(
            start=start,
            stop=stop,
            step=state.step,
            optimizer_steps=state.optimizer_steps,
            weights=bytes_of(state.weights),
            state={name: bytes_of(state.vectors[name]) for name in sorted(state.vectors)},
        )
    )


def decode_state(content: bytes, spec: StageSpec) -> StageTensors:
    """Return the state that bytes hold. Raises ModelError for what is none, or is that of another stage."""
    try:
        found = _decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"the state of a stage cannot be read: {error}; it is not used") from None
    place = (found.version, found.start, found.stop)
    if place != (_VERSION, spec.start, spec.stop):
        raise ModelError(
            f"a state of version {found.version} of operators {found.start} to {found.stop} came; expected version "
            f"{_VERSION} of operators {spec.start} to {spec.stop}"
        )
    for name, data in {"weights": found.weights, **found.state}.items():
        if len(data) != spec.weight_bytes:
            raise ModelError(f"a state has {len(data)} bytes of {name}; expected {spec.weight_bytes} for the stage")
    state = StageTensors(
        found.step,
        vector_of(found.weights),
        found.optimizer_steps,
        {name: vector_of(data) for name, data in found.state.items()},
    )
    if not np.isfinite(state.weights).all():
        raise ModelError("a state holds weights that are not finite; it is not used")
    return state


def hash_of(content: bytes) -> str:
    """Return the SHA-256 by which a content is named."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class WholeState:
    """The state of the whole model after `step` steps, by the name of the weight; it can be cut anew."""

    step: int
    weights: dict[str, Vector] = field(repr=False)
    optimizer_steps: int = 0
    vectors: dict[str, dict[str, Vector]] = field(default_factory=dict, repr=False)

    def cut(self, spec: StageSpec) -> StageTensors:
        """Return the part of a stage."""
        vectors = {kind: flatten(_chosen(arrays, spec), spec.weights) for kind, arrays in self.vectors.items()}
        weights = flatten(_chosen(self.weights, spec), spec.weights)
        return StageTensors(self.step, weights, self.optimizer_steps, vectors)


def join_states(specs: Mapping[StageSpec, StageTensors]) -> WholeState:
    """Return the whole of the states of all stages. Raises ModelError for states after different numbers of steps."""
    steps = {state.step for state in specs.values()}
    if len(steps) != 1:
        raise ModelError(f"states after {sorted(steps)} steps came; expected those of one step")
    weights: dict[str, Vector] = {}
    vectors: dict[str, dict[str, Vector]] = {}
    for spec, state in specs.items():
        weights |= unflatten(state.weights, spec.weights)
        for kind, vector in state.vectors.items():
            vectors.setdefault(kind, {}).update(unflatten(vector, spec.weights))
    return WholeState(steps.pop(), weights, max(one.optimizer_steps for one in specs.values()), vectors)


def _chosen(arrays: Mapping[str, Vector], spec: StageSpec) -> dict[str, Vector]:
    missing = [one.name for one in spec.weights if one.name not in arrays]
    if missing:
        raise ModelError(f"weight {missing[0]!r} is missing in the state of the model; begin anew with --fresh")
    return {one.name: arrays[one.name] for one in spec.weights}
