"""The masked rounds of a run at its server: four messages of each worker, of which it learns the sum of updates alone.

A round begins with its tasks, and the messages of learning/masking/sums.py go beside the work: keys and shares while
workers compute, the masked updates when they are done, the shares that unmask their sum last. Who misses a message has
dropped out, and as long as the threshold is left the round goes on. Samples are counted with the sum, never before:
until then they belong to their tasks, and a round that is lost gives them back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from har_edge.errors import MessageError, NodeError
from har_edge.learning.masking.fixed_point import Words
from har_edge.learning.masking.sums import MaskedSum, MaskError, MaskKeys, default_threshold
from har_edge.learning.masking.task import context_of
from har_edge.learning.masking.vector import EXTRA_WORDS, JunkSum, UpdateWords, limit_of
from har_edge.learning.server.aggregation import Contribution
from har_edge.learning.server.members import WorkerRecord
from har_edge.learning.server.shares import UNKNOWN_S
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.masks import LEAST_MASKED, MOST_MASKED, MaskPart, MaskRelay, MaskTerms
from har_edge.protocol.training import TrainingJob, TrainingTask, encode_training

if TYPE_CHECKING:
    from har_edge.learning.server.server import TrainingServer

# Lost rounds in a row after which a run stops: it does not mend itself.
MAX_LOST = 10
_KEYS, _SHARES, _VALUES, _TOLD = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class MaskedUpdate:
    """The part of a masked update that is not masked: its samples, and the seconds of its steps."""

    samples: int
    seconds: float


class MaskedRound:
    """One masked sum, and the tasks whose updates it is of."""

    def __init__(self, job: TrainingJob, terms: MaskTerms, tasks: Mapping[str, TrainingTask], *, local: bool) -> None:
        self.terms, self.tasks = terms, dict(tasks)
        self.updates: dict[str, MaskedUpdate] = {}
        self.deadline = math.inf
        self._job, self._words = job, UpdateWords(terms, local)
        self._sum = MaskedSum(job.parameters + EXTRA_WORDS, terms.threshold, context_of(job, terms.number))
        self.last: dict[str, MaskPart] = {}
        self.failed: set[str] = set()  # those that told shares of no use

    @property
    def phase(self) -> int:
        """The message that is awaited now, 1 to 4; 5 after the last."""
        return self._sum.phase

    def awaits(self, worker: str) -> bool:
        """Return whether the message of this phase is to come of a worker."""
        left = self.tasks if self.phase == _KEYS else self._sum.left
        return worker in left and worker not in self._sum.came and worker not in self.failed

    def take(self, part: MaskPart) -> None:
        """Take keys, shares or told shares; the same again changes nothing. Raises MessageError for what is no use."""
        if part == self.last.get(part.worker):
            return  # QoS 1 permits it
        if part.keys is not None:
            self._sum.add_keys(part.worker, MaskKeys(*part.keys))
        elif part.shares:
            self._sum.add_shares(part.worker, part.shares)
        else:
            self._sum.add_told(part.worker, part.told)
        self.last[part.worker] = part

    def take_update(self, worker: str, words: Words, update: MaskedUpdate) -> None:
        """Take the masked words of a worker. Raises MessageError where its time is over."""
        self._sum.add_values(worker, words)
        self.updates[worker] = update

    def close(self) -> None:
        """End a phase. Raises NodeError where too few workers are left: the round is lost."""
        self._sum.close()

    def relays(self, worker: str | None = None) -> list[tuple[str | None, MaskRelay]]:
        """Return what workers need for the message of this phase, each with whom it goes to, None for all.

        With a `worker` all of it goes to this one.
        """
        shown = self._sum
        if self.phase == _SHARES:
            keys = {name: (one.sealing, one.masking) for name, one in sorted(shown.keys.items())}
            return [(worker, self._relay(keys=keys))]
        if self.phase == _VALUES:
            names = sorted(shown.left) if worker is None else [worker]
            return [(name, self._relay(shares=shown.sealed_for(name))) for name in names]
        return [(worker, self._relay(counted=shown.counted))] if self.phase == _TOLD else []

    def _relay(
        self,
        keys: dict[str, tuple[bytes, bytes]] | None = None,
        shares: dict[str, bytes] | None = None,
        counted: tuple[str, ...] = (),
    ) -> MaskRelay:
        return MaskRelay(
            run=self._job.run,
            author=self._job.author,
            number=self.terms.number,
            keys=keys or {},
            shares=shares or {},
            counted=counted,
        )

    def contribution(self) -> Contribution:
        """Return the sum of updates. Raises NodeError where it cannot be unmasked, or is not that of the updates."""
        members = tuple(self.updates[name].samples for name in self._sum.counted)
        found = self._words.decode(self._sum.total(), sum(members))
        return Contribution("", sum(members), found.vector, found.loss, found.correct, members)

    @property
    def liars(self) -> set[str]:
        """The workers that told shares which they were not given."""
        return self._sum.liars


class MaskedRounds:
    """The masked rounds of a server, one at a time; `current` is the one that runs."""

    def __init__(self, server: TrainingServer) -> None:
        self.current: MaskedRound | None = None
        self._before: dict[str, MaskPart] = {}  # the last messages of the round before
        self._server, self._number, self._lost = server, 0, 0
        self._instances: dict[str, str] = {}
        self._transfer_s, self._values_by = 0.0, math.inf
        # After junk under a mask: who is left out in turn, to find out whose it was.
        self._suspects: list[str] = []

    def chosen(self, names: list[str]) -> list[str]:
        """Return who of those that are idle takes part in the next round: after junk all but one, each in turn."""
        if self._suspects and len(names) > LEAST_MASKED:
            names = [name for name in names if name != self._suspects[0]]
        return names[:MOST_MASKED]

    def begin(self, tasks: Mapping[str, TrainingTask], transfer_s: float, now: float) -> MaskTerms:
        """Begin the round of tasks; `transfer_s` is how long blocks and weights may take. Return its terms."""
        server = self._server
        job, local = server.settings.job, server.is_local
        most = max(one.samples for one in tasks.values())
        self._number += 1
        limit = limit_of(job, most, local=local)
        terms = MaskTerms(self._number, len(tasks), default_threshold(len(tasks)), limit, most)
        self.current = MaskedRound(job, terms, tasks, local=local)
        self._instances = {name: server.pool.members[name].instance for name in tasks}
        self._transfer_s = transfer_s
        self._values_by = now + 2 * max(one.budget_s for one in tasks.values()) + server.settings.grace_s + transfer_s
        self._set_deadline(now)
        return terms

    def take(self, part: MaskPart) -> None:
        """Take a message of a worker."""
        server, current = self._server, self.current
        member = server.pool.members[part.worker]
        if current is None or part.number != current.terms.number:
            if part != self._before.get(part.worker):
                server.pool.reject(part.worker, "a message of a masked sum that is over came", late=True)
            server.pool.hear(member)
            return
        if part.worker not in current.tasks or self._instances[part.worker] != member.instance:
            server.pool.reject(part.worker, "a message of a masked sum that it has no part in came", late=True)
            return
        try:
            current.take(part)
        except MessageError as error:
            late = _phase_of(part) != current.phase or not self._is_awaited(member)
            server.pool.reject(part.worker, str(error), late=late)
            if not late:
                current.failed.add(part.worker)
        else:
            server.pool.hear(member)

    def take_update(self, member: WorkerRecord, words: Words, update: MaskedUpdate) -> None:
        """Take the masked update for the task of a worker, which then is the round's. Raises MessageError if late."""
        assert self.current is not None
        self.current.take_update(member.name, words, update)
        assert member.pending is not None
        member.last_task, member.pending = member.pending.number, None

    def look(self, now: float) -> None:
        """Go on without those that missed the deadline of a message."""
        if self.current is None or now < self.current.deadline:
            return
        for member in self._awaited():
            self._server.pool.lose(member, f"it missed its deadline for message {self.current.phase} of the masked sum")

    def advance(self, now: float) -> list[Outgoing]:
        """Go to the next phase as long as nobody is awaited; at the end hand the sum on, or give the samples back."""
        sent: list[Outgoing] = []
        while self.current is not None and not self._awaited():
            current = self.current
            try:
                current.close()
                if current.phase <= _TOLD:
                    self._set_deadline(now)
                    sent = self._messages(current.relays())
                    continue
                self._count(current)
            except NodeError as error:
                self._lose(current, error, now)
                return []
        return sent

    def again(self, worker: str | None = None) -> list[Outgoing]:
        """Return what may have been lost on its way to those that are awaited, or to one of them."""
        if self.current is None:
            return []
        names = [one.name for one in self._awaited() if worker in (None, one.name)]
        return [one for name in names for one in self._messages(self.current.relays(name))]

    def abandon(self) -> None:
        """Give the samples of the round that runs back."""
        if self.current is not None:
            for task in self.current.tasks.values():
                self._server.pool.account.give_back(task.number)
        for member in self._server.pool.members.values():
            self._server.pool.release(member)
        self.current = None

    # --- what it does -------------------------------------------------------------------------------------------------

    def _is_awaited(self, member: WorkerRecord) -> bool:
        current = self.current
        if current is None or not member.active or not current.awaits(member.name):
            return False
        if self._instances[member.name] != member.instance:
            return False  # it has started anew, and its keys are gone
        return current.phase == _TOLD or member.pending is not None

    def _awaited(self) -> list[WorkerRecord]:
        return [one for one in self._server.pool.active if self._is_awaited(one)]

    def _set_deadline(self, now: float) -> None:
        """Set until when the messages of this phase may come: workers answer between two batches."""
        assert self.current is not None
        settings, pool = self._server.settings, self._server.pool
        speeds = [one.samples_per_s for one in pool.active if one.name in self.current.tasks]
        step_s = max((settings.job.batch / speed if speed > 0 else UNKNOWN_S for speed in speeds), default=0.0)
        soon = now + settings.grace_s
        self.current.deadline = {
            _KEYS: soon + self._transfer_s + 2 * step_s,
            _SHARES: soon + self._transfer_s + 2 * step_s,
            _VALUES: max(self._values_by, soon + self._transfer_s),
            _TOLD: soon,
        }[self.current.phase]

    def _messages(self, relays: Iterable[tuple[str | None, MaskRelay]]) -> list[Outgoing]:
        server, sent = self._server, []
        for worker, relay in relays:
            payload = encode_training(relay)
            server.record.sent_bytes += len(payload)
            sent.append(Outgoing(server.settings.topics.training(relay.run, "relay", worker), payload))
        return sent

    def _count(self, current: MaskedRound) -> None:
        """Count the samples of the sum, and hand it on. Raises NodeError where there is none."""
        server = self._server
        total = current.contribution()
        for name in sorted(current.liars):
            server.pool.reject(name, "it told shares of a masked sum that it was not given")
        for name, update in current.updates.items():
            member = server.pool.members[name]
            member.strikes = member.strikes if name in current.liars | current.failed else 0
            server.credit(member, current.tasks[name], update.samples, update.seconds)
        self._acquit(current)
        self.current, self._before, self._lost = None, current.last, 0
        server.take_sum(total)

    def _acquit(self, current: MaskedRound) -> None:
        """Leave the one out for good without whom the sum is right, after sums of all were not."""
        if self._suspects and self._suspects[0] not in current.updates:
            self._server.pool.refuse(self._suspects[0], "masked sums with it are not those of the updates")
        self._suspects.clear()

    def _lose(self, current: MaskedRound, error: NodeError, now: float) -> None:
        """Give the samples of a lost round back; name the worker that it was lost by, where one is known."""
        server = self._server
        self._lost += 1
        server.lines.append(f"round {server.round} is lost: {error}")
        self.abandon()
        if isinstance(error, JunkSum):
            self._suspects = self._suspects[1:] or sorted(current.updates)
        for name in current.liars | ({error.culprit} if isinstance(error, MaskError) else set()):
            server.pool.reject(name, str(error))
        if self._lost >= MAX_LOST:
            server.halt(f"{MAX_LOST} masked rounds in a row were lost, the last one: {error}", now)


def _phase_of(part: MaskPart) -> int:
    return _KEYS if part.keys is not None else _SHARES if part.shares else _TOLD
