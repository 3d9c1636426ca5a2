"""What a sensor fetches of a deployment; for the rest see tests/cli/test_following.py."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest

from har_edge.errors import NodeError
from har_edge.inference.codecs import MAX_FILE_BYTES
from har_edge.messaging.bus import Session
from har_edge.messaging.memory import MemoryBroker
from har_edge.nodes.blobs import CHUNK_BYTES, VERSION, Header, encode_header
from har_edge.nodes.outfit import Outfitter
from har_edge.nodes.store import Store
from tests.nodes.deployed import TOPICS, deployment, generation


def test_a_file_that_no_reducer_can_be_is_never_allocated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    broker, sha256, size = MemoryBroker(), "ab" * 32, MAX_FILE_BYTES + 1
    bus = broker.connect(Session("forger"))
    header = Header(VERSION, sha256, size, CHUNK_BYTES, -(-size // CHUNK_BYTES))
    bus.publish(TOPICS.slice(sha256), encode_header(header), retain=True)
    bus.poll(0)
    refused = f"the header of {sha256} says {size} bytes; expected 0 to {MAX_FILE_BYTES}"
    outfitter = Outfitter(TOPICS, Store(tmp_path), broker.connect, lambda: refused in caplog.text)
    with pytest.raises(NodeError, match=f"{sha256} is not in"):
        outfitter.pipeline_of(msgspec.structs.replace(deployment(generation("a", "b", "c")), files={"a.npz": sha256}))
    assert refused in caplog.text
