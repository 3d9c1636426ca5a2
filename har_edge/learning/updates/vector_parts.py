"""Send a packed vector in parts that a small broker forwards, and put it together again."""

from __future__ import annotations

from dataclasses import dataclass, field

from har_edge.errors import MessageError
from har_edge.learning.updates.compression import PackedVector
from har_edge.protocol.training import MAX_PARTS, PART_BYTES, VectorPart


def split_vector(packed: PackedVector, part_bytes: int = PART_BYTES) -> list[VectorPart]:
    """Return the parts of a packed vector, one at least. Raises MessageError for more than MAX_PARTS."""
    parts = max(1, -(-len(packed.data) // part_bytes))
    if parts > MAX_PARTS:
        raise MessageError(f"a vector of {len(packed.data)} bytes came; expected at most {MAX_PARTS * part_bytes}")
    return [
        VectorPart(packed.kind, packed.size, packed.data[part * part_bytes : (part + 1) * part_bytes], part, parts)
        for part in range(parts)
    ]


@dataclass(slots=True)
class VectorAssembly:
    """Collects the parts of one vector, in any order, each once or more; at most `limit` bytes."""

    limit: int
    kind: str = ""
    size: int = 0
    parts: dict[int, bytes] = field(default_factory=dict)
    expected: int = 0

    def add(self, part: VectorPart) -> PackedVector | None:
        """Take a part and return the vector once all are here.

        Raises MessageError for a part that does not belong to the others, or too many bytes.
        """
        head = (part.kind, part.size, part.parts)
        if not self.parts:
            self.kind, self.size, self.expected = head
        if head != (self.kind, self.size, self.expected):
            raise MessageError(f"a part of vector {head} came; expected one of {(self.kind, self.size, self.expected)}")
        self.parts[part.part] = part.data
        came = sum(map(len, self.parts.values()))
        if came > self.limit:
            raise MessageError(f"{came} bytes of a vector came; expected at most {self.limit}")
        if len(self.parts) < self.expected:
            return None
        content = b"".join(self.parts[number] for number in range(self.expected))
        return PackedVector(self.kind, self.size, content)
