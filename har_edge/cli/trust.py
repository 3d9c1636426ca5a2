"""The options by which commands sign plans or verify them, and the text that says which of it a deployment does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.console import say

if TYPE_CHECKING:
    from har_edge.mqtt.bus import Bus
    from har_edge.protocol.topics import Topics
    from har_edge.trust.gate import PlanGate
    from har_edge.trust.gated_bus import SigningBus
    from har_edge.trust.keys import SigningKey

FIRST_USE = "first"


def add_trust(parser: argparse.ArgumentParser, whose: str) -> None:
    """Add the option that names the key by which plans are verified."""
    parser.add_argument(
        "--trust",
        metavar="KEY|FILE|first",
        help=f"{whose} only plans that this key has signed, or one that it has named its successor; {FIRST_USE}: the "
        "key that signs the first plan (default: any plan)",
    )


def add_sign(parser: argparse.ArgumentParser) -> None:
    """Add the options of a coordinator that signs."""
    parser.add_argument(
        "--sign-key",
        type=Path,
        metavar="FILE",
        help="sign plans with this key of `har-edge keys new`, for nodes with --trust (default: unsigned plans)",
    )


def state_path(topics: Topics, name: str) -> Path:
    """Return the file in which a process remembers what it has pinned."""
    from har_edge.cli.commands.broker import state_folder

    return state_folder() / "trust" / f"{topics.base}-{topics.pipeline}-{name}.json"


def open_gate(trust: str | None, topics: Topics, name: str) -> PlanGate | None:
    """Return the gate that --trust asks for, and say what it trusts; None where every plan is followed."""
    if trust is None:
        return None
    from har_edge.extras import require
    from har_edge.trust.gate import PlanGate
    from har_edge.trust.keys import read_public
    from har_edge.trust.pins import open_pins

    require("signed plans (--trust)", "cryptography")
    key = "" if trust == FIRST_USE else read_public(trust)
    path = state_path(topics, name)
    pins = open_pins(path, key)
    if pins.pin.key:
        rotated = "" if pins.pin.key in ("", key, pins.pin.enrolled) else ", to which the key given has been rotated"
        say(f"plans are verified: signed by ed25519:{pins.pin.key}{rotated}")
    else:
        say(f"plans are verified by the key that signs the first one, which is then kept in {path}")
    return PlanGate(topics, pins, say)


def say_unsigned(topics: Topics) -> None:
    """Say that plans are not verified, and how they would be."""
    say(
        f"plans are not verified: whoever may publish at {topics.plan()} decides what runs here (--trust KEY verifies "
        "them)"
    )


def open_signing_bus(bus: Bus, topics: Topics, key: SigningKey) -> SigningBus:
    """Return the bus of a coordinator that signs its plans."""
    from har_edge.protocol.topics import COORDINATOR
    from har_edge.trust.gate import PlanGate
    from har_edge.trust.gated_bus import SigningBus
    from har_edge.trust.pins import open_own_pins
    from har_edge.trust.signer import PlanSigner

    signer, pins = PlanSigner(topics, key), open_own_pins(state_path(topics, COORDINATOR), key)
    signer.note(pins.pin.serial)
    return SigningBus(bus, PlanGate(topics, pins, say), topics, signer, say)
