"""The samples of an epoch: each is free, out with one task, or counted; none is counted twice."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from har_edge.errors import ModelError
from har_edge.protocol.training import SampleRange


@dataclass(slots=True)
class SampleAccount:
    """The samples of one epoch, by block and by their places in the epoch's order.

    `sizes` are those of the blocks. A block in `homes` has one worker that may take it: its own samples, which it gives
    no one. `out` are the ranges of tasks under way, by the task's number.
    """

    sizes: dict[int, int]
    homes: dict[int, str] = field(default_factory=dict)
    counted: int = 0
    free: dict[int, list[SampleRange]] = field(init=False)
    out: dict[int, tuple[SampleRange, ...]] = field(default_factory=dict)
    skipped: int = 0

    def __post_init__(self) -> None:
        self.free = {block: [SampleRange(block, 0, size)] for block, size in sorted(self.sizes.items()) if size}

    def add(self, block: int, samples: int, home: str) -> None:
        """Add the samples of a worker that they stay with."""
        self.sizes[block], self.homes[block] = samples, home
        self._free([SampleRange(block, 0, samples)])

    @property
    def total(self) -> int:
        """How many samples the epoch has."""
        return sum(self.sizes.values())

    @property
    def open(self) -> int:
        """How many samples no task has and nobody has counted."""
        return sum(one.samples for ranges in self.free.values() for one in ranges)

    @property
    def ended(self) -> bool:
        """Whether every sample is counted, or skipped because its owner has gone."""
        return not self.free and not self.out

    def available(self, worker: str) -> int:
        """Return how many free samples a worker may take."""
        return sum(one.samples for block, ranges in self.free.items() if self._may(worker, block) for one in ranges)

    def take(
        self, task: int, worker: str, samples: int, held: Collection[int] = (), others: Collection[int] = ()
    ) -> tuple[SampleRange, ...]:
        """Give a task up to `samples` free ones: of blocks that the worker has, of new ones, then of `others`."""
        if task in self.out:
            raise ModelError(f"task {task} has samples already; expected a new number")
        taken: list[SampleRange] = []
        blocks = [block for block in self.free if self._may(worker, block)]
        for block in sorted(blocks, key=lambda one: (one not in held, one in others, one)):
            ranges = self.free[block]
            while samples > 0 and ranges:
                first = ranges.pop(0)
                stop = min(first.stop, first.start + samples)
                taken.append(SampleRange(block, first.start, stop))
                samples -= stop - first.start
                if stop < first.stop:
                    ranges.insert(0, SampleRange(block, stop, first.stop))
            if not ranges:
                del self.free[block]
            if samples == 0:
                break
        if taken:
            self.out[task] = tuple(taken)
        return tuple(taken)

    def count(self, task: int, samples: int) -> tuple[SampleRange, ...]:
        """Count the first `samples` of a task, and return them; the others are free again.

        Raises ModelError for more than it had.
        """
        ranges = self.out.get(task)
        if ranges is None or samples > sum(one.samples for one in ranges):
            had = sum(one.samples for one in ranges or ())
            raise ModelError(f"{samples} samples came for task {task}; expected at most the {had} that it has")
        del self.out[task]
        self.counted += samples
        rest, counted = [], []
        for one in ranges:
            used = min(samples, one.samples)
            samples -= used
            if used:
                counted.append(SampleRange(one.block, one.start, one.start + used))
            if used < one.samples:
                rest.append(SampleRange(one.block, one.start + used, one.stop))
        self._free(rest)
        return tuple(counted)

    def uncount(self, ranges: Collection[SampleRange]) -> None:
        """Make samples free again that were counted, and whose update is not used."""
        self.counted -= sum(one.samples for one in ranges)
        self._free(ranges)

    def give_back(self, task: int) -> None:
        """Make the samples of a task free again; nothing where the task has none."""
        self._free(self.out.pop(task, ()))

    def skip(self, worker: str) -> int:
        """Leave out what a worker that has gone was to compute of its own samples; return how many."""
        gone = [block for block, home in self.homes.items() if home == worker and block in self.free]
        count = sum(one.samples for block in gone for one in self.free.pop(block))
        self.skipped += count
        return count

    def skip_free(self) -> int:
        """Leave out what no task has; return how many samples."""
        count = self.open
        self.free.clear()
        self.skipped += count
        return count

    def restore(self, free: Iterable[SampleRange], counted: int, skipped: int = 0) -> None:
        """Go on from a checkpoint. Raises ModelError for ranges that do not fit the blocks."""
        self.free, self.out, self.counted, self.skipped = {}, {}, counted, skipped
        for one in free:
            if not 0 <= one.start < one.stop <= self.sizes.get(one.block, 0):
                raise ModelError(f"samples {one.start} to {one.stop} of block {one.block} came; it has no such samples")
            self._free([one])
        if self.open + counted + skipped != self.total:
            raise ModelError(
                f"{self.open} free, {counted} counted and {skipped} skipped samples came for an epoch of {self.total}"
            )

    def _may(self, worker: str, block: int) -> bool:
        return self.homes.get(block, worker) == worker

    def _free(self, ranges: Iterable[SampleRange]) -> None:
        for one in ranges:
            block = sorted([*self.free.get(one.block, ()), one])
            merged = [block[0]]
            for after in block[1:]:
                if after.start < merged[-1].stop:
                    raise ModelError(f"samples {after.start} to {after.stop} of block {after.block} were free already")
                if after.start == merged[-1].stop:
                    merged[-1] = SampleRange(after.block, merged[-1].start, after.stop)
                else:
                    merged.append(after)
            self.free[one.block] = merged
