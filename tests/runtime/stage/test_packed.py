"""Stages whose tensors travel rounded or compressed: what leaves one is what the next one takes."""

from __future__ import annotations

import dataclasses
import logging

import msgspec
import numpy as np
import pytest

from har_edge.config.wiring import Wiring
from har_edge.errors import ConfigError
from har_edge.mqtt.bus import Delivery
from har_edge.protocol import compression
from har_edge.protocol.packing import pack, unpack
from har_edge.runtime.stage.packed import check_packings
from har_edge.runtime.stage.stage import Stage
from har_edge.tflite.manifest import SliceEntry, TensorSpec
from har_edge.tflite.packing import parse_packing
from tests.runtime.rig import LENGTH, Clock, part, small_stage

PACKINGS = ["f2", "q8:0.5:-3", "zstd", "f2+zstd", "q8:0.5:-3+zstd"]
CODES = dict(zip(PACKINGS, ("f2", "i1", "zf4", "zf2", "zi1"), strict=True))
# Alike in each channel, so that they compress.
VALUES = np.repeat(np.arange(64, dtype=np.float32).reshape(1, 1, 64) / 3, LENGTH, axis=1)


def pair(packing: str, came: dict, *, taken: str | None = None, values=VALUES) -> tuple[Stage, Stage]:
    """Return a stage that sends `both` so packed, and one that takes it, packed as `taken`, and notes it in `came`."""
    spec = TensorSpec("both", (-1, LENGTH, 64), "float32", packing=packing)
    first = small_stage(sends=("both",), run=lambda inputs: {"scores": np.zeros((1, 2), np.float32), "both": values})
    setup = first._setup
    made = msgspec.structs.replace(setup.wiring.entry, outputs=(spec, *setup.wiring.entry.outputs))
    wiring = dataclasses.replace(setup.wiring, entry=made)
    first = Stage(dataclasses.replace(setup, wiring=wiring, wire_version=3), clock=Clock(), monotonic=Clock())

    def run(inputs):
        came.update(inputs)
        return {"scores": np.array([[1.0, 0.0]], np.float32)}

    wanted = msgspec.structs.replace(spec, packing=packing if taken is None else taken)
    last = SliceEntry("slice.tflite", "0" * 64, 1, 2, (wanted,), (TensorSpec("scores", (-1, 2), "float32"),))
    second = dataclasses.replace(
        setup, wiring=Wiring(1, last, {}, {0: ("both",)}, (), True), run=run, feeds={}, ports={}, wire_version=3
    )
    return first, Stage(second, clock=Clock(), monotonic=Clock())


def send(stage: Stage) -> bytes:
    """Run a window; return the activation's payload, an empty one where there was none."""
    outgoing = [*stage.handle(part("chest")), *stage.handle(part("arm"))]
    return next((one.payload for one in outgoing if "/act/" in one.topic), b"")


def give(stage: Stage, payload: bytes) -> list:
    return stage.handle(Delivery("har/v1/test/act/1/0/s", payload, (1, 10**6)))


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_next_stage_takes_what_was_packed(packing):
    came: dict = {}
    first, second = pair(packing, came)
    payload = send(first)
    assert msgspec.msgpack.decode(payload)[6][0][1] == CODES[packing]
    (result,) = give(second, payload)
    assert result.topic.endswith("/result/s") and second.counters.rejected == 0
    wanted = parse_packing(packing)
    expected = unpack(pack(VALUES, wanted)[0], wanted, np.dtype(np.float32))
    assert came["both"].dtype == np.float32 and came["both"].tobytes() == expected.tobytes()
    assert np.abs(came["both"] - VALUES).max() <= (0.26 if "q8" in packing else 0.01)
    assert first.counters.clipped == 0


@pytest.mark.parametrize("taken", ["", "f2", "q8:0.5:-3", "zstd"])
@pytest.mark.parametrize("packing", ["", *PACKINGS])
def test_a_tensor_of_another_packing_is_dropped_and_never_misread(packing, taken):
    """Compressed or not, the type on the wire says what came; rounded values are those of the manifest, or refused."""
    came: dict = {}
    first, second = pair(packing, came, taken=taken)
    give(second, send(first))
    same = packing.removesuffix("zstd").strip("+") == taken.removesuffix("zstd").strip("+")
    assert (second.counters.rejected, bool(came)) == ((0, True) if same else (1, False))


def test_values_beyond_the_range_are_counted_and_logged_once(caplog):
    values = np.where(VALUES > 20, 1e6, VALUES).astype(np.float32)
    came: dict = {}
    first, second = pair("f2", came, values=values)
    with caplog.at_level(logging.WARNING):
        payload = send(first)
        for source in ("chest", "arm"):
            first.handle(part(source, 1))
    beyond = int((values > 65504).sum())
    assert first.counters.clipped == 2 * beyond and caplog.text.count("travel as the nearest") == 1
    assert f"{beyond} of {values.size} values of tensor both lie beyond what f2 carries" in caplog.text
    give(second, payload)
    assert came["both"].max() == 65504.0


def test_a_window_whose_values_are_no_numbers_is_dropped_and_counted_where_int8_cannot_carry_them(caplog):
    values = VALUES.copy()
    values[0, 0, 0] = np.nan
    first, _ = pair("q8:0.5:-3", {}, values=values)
    assert send(first) == b"" and first.counters.rejected == 1
    assert "tensor 'both': 1 of 256 values are no number" in caplog.text


def test_a_machine_without_zstandard_refuses_the_slice(monkeypatch: pytest.MonkeyPatch):
    spec = TensorSpec("t", (1, 2), "float32", packing="f2+zstd")
    plain = TensorSpec("u", (1, 2), "float32", packing="f2")
    entry = SliceEntry("s", "0" * 64, 0, 1, (plain,), (spec,))
    check_packings(entry)
    monkeypatch.setattr(compression, "is_available", lambda: False)
    monkeypatch.setattr("har_edge.runtime.stage.packed.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"tensor 't' travels as f2\+zstd: this node has no Zstandard; pip install"):
        check_packings(entry)
    check_packings(msgspec.structs.replace(entry, outputs=(plain,)))
