"""What a sensor fetches of a deployment; for the rest see tests/cli/test_following.py."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from har_edge.errors import NodeError
from har_edge.inference.codecs import MAX_FILE_BYTES
from har_edge.mqtt.bus import Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.artifacts import CHUNK_BYTES, VERSION, Header, encode_header
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.sensor.reducer_loader import ReducerLoader
from tests.runtime.deployed import TOPICS, deployment, generation


def test_a_file_that_no_reducer_can_be_is_never_allocated(tmp_path: Path) -> None:
    broker, sha256, size = MemoryBroker(), "ab" * 32, MAX_FILE_BYTES + 1
    bus = broker.connect(Session("forger"))
    header = Header(VERSION, sha256, size, CHUNK_BYTES, -(-size // CHUNK_BYTES))
    bus.publish(TOPICS.slice(sha256), encode_header(header), retain=True)
    bus.poll(0)
    loader = ReducerLoader(TOPICS, Store(tmp_path), broker.connect, lambda: False)
    with pytest.raises(NodeError, match=f"{sha256} has {size} bytes; expected at most {MAX_FILE_BYTES} here"):
        loader.pipeline_of(msgspec.structs.replace(deployment(generation("a", "b", "c")), files={"a.npz": sha256}))
