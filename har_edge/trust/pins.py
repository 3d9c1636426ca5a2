"""The file in which a device keeps the key that it has pinned, and the newest signature that it has accepted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

import msgspec

from har_edge.errors import ConfigError
from har_edge.files import read_regular, write_atomic
from har_edge.trust.keys import SigningKey
from har_edge.trust.verdict import Pin

_log = logging.getLogger(__name__)
MAX_FILE_BYTES = 16 * 1024
_MODE = 0o600
_read = msgspec.json.Decoder(Pin).decode


class Pins(Protocol):
    """The memory of a gate."""

    @property
    def pin(self) -> Pin:
        """The key and the signature that are remembered."""

    def keep(self, pin: Pin) -> None:
        """Remember this from now on."""


class MemoryPins:
    """Pins that end with the process."""

    def __init__(self, pin: Pin) -> None:
        self.pin = pin

    def keep(self, pin: Pin) -> None:
        self.pin = pin


class FilePins:
    """Pins in a file. One that cannot be written is said once, and holds as long as the process."""

    def __init__(self, path: Path, pin: Pin) -> None:
        self.pin, self._path, self._said = pin, path, False

    def keep(self, pin: Pin) -> None:
        if pin == self.pin:
            return
        self.pin = pin
        try:
            write_atomic(self._path, msgspec.json.encode(pin), _MODE)
        except OSError as error:
            if not self._said:
                text = "cannot write %s: %s; after a restart, this device takes older signed plans for new"
                _log.warning(text, self._path, error.strerror or error)
            self._said = True


def open_own_pins(path: Path, key: SigningKey) -> FilePins:
    """Return the pins of a coordinator: those of its key before a rotation hold until the first plan of the new one.

    It goes on with the plan that is retained, which the older key has signed.
    """
    pins, earlier = open_pins(path, ""), {rotation.old for rotation in key.rotations}
    if pins.pin.key in earlier:
        return pins
    return open_pins(path, key.public)


def open_pins(path: Path, key: str) -> FilePins:
    """Return the pins in a file; `key` is the key to enrol with, empty for the one that is pinned or comes first.

    A file that was enrolled with another key begins anew. Raises ConfigError for a damaged file: to begin anew
    by itself would let an attacker who can damage it choose the key.
    """
    try:
        pin = _read(read_regular(path, MAX_FILE_BYTES))
    except FileNotFoundError:
        pin = Pin()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}; permit it, or remove the file") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}; remove it, and enrol this device again with --trust KEY"
        ) from None
    if key and key not in (pin.enrolled, pin.key):
        pin = Pin(enrolled=key, key=key)
    return FilePins(path, pin)
