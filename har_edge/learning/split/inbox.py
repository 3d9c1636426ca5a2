"""The micro-batches that have come for a stage, of this step and the next, put together from their parts."""

from __future__ import annotations

from dataclasses import dataclass, field

from har_edge.errors import MessageError
from har_edge.learning.updates.vector_parts import VectorAssembly
from har_edge.protocol.training import VectorPart

Key = tuple[str, int, int]


@dataclass(slots=True)
class StageInbox:
    """Contents by (kind, step, number); each is taken once, and what comes a second time is passed over."""

    whole: dict[Key, bytes] = field(default_factory=dict)
    _open: dict[Key, VectorAssembly] = field(default_factory=dict)
    _taken: set[Key] = field(default_factory=set)

    def add(self, key: Key, part: VectorPart, kind: str, size: int) -> bool:
        """Take a part of a content of `size` bytes; return whether it is whole now.

        Raises MessageError for a part of another kind or size.
        """
        if key in self.whole or key in self._taken:
            return False
        if part.kind != kind or part.size != -(-size // 4):
            raise MessageError(
                f"{part.kind} of {4 * part.size} bytes came as {key[0]} of step {key[1]}; expected {kind} of {size}"
            )
        packed = self._open.setdefault(key, VectorAssembly(size)).add(part)
        if packed is None:
            return False
        del self._open[key]
        if len(packed.data) != size:
            raise MessageError(f"{len(packed.data)} bytes came as {key[0]} of step {key[1]}; expected {size}")
        self.whole[key] = packed.data
        return True

    def has(self, key: Key) -> bool:
        """Return whether a content is here."""
        return key in self.whole

    def take(self, key: Key) -> bytes:
        """Return a content, which is here no more."""
        self._taken.add(key)
        return self.whole.pop(key)

    def forget_before(self, step: int) -> None:
        """Forget what belongs to earlier steps."""
        self.whole = {key: value for key, value in self.whole.items() if key[1] >= step}
        self._open = {key: value for key, value in self._open.items() if key[1] >= step}
        self._taken = {key for key in self._taken if key[1] >= step}
