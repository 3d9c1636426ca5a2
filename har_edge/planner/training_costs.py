"""The costs of a stage of a split training: its seconds a micro-batch and its memory, on a device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from har_edge.planner.devices import UNLIMITED, BrokerLink
from har_edge.planner.training_devices import SplitDevice
from har_edge.planner.training_profile import TrainingProfile, at_batch

VALUE_BYTES = 4
# Copies of a stage's weights: weights, sum of gradients, scratch, gradients that leave the runtime, states that come or
# are written. Measured: bench/split_training.py saw 12 to 16 with momentum, all of these together. Each vector of the
# optimizer is there once, and three times more while the state is written. The graphs have the weights forward and
# backward, and the gradient.
OWN_COPIES, STATE_COPIES, GRAPH_COPIES = 9, 4, 3
# Bytes of one message, and of the topic, names and shapes around it.
PART_BYTES, HEAD_BYTES = 2**20, 256


@dataclass(frozen=True, slots=True)
class TrainingProblem:
    """A training to plan.

    Attributes:
        profile: The measurements; devices are compared with the one that it was measured on.
        devices: The devices that may train.
        batch: The samples of a step.
        vectors: How many values the optimizer keeps for a weight: sgd 0, momentum 1, adam 2.
        broker: The link of the broker's host.
        stages: How many stages a plan has; None leaves it open.
        cuts: The operators at which stages begin, but for the first; None leaves it open.
        micro_batches: How many micro-batches a step has; None leaves it open.
        replicas: How many devices a stage may have.
        latency_s: From a device to the broker, one way.
    """

    profile: TrainingProfile
    devices: tuple[SplitDevice, ...]
    batch: int
    vectors: int = 1
    broker: BrokerLink = UNLIMITED
    stages: int | None = None
    cuts: tuple[int, ...] | None = None
    micro_batches: int | None = None
    replicas: int = 1
    latency_s: float = 0.0

    @property
    def splits(self) -> list[tuple[int, int]]:
        """The ways to divide a step, each as micro-batches and the samples of one; the fewest micro-batches first."""
        if self.micro_batches is not None:
            count = min(self.micro_batches, self.batch)
            return [(count, math.ceil(self.batch / count))]
        sizes = [size for size in range(1, self.batch + 1) if self.batch % size == 0 or not size & (size - 1)]
        return sorted((math.ceil(self.batch / size), size) for size in sizes)


@dataclass(frozen=True, slots=True)
class TrainedStage:
    """A stage on a device: how it runs, and its costs there.

    Attributes:
        keep: Whether the forward pass keeps what the backward pass needs; else that runs forward again.
        in_flight: The most micro-batches that have gone forward and not yet back.
        forward_s, backward_s: Seconds of the processor for one micro-batch, messages included.
        compute_s: The part of both without messages.
        update_s: Seconds of the optimizer's step.
        memory_bytes: Resident memory of the process.
    """

    keep: bool
    in_flight: int
    forward_s: float
    backward_s: float
    compute_s: float
    update_s: float
    memory_bytes: int

    @property
    def both_s(self) -> float:
        """Seconds of a micro-batch there and back."""
        return self.forward_s + self.backward_s


class StageCosts:
    """The costs of every stage for micro-batches of one size; stages are segments [first, last) of the profile."""

    def __init__(self, problem: TrainingProblem, micro_batch: int) -> None:
        profile = problem.profile
        self.problem, self.micro_batch, self.n = problem, micro_batch, len(profile.segments)
        times = [
            [
                at_batch(profile.batches, tuple(getattr(each, name) for each in one.times), micro_batch)
                for name in ("forward_s", "backward_s", "recompute_s")
            ]
            for one in profile.segments
        ]
        self.forward_s, self.backward_s, self.recompute_s = (
            [0.0, *accumulate(seconds[column] for seconds in times)] for column in range(3)
        )
        self.elements = [0, *accumulate(one.elements for one in profile.segments)]
        self.kept = [0, *accumulate(one.kept_bytes - one.shared_bytes for one in profile.segments)]
        self.workspace = [
            round(at_batch(profile.batches, tuple(map(float, one.workspace_bytes)), micro_batch))
            for one in profile.segments
        ]
        self.work_s = [forward + backward for forward, backward in zip(self.forward_s, self.backward_s, strict=True)]

    def whole_s(self) -> float | None:
        """Return the seconds of a micro-batch where one graph holds the whole model; None where that has not run."""
        profile = self.problem.profile
        return at_batch(profile.batches, profile.whole_s, self.micro_batch) if profile.whole_s else None

    def entering_bytes(self, place: int) -> int:
        """Return what a micro-batch brings forward over the place in front of a segment; 0 behind the last one."""
        return 0 if place == self.n else self.problem.profile.segments[place].entering_bytes * self.micro_batch

    def gradient_bytes(self, place: int) -> int:
        """Return what a micro-batch brings back over a place; 0 at both ends."""
        return 0 if place in (0, self.n) else self.problem.profile.segments[place].gradient_bytes * self.micro_batch

    def weight_bytes(self, first: int, last: int) -> int:
        """Return the bytes of a stage's weights."""
        return (self.elements[last] - self.elements[first]) * VALUE_BYTES

    def memory_bytes(self, first: int, last: int, in_flight: int, *, keep: bool) -> int:
        """Return the resident memory of a process that runs a stage."""
        problem, size = self.problem, self.micro_batch
        ends = last == self.n
        kept = (self.kept[last] - self.kept[first]) * size + problem.profile.segments[first].shared_bytes * size
        held = kept if keep and not ends else self.entering_bytes(first)
        graphs = GRAPH_COPIES - ends  # the last stage has one graph
        # Kept tensors stand in the graph that makes it, and in the one that takes it.
        in_graphs = kept * (2 if keep and not ends else 1)
        return (
            problem.profile.base_bytes
            + self.weight_bytes(first, last) * (OWN_COPIES + graphs + STATE_COPIES * problem.vectors)
            + in_graphs
            + max(self.workspace[first:last])
            + in_flight * held
            + 2 * (self.entering_bytes(first) + self.entering_bytes(last))
        )

    def setup(
        self, first: int, last: int, device: SplitDevice, in_flight: int, limit: int | None = None
    ) -> TrainedStage | None:
        """Return how a device runs a stage; None where its memory is too small.

        It keeps what the backward pass needs if that fits, and has `in_flight` micro-batches under way. `limit` stands
        for the device's own limit of memory, 0 for none.
        """
        limit = device.memory_bytes if limit is None else limit
        ends = last == self.n
        for keep in (True, False):
            memory = self.memory_bytes(first, last, in_flight, keep=keep)
            if not limit or memory <= limit:
                return self._timed(first, last, device, in_flight, memory, keep=keep or ends)
        return None

    def _timed(
        self, first: int, last: int, device: SplitDevice, in_flight: int, memory: int, *, keep: bool
    ) -> TrainedStage:
        profile, slow = self.problem.profile, device.slowdown
        elements, ends = self.elements[last] - self.elements[first], last == self.n
        forward = self.forward_s[last] - self.forward_s[first]
        # The last stage runs forward and backward at once and has nothing to run again.
        table = self.backward_s if keep else self.recompute_s
        backward = table[last] - table[first] + (forward if ends else 0.0) + profile.add_s * elements
        forward = 0.0 if ends else forward
        there = self._message_s(self.entering_bytes(first)) + self._message_s(self.entering_bytes(last))
        back = self._message_s(self.gradient_bytes(first)) + self._message_s(self.gradient_bytes(last))
        if ends:
            there, back = 0.0, there + back
        return TrainedStage(
            keep,
            in_flight,
            slow * (forward + there),
            slow * (backward + back),
            slow * (forward + backward),
            slow * profile.update_s * elements,
            memory,
        )

    def _message_s(self, count: int) -> float:
        """Return the seconds of the processor for what crosses one place in one direction, at one of its ends."""
        message = self.problem.profile.message
        if message is None or not count:
            return 0.0
        return message.seconds * math.ceil(count / PART_BYTES) + message.seconds_per_byte * count
