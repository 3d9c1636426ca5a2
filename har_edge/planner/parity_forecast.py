"""Predict a plan whose layers have parities: one window on its way, with all shards and with any one of them missing.

Like simulation.py: each processor and each direction of each link serves one thing at a time. A step that takes a coded
tensor begins when any n of its n + 1 sums are there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from har_edge.planner.devices import BrokerLink, PlannerDevice
from har_edge.planner.slice_graph import HEAD_BYTES, RESULT_BYTES
from har_edge.tflite.manifest import TensorSpec, parity_of
from har_edge.tflite.model import Model
from har_edge.tflite.split.arithmetic import count_macs
from har_edge.tflite.split.block import StepDraft
from har_edge.tflite.split.program import ShardDraft, SplitLayout

# How many times as long exact sums take in float32 as the kernels for 8 bits: fully connected layers of 4096 units, and
# VGG16 (x86-64, LiteRT 2.3, one core).
EXACT_FACTOR = {"FULLY_CONNECTED": 5.0, "CONV_2D": 4.1, "TRANSPOSE_CONV": 4.1}
FINISH_MACS = 8  # operations on an element to finish a sum
_WEIGHT_BYTES = 4  # of a weight in memory, where sums are exact


@dataclass(frozen=True, slots=True)
class ParityForecast:
    """The prediction for a window: seconds, and figures of each shard.

    `missing_s` is the latency without the shard whose absence costs most, of those that may be away. It is not below
    `latency_s`: a shard that is away sends nothing, which frees links, but one that is late may still take them.
    """

    latency_s: float
    missing_s: float
    compute_s: tuple[float, ...]
    message_s: tuple[float, ...]
    up_bytes: tuple[int, ...]
    down_bytes: tuple[int, ...]
    memory_bytes: tuple[int, ...]
    largest_bytes: int
    received: int
    sent: int
    broker_bytes: tuple[int, int]


@dataclass(slots=True)
class _State:
    """When processors and links are free, and when each piece and each tensor is there, by shard and name."""

    processors: list[float]
    up: list[float]
    down: list[float]
    broker_in: float = 0.0
    broker_out: float = 0.0
    pieces: dict[tuple[int, str], float] = field(default_factory=dict)
    tensors: dict[tuple[int, str], float] = field(default_factory=dict)


class ParityCosts:
    """A model in the layout of a plan with parities, shard k on device k; `seconds[k][i]` are those of operator i."""

    def __init__(
        self,
        model: Model,
        layout: SplitLayout,
        devices: Sequence[PlannerDevice],
        seconds: Sequence[Sequence[float]],
        broker: BrokerLink,
    ) -> None:
        self.model, self.layout, self.devices = model, layout, devices
        self.seconds, self.broker, self.coded = seconds, broker, layout.manifest.coded

    def forecast(self) -> ParityForecast:
        """Return the prediction."""
        programs = self.layout.programs
        last = len(programs) - 1  # it answers
        up = [sum(map(_bytes, self._sent(one))) + RESULT_BYTES * (k == last) for k, one in enumerate(programs)]
        down = [sum(_bytes(spec) for spec in one.inputs) for one in programs]
        compute = [sum(self._step_seconds(step, k) for step in one.steps) for k, one in enumerate(programs)]
        messages = [len(one.inputs) + len(self._sent(one)) + (k == last) for k, one in enumerate(programs)]
        windows = max(_bytes(spec) for one in programs for spec in one.inputs if spec.name not in self._made())
        kinds = [device.kind for device in self.devices]
        calm = self._simulate(-1)
        return ParityForecast(
            latency_s=calm,
            missing_s=max(calm, *(self._simulate(k) for k in range(last))),
            compute_s=tuple(compute),
            message_s=tuple(
                count * kind.message_s + (u + d) * kind.message_byte_s
                for count, kind, u, d in zip(messages, kinds, up, down, strict=True)
            ),
            up_bytes=tuple(up),
            down_bytes=tuple(down),
            memory_bytes=tuple(self._memory(k) for k in range(len(programs))),
            largest_bytes=max(_bytes(spec) for one in programs for spec in (*one.inputs, *one.outputs)),
            received=sum(len(one.inputs) for one in programs),
            sent=sum(len(self._sent(one)) for one in programs) + 1,
            broker_bytes=(sum(up) + windows, sum(down) + RESULT_BYTES),
        )

    def _made(self) -> set[str]:
        return {spec.name for program in self.layout.programs for spec in program.outputs}

    @staticmethod
    def _sent(program: ShardDraft) -> list[TensorSpec]:
        return [spec for spec, takers in zip(program.outputs, program.takers, strict=True) if takers]

    def _step_seconds(self, step: StepDraft, device: int) -> float:
        """Return the seconds of a step: of whole operators, of a part of one, or of what follows the sums."""
        kind, start, stop = _origin(step)
        seconds, graph = self.seconds[device], self.model.main
        overhead = self.devices[device].kind.overhead_s
        if kind == "whole":
            return overhead + sum(seconds[start:stop])
        macs = max(1, count_macs(graph, range(start, stop)))
        work = seconds[start] / macs
        if kind == "parity finish":
            return overhead + work * FINISH_MACS * step.macs
        exact = self.coded[step.outputs[0].of] == "int32"
        return overhead + work * step.macs * (EXACT_FACTOR[graph.operators[start].name] if exact else 1.0)

    def _memory(self, shard: int) -> int:
        """Return the resident bytes of a shard: the weights of its share, or as many of the parity, and activations."""
        kind, graph, total = self.devices[shard].kind, self.model.main, 0
        most = 0
        for step in self.layout.programs[shard].steps:
            name, start, stop = _origin(step)
            most = max(most, sum(map(_bytes, (*step.inputs, *step.outputs))))
            if name == "parity":
                weights = max((graph.tensors[i] for i in graph.operators[start].inputs), key=lambda one: one.elements)
                share = step.macs / max(1, count_macs(graph, range(start, stop)))
                total += math.ceil(weights.elements * _WEIGHT_BYTES * share)
        return int(kind.base_bytes + kind.growth * (total + most))

    def _simulate(self, away: int) -> float:
        """Return when the answer is there, without one shard (-1: with all)."""
        programs, count = self.layout.programs, len(self.layout.programs)
        state = _State([0.0] * count, [0.0] * count, [0.0] * count)
        made = self._made()
        for k, program in enumerate(programs):
            for spec in program.inputs:
                if spec.name not in made:
                    self._arrive(state, k, spec, 0.0)
        turn = [0] * count
        while True:
            ready = [(*times, k) for k in range(count) if k != away and (times := self._next(state, k, turn[k]))]
            if not ready:
                break
            end, k = min(ready)  # in the order in which they end, since links are taken in this order
            self._run(state, k, turn[k], end)
            turn[k] += 1
        kind = self.devices[-1].kind
        way = max(1 / kind.link_bytes_per_s, self.broker.byte_s)
        return state.processors[-1] + kind.message_s + RESULT_BYTES * (kind.message_byte_s + way) + kind.latency_s

    def _next(self, state: _State, k: int, turn: int) -> tuple[float] | None:
        """Return when the next step of a shard ends, None where it lacks something or there is none."""
        steps = self.layout.programs[k].steps
        begin = self._ready(state, k, steps[turn]) if turn < len(steps) else math.inf
        if begin == math.inf:
            return None
        return (max(state.processors[k], begin) + self._step_seconds(steps[turn], k),)

    def _run(self, state: _State, k: int, turn: int, now: float) -> None:
        """End a step, and send what it makes for others."""
        program, kind = self.layout.programs[k], self.devices[k].kind
        step, state.processors[k] = program.steps[turn], now
        for spec in step.outputs:
            state.pieces[k, spec.name] = state.tensors[k, spec.of] = now
        made = {one.name for one in step.outputs} | {_travels(one) for one in step.outputs}
        for spec, takers in zip(program.outputs, program.takers, strict=True):
            if spec.name not in made or not takers:
                continue
            size = _bytes(spec)
            state.processors[k] += kind.message_s + size * kind.message_byte_s
            leaves = max(state.processors[k], state.up[k], state.broker_in)
            state.up[k] = leaves + size / kind.link_bytes_per_s
            state.broker_in = leaves + size * self.broker.byte_s
            for taker in takers:
                self._arrive(state, taker, spec, max(state.up[k], state.broker_in) + kind.latency_s)

    def _arrive(self, state: _State, taker: int, spec: TensorSpec, at: float) -> None:
        """Bring a piece from the broker to a shard."""
        kind, size = self.devices[taker].kind, _bytes(spec)
        begin = max(at, state.broker_out, state.down[taker])
        state.broker_out = begin + size * self.broker.byte_s
        state.down[taker] = begin + size * max(1 / kind.link_bytes_per_s, self.broker.byte_s)
        took = kind.message_s + size * kind.message_byte_s
        state.pieces[taker, spec.name] = state.tensors[taker, spec.of] = state.down[taker] + kind.latency_s + took

    def _ready(self, state: _State, k: int, step: StepDraft) -> float:
        """Return when a shard has what a step takes, inf where it lacks something."""
        latest = 0.0
        for spec in step.inputs:
            if spec.of in self.coded and spec.region is None:
                times = sorted(state.pieces.get((k, name), math.inf) for name in self._pieces(spec.of))
                latest = max(latest, times[-2])  # all but the last one
            else:
                latest = max(latest, state.tensors.get((k, spec.of), math.inf))
        return latest

    def _pieces(self, tensor: str) -> list[str]:
        """Return the names of all shares of a tensor and of their parity."""
        made = (spec for program in self.layout.programs for step in program.steps for spec in step.outputs)
        return list(dict.fromkeys(spec.name for spec in made if spec.of == tensor and spec.region))


def _origin(step: StepDraft) -> tuple[str, int, int]:
    """Return the kind of a step and its operators [start, stop), with which its key begins."""
    assert isinstance(step.key, tuple)
    return step.key[0], step.key[1], step.key[2]


def _travels(spec: TensorSpec) -> str:
    return f"{spec.of}/parity" if parity_of(spec) else spec.name


def _bytes(spec: TensorSpec) -> int:
    """Return the size of a message that brings a region."""
    width = {"int8": 1, "uint8": 1, "int16": 2, "float16": 2}.get(spec.dtype, 4)
    return math.prod(max(1, size) for size in spec.shape) * width + HEAD_BYTES
