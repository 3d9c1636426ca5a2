"""How a file is divided at the broker: a retained header that names it by its hash, and chunks of its bytes."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from har_edge.errors import MessageError

VERSION = 1
CHUNK_BYTES = 256 * 1024
MAX_CHUNK_BYTES = 1024 * 1024
MAX_CHUNKS = 65_536
MAX_HEADER_BYTES = 1024
MAX_BYTES = 1024**3
SHA256 = re.compile(r"[0-9a-f]{64}")
_Hash = Annotated[str, msgspec.Meta(max_length=64)]


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The retained header at `slice/<sha256>`: how that content was divided; all chunks but the last one are full."""

    version: int
    sha256: _Hash
    size: int
    chunk_bytes: int
    chunks: int


encode_header = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Header).decode


def decode_header(payload: bytes, sha256: str) -> Header:
    """Read the header of a content. Raises MessageError for one that is malformed, too large, or of another content."""
    if len(payload) > MAX_HEADER_BYTES:
        raise MessageError(f"a header of {len(payload)} bytes came for {sha256}; expected at most {MAX_HEADER_BYTES}")
    try:
        header = _decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MessageError(f"what came for {sha256} is no header: {error}; expected one of version {VERSION}") from None
    checks = [
        (header.version == VERSION, f"version {header.version}; expected {VERSION}"),
        (header.sha256 == sha256, f"sha256 {header.sha256!r}; expected that of its topic"),
        (0 <= header.size <= MAX_BYTES, f"{header.size} bytes; expected 0 to {MAX_BYTES}"),
        (
            1 <= header.chunk_bytes <= MAX_CHUNK_BYTES,
            f"chunks of {header.chunk_bytes} bytes; expected 1 to {MAX_CHUNK_BYTES}",
        ),
    ]
    flaw = next((text for fine, text in checks if not fine), "")
    if not flaw and header.chunks != count_chunks(header.size, header.chunk_bytes):
        expected = count_chunks(header.size, header.chunk_bytes)
        flaw = f"{header.chunks} chunks; expected {expected} for {header.size} bytes in {header.chunk_bytes} each"
    if not flaw and header.chunks > MAX_CHUNKS:
        flaw = f"{header.chunks} chunks; expected at most {MAX_CHUNKS}"
    if flaw:
        raise MessageError(f"the header of {sha256} says {flaw}; it is not used")
    return header


def count_chunks(size: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Return into how many chunks a content is divided."""
    return -(-size // chunk_bytes)
