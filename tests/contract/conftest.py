"""Fixtures of the contract suite: brokers that are started where they are installed."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.launchers import Kind, Launched, NotInstalled, launch
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.connect import open_bus


@pytest.fixture(scope="session")
def other_broker() -> Iterator[Callable[[Kind], Launched]]:
    """Start a broker once a test run; skip where it is not installed."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(kind: Kind) -> Launched | NotInstalled:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-brokers-")))
            folder.chmod(0o755)  # Mosquitto, started by root, becomes a user of its own
            try:
                return stack.enter_context(launch(kind, folder))
            except NotInstalled as missing:
                return missing

        def running(kind: Kind) -> Launched:
            broker = start(kind)
            if isinstance(broker, NotInstalled):
                pytest.skip(str(broker))
            return broker

        yield running


@pytest.fixture
def other(other_broker: Callable[[Kind], Launched]) -> Callable[[Kind], dict[str, Any]]:
    """Return the ways to the nodes of a broker, and whether all of them know every session."""

    def ways(kind: Kind) -> dict[str, Any]:
        def way(address: Address) -> Callable[[Session], Bus]:
            return lambda session: open_bus(address, session)

        broker = other_broker(kind)
        return {"ways": [way(one) for one in broker.addresses], "shared_sessions": kind is Kind.CLUSTER}

    return ways
