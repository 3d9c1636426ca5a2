"""The cryptography of masked sums, by the library `cryptography` (extra `secure`): keys, sealed bytes, masks."""

from __future__ import annotations

import numpy as np

from har_edge.errors import MessageError
from har_edge.learning.masking.fixed_point import Words
from har_edge.protocol.masks import KEY_BYTES

SEED_BYTES = 32
# Each key seals one text, so the nonce need not differ.
_NONCE = bytes(12)


class KeyPair:
    """A private X25519 key (RFC 7748) and its public one."""

    def __init__(self, private: bytes) -> None:
        """Build from KEY_BYTES random bytes."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.private = private
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def agree(self, public: bytes, label: bytes) -> bytes:
        """Return the SEED_BYTES that this pair and another one agree on for a purpose (HKDF with SHA-256, RFC 5869).

        Raises MessageError for a public key that is none.
        """
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:  # a point of small order agrees on zeros with anybody
            raise MessageError(f"a public key of {len(public)} bytes cannot be used: {error}") from None
        derived: bytes = HKDF(SHA256(), SEED_BYTES, salt=None, info=label).derive(shared)
        return derived


def public_of(private: bytes) -> bytes:
    """Return the public key of a private one."""
    return KeyPair(private).public


def check_public(public: bytes) -> None:
    """Raise MessageError for a public key that agrees on zeros with anybody."""
    KeyPair(bytes(KEY_BYTES)).agree(public, b"")


def seal(key: bytes, text: bytes) -> bytes:
    """Encrypt and authenticate with a key that seals nothing else (ChaCha20-Poly1305, RFC 8439)."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    sealed: bytes = ChaCha20Poly1305(key).encrypt(_NONCE, text, None)
    return sealed


def open_sealed(key: bytes, sealed: bytes) -> bytes:
    """Undo `seal`. Raises MessageError for bytes that were changed, or sealed with another key."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        text: bytes = ChaCha20Poly1305(key).decrypt(_NONCE, sealed, None)
    except (InvalidTag, ValueError):
        raise MessageError(f"{len(sealed)} sealed bytes were changed, or sealed for another device or round") from None
    return text


def expand(seed: bytes, size: int) -> Words:
    """Return `size` pseudo-random words of a seed that is used once: the keystream of ChaCha20."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(4 * size))
    return np.frombuffer(stream, "<u4").astype(np.uint32)
