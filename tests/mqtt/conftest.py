"""Scripted MQTT servers for the tests of this room; also lets them import helpers by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture
def serve() -> Iterator[Callable[..., object]]:
    """Start scripted servers; a script that failed fails the test."""
    pytest.importorskip("mqtt5")
    from tests.mqtt.scripted import Script, ScriptedServer

    servers: list[ScriptedServer] = []

    def start(*scripts: Script) -> ScriptedServer:
        servers.append(ScriptedServer(scripts))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
    for server in servers:
        assert server.errors == []
