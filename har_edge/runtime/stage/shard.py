"""A stage that runs a shard: step by step, as soon as the regions of a step are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from har_edge.errors import MessageError, ModelError
from har_edge.inference.shard_program import ShardRun
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol import wire
from har_edge.runtime.stage.no_score import NoScore, explain
from har_edge.runtime.stage.setup import Array, StageSetup
from har_edge.runtime.stage.stage import OUTPUT_BYTES, RECENT_S, Stage
from har_edge.runtime.stage.window import PartialWindow, ShardProgress, WindowEvent, WindowState

# Bytes of windows that have all parts and are not run to their end, above which a shard takes no more.
FULL_BYTES = 16 * 1024 * 1024


class ShardStage(Stage):
    """Runs the steps of a shard, the oldest window first, and publishes each message as soon as its tensors are there.

    `handle` takes messages in and computes nothing; `step` runs one step, so that what it gives leaves before the next
    one. The deliveries of a window are acknowledged when all steps are run and all messages are safe. A window that
    goes to the replay buffer keeps what was computed of it, unless others went there after it (replay_buffer.py).

    Shards of the same operators send to each other, so a repetition must not call for another one without end: only
    parts that the first step takes make a shard publish again, and first steps never wait for each other in a circle.
    Other parts of a window that was run are kept in the replay buffer, where they hold up nothing.

    A model of one source knows by the time of capture whether parts are of the same run of its sensor; only such parts
    go together.

    A window for which a parity stands for a share ends as soon as its steps are run with the parts that came. The part
    that it lacks is late then: it is acknowledged, counted and dropped. A shard that is late itself leaves out what the
    others can do without, and then handles all that came before it computes.
    """

    def __init__(self, setup: StageSetup, *, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        super().__init__(setup, clock=clock, monotonic=monotonic)
        assert setup.program is not None
        self._program = setup.program
        self._whole: list[PartialWindow] = []  # windows with all parts
        self._whole_bytes = 0
        made = (spec.name for spec in setup.wiring.entry.outputs)
        self._answer = frozenset(setup.task.results).intersection(made) if setup.answers else frozenset[str]()
        self._passes = frozenset(spec.name for spec in setup.wiring.passes)
        both = self._answer.intersection(setup.wiring.sends)
        if both:
            raise ModelError(
                f"a shard gives {min(both)[:64]!r} as a result and sends it to others; cut the model again"
            )
        self._wanted = dict.fromkeys((*setup.wiring.sends, *self._answer))
        self._flow_of = {name: number for number, (_, names) in enumerate(self._outputs.flows) for name in names}
        self._one_source = len(setup.task.inputs) == 1
        self._is_behind = False  # whether the others did without a share of the window that was run last

    @property
    def waiting(self) -> int:
        """How many windows wait for parts, or for steps to be run."""
        return len(self._join) + len(self._whole)

    @property
    def ready(self) -> bool:
        """Whether a step can run now, or a window ends."""
        for _ in self._candidates():
            return True
        return False

    @property
    def full(self) -> bool:
        """Whether so much waits to be run that more messages should wait at the broker."""
        return self._whole_bytes > FULL_BYTES

    @property
    def reads_first(self) -> bool:
        """Whether all that came should be handled before a step: this shard is late, and others make steps needless."""
        return self._is_behind

    def step(self) -> list[Outgoing]:
        """Run the first step that is ready, of the oldest window; return what to publish before the next one."""
        window = min(self._candidates(), key=lambda one: one.came, default=None)
        if window is None:
            return []
        assert window.progress is not None
        run = window.progress.run
        self.batch = window.message.count
        try:
            if run.next is not None:
                run.step(run.next)
            outgoing = self._publish(window, window.progress)
        except NoScore as error:
            return [self._drop(window, explain(error, window.parts, self._setup.wiring))]
        except MessageError as error:
            return [self._drop(window, error)]
        if run.complete and self._is_enough(window):
            self._complete(self._join.decode(window.slot))
        return self._end(window, outgoing) if run.complete and self._is_whole(window) else outgoing

    def _is_whole(self, window: PartialWindow) -> bool:
        return any(one is window for one in self._whole)

    def _is_enough(self, window: PartialWindow) -> bool:
        """Return whether a window that waits lacks nothing but shares for which a parity can stand."""
        waits = bool(self._program.optional) and self._join.find(window.slot) is window
        return waits and self._program.optional.issuperset(self._join.missing(window))

    def _candidates(self) -> Iterator[PartialWindow]:
        for window in self._whole:
            if window.progress is not None and (window.progress.run.next is not None or window.progress.run.complete):
                yield window
        for window in self._join.windows:
            run = window.progress and window.progress.run
            if run and (run.next is not None or (run.complete and self._is_enough(window))):
                yield window

    def _publish(self, window: PartialWindow, progress: ShardProgress) -> list[Outgoing]:
        """Return the messages whose tensors are all there, each once."""
        run, outgoing = progress.run, list[Outgoing]()
        covered, deliveries = set(run.covered), tuple(window.deliveries)
        if not covered:
            return []
        if self._answer and covered >= self._answer and window.parts.keys() >= self._passes:
            made = {name: run.take(name) for name in self._answer}
            outgoing += self._outputs.write_results(window.message, {**window.parts, **made}, deliveries)
        for number in sorted({self._flow_of[name] for name in covered if name in self._flow_of}):
            level, names = self._outputs.flows[number]
            if covered.issuperset(names):
                tensors = {name: run.take(name) for name in names}
                outgoing.append(self._outputs.write_flow(window.message, level, tensors, deliveries))
        progress.made_bytes += sum(len(one.payload) for one in outgoing)
        progress.made = [*progress.made, *outgoing] if progress.made_bytes <= OUTPUT_BYTES else []
        return [msgspec.structs.replace(one, partial=True) for one in outgoing]

    def _release(self, window: PartialWindow) -> list[Outgoing]:
        """Release a window that no longer waits; what other shards need of it leaves first, or each would wait."""
        outgoing, progress = list[Outgoing](), window.progress
        if window.state is WindowState.SHELVED and progress is not None:
            try:
                while due := progress.run.due:  # a step may make others needless
                    progress.run.step(due[0])
                outgoing = self._publish(window, progress)
            except MessageError as error:
                self._reject((), f"window {window.message.seq} of {window.message.stream}", error)
        return outgoing + super()._release(window)

    def _end(self, window: PartialWindow, outgoing: list[Outgoing]) -> list[Outgoing]:
        """Return the last messages of a window, which settle its deliveries."""
        self._forget(window)
        self._count(window.message, ())
        if window.progress is not None:
            self.counters.decoded += window.message.count if window.progress.run.decoded else 0
            self._is_behind = window.progress.run.left_out
        progress, acks = window.progress, tuple(window.deliveries)
        if self._setup.remembers and progress is not None:
            self._cache.keep(window.key, self._monotonic(), window.message.captured, progress.made)
        last = [msgspec.structs.replace(one, acks=acks, partial=False) for one in outgoing]
        return last or [Outgoing("", b"", acks)]

    def _drop(self, window: PartialWindow, error: MessageError) -> Outgoing:
        if window in self._whole:
            self._forget(window)
        else:
            self._join.remove(window.slot)
        return self._reject(tuple(window.deliveries), f"window {window.message.seq} of {window.message.stream}", error)

    def _forget(self, window: PartialWindow) -> None:
        self._whole = [one for one in self._whole if one is not window]
        self._whole_bytes -= window.nbytes

    def _complete(self, window: PartialWindow) -> list[Outgoing]:
        """Keep a window that has all its parts until its steps are run."""
        self._whole.append(window)
        # A compressed message was not counted with what its parts take.
        window.nbytes = max(window.nbytes, sum([part.nbytes for part in window.parts.values()]))
        self._whole_bytes += window.nbytes
        return []

    def _add(
        self, message: wire.Message, parts: Mapping[str, Array], delivery: Delivery, came: float
    ) -> PartialWindow | None:
        """Add the parts of a message; return the window once it is complete."""
        window = self._join.find((message.stream, message.seq, message.count))
        if window is not None and any(
            window.captured.get(name, message.captured) != message.captured for name in parts
        ):
            window.progress = None  # made of other parts
        if window is not None and self._one_source and window.message.captured != message.captured:
            window.parts.clear()
            window.captured.clear()
            window.progress = None
        complete = self._join.add(message, parts, delivery, came)
        window = complete or self._join.find((message.stream, message.seq, message.count))
        assert window is not None
        if window.progress is None:
            window.progress = ShardProgress(ShardRun(self._program, self._wanted, spares=True))
            parts = window.parts
        window.progress.run.add(parts)
        rootless = complete is None and self._program.roots.isdisjoint(window.parts)
        if rootless and window.reopened and not delivery.duplicate:
            self._join.expel(window.slot)
        return complete

    def _settle(
        self, message: wire.Message, parts: Mapping[str, Array], delivery: Delivery, came: float
    ) -> list[Outgoing]:
        """Release, and count, parts of a window that was run, or is being run, with them; else return nothing."""
        key = message.stream, message.seq
        for window in self._whole:
            if window.slot == (*key, message.count) and all(
                window.captured.get(name) == message.captured for name in parts
            ):
                window.deliveries.append(delivery)
                self.counters.duplicates += message.count
                return [Outgoing("", b"")]
        if not self._joins:
            return super()._settle(message, parts, delivery, came)
        waiting = self._join.find((*key, message.count))
        if waiting is None and self._is_late(message, parts):
            self._join.note(key, WindowEvent.LATE_PART)
            self.counters.late += message.count
            return [Outgoing("", b"", (delivery,))]
        if self._one_source and waiting is not None and message.captured < waiting.message.captured:
            self.counters.duplicates += message.count  # of an earlier run of its sensor
            return [Outgoing("", b"", (delivery,))]
        output = self._cache.find(key)
        if output is not None and self._join.repeats(message, parts, delivery):
            recent = came < output[0] + RECENT_S
            again = bool(output[3]) and waiting is None and not self._program.roots.isdisjoint(parts)
            if recent or again:
                self._join.note(key, WindowEvent.REPEATED)
                self.counters.duplicates += message.count
                release = (delivery,)
                return [Outgoing("", b"", release)] if recent else self._cache.replay(key, self._monotonic(), release)
        if self._replay:
            self._unshelve(key, message, parts, came)
        return []

    def _unshelve(self, key: tuple[str, int], message: wire.Message, parts: Mapping[str, Array], came: float) -> None:
        """Let what is kept of a window wait again; it is computed again where what the first step takes came again.

        Who sends that anew misses an answer, so another shard may lack what this one has sent.
        """
        super()._unshelve(key, message, parts, came)
        window = self._join.find((*key, message.count))
        if window is not None and not self._program.roots.isdisjoint(parts):
            window.progress = None

    def _is_late(self, message: wire.Message, parts: Mapping[str, Array]) -> bool:
        """Return whether a window of the same run was run without these shares, a parity in their place."""
        key = message.stream, message.seq
        if not self._program.optional.issuperset(parts) or (*key, message.count) in self._replay:
            return False
        known = self._join.run_with(key)
        return known.keys().isdisjoint(parts) and message.captured in known.values()

    def _expire(self, window: PartialWindow) -> None:
        """Count a window whose parts did not come.

        A shard of a group with a parity that comes back lacks parts of windows that the others have answered without
        it. It cannot know which: who waits for their results counts those that are lost.
        """
        spare = bool(self._program.spare) and not self._setup.answers
        if spare and self._program.optional.issuperset(self._join.missing(window)):
            window.take(WindowEvent.EXPIRED)
            self.counters.late += window.message.count
        else:
            super()._expire(window)


def make_stage(setup: StageSetup, *, clock: Callable[[], float], monotonic: Callable[[], float]) -> Stage:
    """Return the stage of a setup: that of a shard where it has steps."""
    kind = Stage if setup.program is None else ShardStage
    return kind(setup, clock=clock, monotonic=monotonic)
