"""The name in a client's certificate: what a broker takes for the user, where it is told to.

The standard library parses certificates of a peer only, and a library for this alone weighs too much for a Pi's core.
Source: RFC 5280, sections 4.1 and A.1; ITU-T X.690, sections 8.1.2 and 8.1.3 (tags and lengths).
"""

from __future__ import annotations

import ssl
from pathlib import Path

from har_edge.errors import ConfigError

MAX_BYTES = 1024 * 1024
_END = "-----END CERTIFICATE-----"
_SEQUENCE, _OBJECT, _VERSION = 0x30, 0x06, 0xA0
_COMMON_NAME = bytes.fromhex("550403")
_ENCODINGS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1C: "utf-32-be", 0x1E: "utf-16-be"}


def common_name(file: Path) -> str | None:
    """Return the common name in the subject of the first certificate of a PEM file; None where it has none.

    Raises ConfigError for a file that holds no certificate.
    """
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_BYTES).decode("ascii", "replace")
        start = text.index("-----BEGIN CERTIFICATE-----")
        der = ssl.PEM_cert_to_DER_cert(text[start : text.index(_END, start) + len(_END)] + "\n")
        return _name_in(der)
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"cannot read the certificate {file}: {error}; expected one in PEM form") from None


def _name_in(der: bytes) -> str | None:
    """Walk to the subject: certificate, its first part, there the fifth value after the version."""
    ((_, certificate), *_) = _values(der)
    ((_, signed), *_) = _values(certificate)
    fields = [value for tag, value in _values(signed) if tag != _VERSION]
    subject = fields[4]  # after serial number, algorithm, issuer, validity
    found = None
    for _, several in _values(subject):
        for _, pair in _values(several):
            (kind, identifier), (tag, value), *_ = _values(pair)
            if kind == _OBJECT and identifier == _COMMON_NAME and tag in _ENCODINGS:
                found = value.decode(_ENCODINGS[tag])
    return found


def _values(content: bytes) -> list[tuple[int, bytes]]:
    """Return the tags and contents that follow each other; ValueError for what is cut off."""
    found, at = list[tuple[int, bytes]](), 0
    while at < len(content):
        tag, length, at = content[at], content[at + 1], at + 2
        if length & 0x80:  # so many bytes hold the length
            size, length = length & 0x7F, int.from_bytes(content[at : at + (length & 0x7F)], "big")
            at += size
        if at + length > len(content):
            raise ValueError(f"a value of {length} bytes is cut off after {len(content) - at}")
        found.append((tag, content[at : at + length]))
        at += length
    return found
