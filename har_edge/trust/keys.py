"""Ed25519 keys (RFC 8032): the coordinator's own in a file, its rotation, and the public key that nodes pin.

Everything here needs the library `cryptography` (extra `secure`), which is loaded with the first key.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from har_edge.errors import ConfigError
from har_edge.extras import require
from har_edge.files import read_regular, read_text, write_atomic
from har_edge.protocol.signatures import MAX_ROTATIONS, Rotation, rotation_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VERSION = 1
MAX_FILE_BYTES = 64 * 1024
PRIVATE_MODE = 0o600
# The beginning of a public key in text, before its 64 hex digits.
PREFIX = "ed25519:"
_PUBLIC = re.compile(rf"(?:{PREFIX})?([0-9a-f]{{64}})")


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    version: int
    private: Annotated[str, msgspec.Meta(max_length=4096)]
    rotations: Annotated[tuple[Rotation, ...], msgspec.Meta(max_length=MAX_ROTATIONS)] = ()


_read_file = msgspec.json.Decoder(_KeyFile).decode


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The private key of a coordinator, and the rotations that lead to it from the keys that nodes may still pin."""

    private: Ed25519PrivateKey
    rotations: tuple[Rotation, ...] = ()

    @property
    def public(self) -> str:
        """The public key as 64 hex digits."""
        raw: bytes = self.private.public_key().public_bytes_raw()
        return raw.hex()

    def sign(self, text: bytes) -> str:
        """Return the signature of a text as 128 hex digits."""
        signature: bytes = self.private.sign(text)
        return signature.hex()

    def rotate(self) -> SigningKey:
        """Return a new key that this one names as its successor."""
        new = make_key()
        old = self.public
        rotation = Rotation(old, new.public, self.sign(rotation_text(old, new.public)))
        return SigningKey(new.private, (*self.rotations, rotation)[-MAX_ROTATIONS:])


def make_key() -> SigningKey:
    """Return a new key."""
    require("a key that signs plans", "cryptography")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return SigningKey(Ed25519PrivateKey.generate())


def verify(public: str, signature: str, text: bytes) -> bool:
    """Return whether a key has signed a text; keys and signatures are hex digits."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), text)
    except (InvalidSignature, ValueError):
        return False
    return True


def save_key(key: SigningKey, path: Path, passphrase: bytes | None = None) -> None:
    """Write a private key to a file that only its owner reads; with a passphrase it is encrypted (PKCS #8)."""
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    pem: bytes = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
    content = msgspec.json.format(msgspec.json.encode(_KeyFile(VERSION, pem.decode(), key.rotations)), indent=2)
    try:
        write_atomic(path, content + b"\n", PRIVATE_MODE)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}; permit it, or name another file") from None


def load_key(path: Path, passphrase: bytes | None = None) -> SigningKey:
    """Read a private key. Raises ConfigError for a file that is none, that others may read, or that needs another
    passphrase.
    """
    require("a key that signs plans", "cryptography")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    check_private(path)
    try:
        found = _read_file(read_regular(path, MAX_FILE_BYTES))
        private = load_pem_private_key(found.private.encode(), passphrase)
    except OSError as error:
        raise ConfigError(f"key file {path}: {error.strerror or error}; make one with `har-edge keys new`") from None
    except TypeError:  # a passphrase is missing, or came for a key that has none
        wanted = "it is encrypted; expected --passphrase-file" if passphrase is None else "it has no passphrase"
        raise ConfigError(f"key file {path}: {wanted}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        wrong = "the passphrase is wrong" if passphrase is not None and "decrypt" in str(error).lower() else str(error)
        raise ConfigError(f"key file {path}: {wrong}; expected one of `har-edge keys new` or `keys backup`") from None
    if found.version != VERSION or not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(
            f"key file {path} holds no Ed25519 key of version {VERSION}; make one with `har-edge keys new`"
        )
    return SigningKey(private, found.rotations)


def check_private(path: Path) -> None:
    """Raise ConfigError for a file of a secret that others than its owner may read."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; expected a file that you may read") from None
    if stat.S_ISREG(mode) and mode & 0o077:
        raise ConfigError(
            f"{path} may be read by others (mode {stat.S_IMODE(mode):04o}); expected its owner only: `chmod 600 {path}`"
        )


def public_line(public: str, note: str) -> str:
    """Return the line of a file with a public key."""
    return f"{PREFIX}{public} {note}\n"


def read_public(text: str) -> str:
    """Return the public key that an option names, itself or by a file. Raises ConfigError for what is none."""
    if match := _PUBLIC.fullmatch(text.strip().lower()):
        return match[1]
    try:
        words = read_text(Path(text)).split()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"--trust {text}: no key, and no file ({said}); expected {PREFIX} and 64 hex digits, a file of "
            "`har-edge keys show`, or first"
        ) from None
    match = _PUBLIC.fullmatch(words[0].lower()) if words else None
    if match is None:
        raise ConfigError(f"--trust {text}: the file begins with no key; expected {PREFIX} and 64 hex digits")
    return match[1]


def short(public: str) -> str:
    """Return the beginning of a key, for people to compare."""
    return f"{PREFIX}{public[:16]}"
