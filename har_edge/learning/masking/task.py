"""The part of a worker in one masked sum: its keys, its shares, its words under masks, the shares that it tells."""

from __future__ import annotations

from collections.abc import Callable

from har_edge.errors import MessageError
from har_edge.learning.masking.fixed_point import Words
from har_edge.learning.masking.sums import MaskedDevice, MaskKeys
from har_edge.learning.masking.vector import KIND, UpdateWords
from har_edge.learning.updates.compression import PackedVector
from har_edge.learning.updates.vector_parts import split_vector
from har_edge.protocol.masks import MaskPart, MaskRelay
from har_edge.protocol.training import Round, TrainingJob, VectorPart


def context_of(job: TrainingJob, number: int) -> bytes:
    """Return the text that binds keys to one sum of one run of a server."""
    return f"{job.author}/{job.run}/{number}".encode()


class MaskedTask:
    """One masked sum at a worker. Each of its messages is made once; `last` is what to send again when it was lost."""

    def __init__(self, job: TrainingJob, worker: str, message: Round, random_bytes: Callable[[int], bytes]) -> None:
        """Draw keys for the sum of a round. Raises MessageError for a round without masks, or with weak terms."""
        terms = message.mask
        if terms is None:
            raise MessageError("a round without masks came, and the job says that updates are masked; it is not taken")
        if not terms.devices < 2 * terms.threshold <= 2 * terms.devices:
            raise MessageError(
                f"a masked sum of {terms.devices} workers with threshold {terms.threshold} came; expected more than "
                "half of them, and at most all"
            )
        self.number, self.words = terms.number, UpdateWords(terms, local=bool(message.optimizer))
        self._job, self._worker, self._terms = job, worker, terms
        self._device = MaskedDevice(worker, terms.threshold, context_of(job, terms.number), random_bytes)
        self._relays: list[MaskRelay] = []
        self._sealed: dict[str, bytes] | None = None
        self._values: Words | None = None
        keys = self._device.keys()
        self.last = self._part(keys=(keys.sealing, keys.masking))

    def answer(self, relay: MaskRelay) -> MaskPart | None:
        """Take what the server passes on; return the answer to it, if it has one.

        The same again gets the same answer. Raises MessageError for what does not belong to this sum, or differs from
        what came before: the answers to both would tell more than one sum.
        """
        if relay.number != self.number:
            raise MessageError(f"a message of masked sum {relay.number} came; expected {self.number}")
        if relay in self._relays:
            return self.last
        if relay.keys:
            if len(relay.keys) > self._terms.devices:
                raise MessageError(f"{len(relay.keys)} keys came; expected those of {self._terms.devices} workers")
            keys = {name: MaskKeys(*pair) for name, pair in relay.keys.items()}
            self.last = self._part(shares=self._device.share(keys))
        elif relay.shares:
            if self._sealed is not None:
                raise MessageError("other shares of a masked sum came than before; those are kept")
            self._sealed = dict(relay.shares)
            self._relays.append(relay)
            return None
        else:
            self.last = self._part(told=self._device.unmask(relay.counted))
        self._relays.append(relay)
        return self.last

    def hold(self, values: Words) -> None:
        """Take the words of the update; they are masked once the shares of the others are here."""
        self._values = values

    def masked(self) -> list[VectorPart]:
        """Return the masked words in parts, once; nothing before words and shares are here.

        Raises MessageError where too few shares can be opened.
        """
        if self._values is None or self._sealed is None:
            return []
        values, self._values = self._values, None
        words = self._device.mask(self._sealed, values)
        return split_vector(PackedVector(KIND, words.size, words.astype("<u4").tobytes()))

    @property
    def unopened(self) -> dict[str, str]:
        """The workers whose sealed shares could not be opened, and why."""
        return self._device.unopened

    def _part(
        self,
        keys: tuple[bytes, bytes] | None = None,
        shares: dict[str, bytes] | None = None,
        told: dict[str, bytes] | None = None,
    ) -> MaskPart:
        return MaskPart(
            run=self._job.run,
            author=self._job.author,
            worker=self._worker,
            number=self.number,
            keys=keys,
            shares=shares or {},
            told=told or {},
        )
