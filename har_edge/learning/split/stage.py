"""One stage on one worker: a pure machine that takes micro-batches through it, forward and backward, and steps.

The order is 1F1B with a flush (Narayanan et al. 2019, PipeDream-Flush): the micro-batches of a step in their order, the
backward pass of one before the forward pass of another, at most `in_flight` of them between their two passes. All of
them see the same weights, so that the gradient is that of one device. Replicas send their sums to the first of them,
which adds them in the order of the replicas and gives the total to all.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from msgspec import structs

from har_edge.errors import MessageError
from har_edge.learning.split.inbox import StageInbox
from har_edge.learning.split.state import StageTensors, state_of
from har_edge.learning.split.step import BackwardPass, StageCompute
from har_edge.learning.split.tensors import Arrays, pack_tensors, split_bytes, unpack_tensors
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.split_training import (
    MAX_LOSS,
    TENSORS,
    GradientShare,
    MicroBatch,
    MicroLoss,
    SplitAssignment,
    SplitLevel,
    SplitStage,
    StageDone,
)
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import encode_training
from har_edge.tflite.gradient.spec import PortSpec
from har_edge.tflite.gradient.stage_spec import StageSpec, sum_bytes

FORWARD, BACKWARD, LABELS, REDUCE = (
    SplitLevel.FORWARD.value,
    SplitLevel.BACKWARD.value,
    SplitLevel.LABELS.value,
    SplitLevel.REDUCE.value,
)
GRADIENT = "gradient"
# The number under which the sum of all replicas comes; replicas have numbers from 0.
_TOTAL = -1


class Operation(enum.Enum):
    """The operations of a stage."""

    FORWARD = "forward"
    BACKWARD = "backward"
    FINISH = "finish"
    SHARE = "share"
    UPDATE = "update"


@dataclass(frozen=True, slots=True)
class StepHead:
    """The step as its messages describe it: how many micro-batches and samples, and what follows it."""

    micros: int
    samples: int
    snapshot: bool
    save: bool
    committed: int


@dataclass(frozen=True, slots=True)
class StagePlace:
    """The place of a stage: whose it is, which stage of which assignment, and on which worker."""

    topics: Topics
    assignment: SplitAssignment
    number: int
    worker: str

    @property
    def stage(self) -> SplitStage:
        """The stage as the plan has it."""
        return self.assignment.stages[self.number].stage

    @property
    def replica(self) -> int:
        """Which of the stage's workers this is."""
        return self.stage.workers.index(self.worker)

    def topic(self, level: str, worker: str) -> str:
        """Return the topic of a message to, or of, a worker."""
        return self.topics.training(self.assignment.run, level, worker)


def label_ports(spec: StageSpec) -> tuple[PortSpec, ...]:
    """Return what the labels of the last stage are made of: the targets, and the weight of each sample."""
    found = [one for one in (spec.labels, spec.sample_weight) if one is not None]
    return tuple(structs.replace(one, name=one.port) for one in found)


@dataclass(slots=True)
class _Timing:
    """Seconds of a step."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    update_s: float = 0.0
    longest_s: float = 0.0
    sent_bytes: int = 0
    began: float | None = None


class StageMachine:
    """One stage on one worker.

    `step` steps are done. `snapshot` is the state after the last step where it is to be copied; whoever copies it sets
    it back. `problem` says why the stage does not go on.
    """

    def __init__(self, place: StagePlace, compute: StageCompute, state: StageTensors) -> None:
        self.place, self.compute = place, compute
        self.step, self.weights = state.step, state.weights.copy()
        self.problem, self.save, self.committed = "", False, 0
        self.snapshot: StageTensors | None = None
        self._optimizer = state.optimizer(place.assignment.optimizer)
        self._gradient = np.zeros_like(self.weights)
        self._inbox, self._held = StageInbox(), dict[int, Arrays]()
        self._heads: dict[int, StepHead] = {}
        self._timing = _Timing()
        self._begin()

    def _begin(self) -> None:
        self._forwarded = self._returned = 0
        self._shared = False
        self._mine: list[int] | None = None

    @property
    def spec(self) -> StageSpec:
        """The description of the stage."""
        return self.compute.spec

    @property
    def head(self) -> StepHead | None:
        """The step under way, as far as it is known."""
        return self._heads.get(self.step)

    # --- what comes ---------------------------------------------------------------------------------------------------

    def receive(self, level: str, message: MicroBatch) -> None:
        """Take a part of a micro-batch. Raises MessageError for one that does not belong to this stage or step."""
        if not self._is_near(message.step):
            return
        if self.place.stage.replica(message.micro) != self.place.replica:
            raise MessageError(f"micro-batch {message.micro} came to replica {self.place.replica}, which has others")
        size = sum_bytes(self._ports(level))
        if self._inbox.add((level, message.step, message.micro), message.part, TENSORS, size):
            self._note(message.step, message.micros, message)

    def share(self, message: GradientShare) -> None:
        """Take a part of the gradients of another replica, or of the sum of all."""
        if not self._is_near(message.step):
            return
        number = _TOTAL
        if not message.total:
            if message.sender not in self.place.stage.workers or self.place.replica:
                raise MessageError(f"gradients of {message.sender!r} came; expected those of a replica, at the first")
            number = self.place.stage.workers.index(message.sender)
        if self._inbox.add((REDUCE, message.step, number), message.part, GRADIENT, 4 * self.spec.elements):
            self._note(message.step, message.micros, message)

    def _is_near(self, step: int) -> bool:
        """Return whether a message is of this step or the next; what is older came twice."""
        if step > self.step + 1:
            raise MessageError(f"a message of step {step} came; expected one of step {self.step} or the next")
        return step >= self.step

    def _note(self, step: int, micros: int, message: MicroBatch | GradientShare) -> None:
        head = StepHead(micros, message.samples, message.snapshot, message.save, message.committed)
        self._heads.setdefault(step, head)
        self.committed = max(self.committed, message.committed)

    def _ports(self, level: str) -> tuple[PortSpec, ...]:
        spec = self.spec
        if level == LABELS:
            return label_ports(spec)
        if level == BACKWARD:
            return spec.ports(spec.awaited, spec.leaving)
        return spec.entering

    # --- what can be done ---------------------------------------------------------------------------------------------

    @property
    def mine(self) -> list[int]:
        """The micro-batches of the step that this replica takes, in order."""
        if self._mine is None and self.head is not None:
            stage, own = self.place.stage, self.place.replica
            self._mine = [micro for micro in range(self.head.micros) if stage.replica(micro) == own]
        return self._mine or []

    def next_operation(self) -> Operation | None:
        """Return what can be computed now."""
        if self.problem or self.head is None:
            return None
        mine, step = self.mine, self.step
        if self._returned == len(mine) == self._forwarded:
            return self._next_update()
        forward = self._forwarded < len(mine) and self._inbox.has((FORWARD, step, mine[self._forwarded]))
        if self.spec.last:
            ready = forward and self._inbox.has((LABELS, step, mine[self._forwarded]))
            return Operation.FINISH if ready else None
        if self._returned < self._forwarded and self._inbox.has((BACKWARD, step, mine[self._returned])):
            return Operation.BACKWARD
        if forward and self._forwarded - self._returned < self.place.stage.in_flight:
            return Operation.FORWARD
        return None

    def _next_update(self) -> Operation | None:
        """Return what follows when all micro-batches are through."""
        if len(self.place.stage.workers) == 1:
            return Operation.UPDATE
        if self.place.replica:
            if self.mine and not self._shared:
                return Operation.SHARE
            return Operation.UPDATE if self._inbox.has((REDUCE, self.step, _TOTAL)) else None
        here = all(self._inbox.has((REDUCE, self.step, number)) for number in self._others())
        return Operation.UPDATE if here else None

    def _others(self) -> list[int]:
        """Return the replicas beside the first that have micro-batches in this step."""
        head, stage = self.head, self.place.stage
        assert head is not None
        return sorted({stage.replica(micro) for micro in range(head.micros)} - {0})

    def work(self, clock: Callable[[], float]) -> list[Outgoing]:
        """Do what comes next; return what others are to know of it."""
        operation = self.next_operation()
        if operation is None:
            return []
        began, timing = clock(), self._timing
        timing.began = began if timing.began is None else timing.began
        sent = _DO[operation](self)
        seconds = max(0.0, clock() - began)
        timing.longest_s = max(timing.longest_s, seconds)
        timing.sent_bytes += sum(len(one.payload) for one in sent)
        if operation is Operation.FORWARD:
            timing.forward_s += seconds
        elif operation in (Operation.BACKWARD, Operation.FINISH):
            timing.backward_s += seconds
        else:
            timing.update_s += seconds
        if operation is Operation.UPDATE or self.problem:
            sent.append(self._done(began + seconds))
        return sent

    # --- micro-batches ------------------------------------------------------------------------------------------------

    def _forward(self) -> list[Outgoing]:
        micro = self.mine[self._forwarded]
        entering = self._take(FORWARD, micro)
        found = self.compute.forward(self.weights, entering)
        self._forwarded += 1
        if self.spec.trains:
            self._held[micro] = found.held
        else:
            self._returned += 1
        return self._send(FORWARD, self.place.number + 1, micro, found.leaving, self.spec.leaving)

    def _backward(self) -> list[Outgoing]:
        micro = self.mine[self._returned]
        dy = self._take(BACKWARD, micro)
        found = self.compute.backward(self.weights, self._held.pop(micro), dy)
        self._returned += 1
        return self._go_back(micro, found)

    def _finish(self) -> list[Outgoing]:
        micro = self.mine[self._forwarded]
        entering, labels = self._take(FORWARD, micro), self._take(LABELS, micro)
        targets, weight = (labels[port.name] for port in label_ports(self.spec))
        found = self.compute.finish(self.weights, entering, targets, weight)
        if not math.isfinite(found.loss) or abs(found.loss) > MAX_LOSS:  # a message carries no more
            self.problem = (
                f"the loss of micro-batch {micro} in step {self.step} became {found.loss}; the learning rate may be "
                "too high"
            )
            return []
        self._forwarded += 1
        self._returned += 1
        place, correct = self.place, 0
        if found.predictions is not None and self.spec.loss == "cross-entropy":
            rows = (found.predictions.reshape(len(targets), -1).argmax(axis=1)) == (
                targets.reshape(len(targets), -1).argmax(axis=1)
            )
            correct = int((rows & (weight.reshape(-1)[: len(rows)] > 0)).sum())
        report = MicroLoss(
            run=place.assignment.run,
            author=place.assignment.author,
            worker=place.worker,
            generation=place.assignment.generation,
            step=self.step,
            micro=micro,
            loss=found.loss,
            correct=correct,
        )
        told = Outgoing(place.topic(SplitLevel.LOSS.value, place.worker), encode_training(report))
        return [*self._go_back(micro, found), told]

    def _go_back(self, micro: int, found: BackwardPass) -> list[Outgoing]:
        """Add the gradients of a micro-batch, and send back those of what entered."""
        self._gradient += found.gradient
        spec = self.spec
        if not spec.returned or not self.place.number:
            return []
        return self._send(
            BACKWARD, self.place.number - 1, micro, found.returned, spec.ports(spec.returned, spec.entering)
        )

    def _take(self, level: str, micro: int) -> Arrays:
        return unpack_tensors(self._inbox.take((level, self.step, micro)), self._ports(level))

    def _send(self, level: str, number: int, micro: int, arrays: Arrays, ports: tuple[PortSpec, ...]) -> list[Outgoing]:
        place, head = self.place, self.head
        assert head is not None
        stage = place.assignment.stages[number].stage
        topic = place.topic(level, stage.workers[stage.replica(micro)])
        return [
            Outgoing(
                topic,
                encode_training(
                    MicroBatch(
                        run=place.assignment.run,
                        author=place.assignment.author,
                        sender=place.worker,
                        generation=place.assignment.generation,
                        stage=number,
                        step=self.step,
                        part=part,
                        micro=micro,
                        micros=head.micros,
                        samples=head.samples,
                        snapshot=head.snapshot,
                        save=head.save,
                        committed=head.committed,
                    )
                ),
            )
            for part in split_bytes(TENSORS, pack_tensors(arrays, ports))
        ]

    # --- the step -----------------------------------------------------------------------------------------------------

    def _share(self) -> list[Outgoing]:
        self._shared = True
        return self._gradients(self.place.stage.workers[0], total=False)

    def _gradients(self, worker: str, *, total: bool) -> list[Outgoing]:
        place, head = self.place, self.head
        assert head is not None
        return [
            Outgoing(
                place.topic(REDUCE, worker),
                encode_training(
                    GradientShare(
                        run=place.assignment.run,
                        author=place.assignment.author,
                        sender=place.worker,
                        generation=place.assignment.generation,
                        stage=place.number,
                        step=self.step,
                        part=part,
                        total=total,
                        micros=head.micros,
                        samples=head.samples,
                        snapshot=head.snapshot,
                        save=head.save,
                        committed=head.committed,
                    )
                ),
            )
            for part in split_bytes(GRADIENT, self._gradient.astype("<f4", copy=False).tobytes())
        ]

    def _update(self) -> list[Outgoing]:
        """Add what other replicas have, step, and begin the next step."""
        head, sent = self.head, list[Outgoing]()
        assert head is not None
        if self.place.replica:
            self._gradient[:] = np.frombuffer(self._inbox.take((REDUCE, self.step, _TOTAL)), "<f4")
        elif len(self.place.stage.workers) > 1:
            for number in self._others():
                self._gradient += np.frombuffer(self._inbox.take((REDUCE, self.step, number)), "<f4")
            for worker in self.place.stage.workers[1:]:
                sent += self._gradients(worker, total=True)
        self._gradient /= np.float32(head.samples)
        if not np.isfinite(self._gradient).all():
            self.problem = (
                f"operators {self.place.stage.start} to {self.place.stage.stop} have gradients that are not finite in "
                f"step {self.step}; the learning rate may be too high"
            )
            return []
        if self.weights.size:
            self._optimizer.step(self.weights, self._gradient)
        self._gradient[:] = 0
        self._heads.pop(self.step, None)
        self.step += 1
        self._inbox.forget_before(self.step)
        self._begin()
        if head.snapshot or head.save:
            self.snapshot, self.save = state_of(self.step, self.weights, self._optimizer), head.save
        return sent

    def _done(self, now: float) -> Outgoing:
        place, timing = self.place, self._timing
        busy = timing.forward_s + timing.backward_s + timing.update_s
        passed = now - timing.began if timing.began is not None else busy
        report = StageDone(
            run=place.assignment.run,
            author=place.assignment.author,
            worker=place.worker,
            generation=place.assignment.generation,
            stage=place.number,
            step=self.step,
            forward_s=timing.forward_s,
            backward_s=timing.backward_s,
            update_s=timing.update_s,
            idle_s=max(0.0, passed - busy),
            longest_s=timing.longest_s,
            sent_bytes=timing.sent_bytes,
            problem=self.problem[:400],
        )
        self._timing = _Timing(began=now)
        return Outgoing(place.topic(SplitLevel.DONE.value, place.worker), encode_training(report))


_DO: dict[Operation, Callable[[StageMachine], list[Outgoing]]] = {
    Operation.FORWARD: StageMachine._forward,
    Operation.BACKWARD: StageMachine._backward,
    Operation.FINISH: StageMachine._finish,
    Operation.SHARE: StageMachine._share,
    Operation.UPDATE: StageMachine._update,
}
