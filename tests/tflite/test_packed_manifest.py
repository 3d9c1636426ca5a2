"""Manifests whose tensors travel packed: what is refused, and what the generation is made from."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from har_edge.config.pipeline import generation_id
from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorSpec, find_flaw, versioned

HASH = "0" * 64


def manifest(sent: str = "", taken: str | None = None, *, dtype: str = "float32", wire: int = 3) -> SliceManifest:
    """Return two slices; the second takes `t`, and a source's `x` beside it."""
    x, y = TensorSpec("x", (-1, 4), "float32"), TensorSpec("y", (-1, 2), "float32")
    made = TensorSpec("t", (-1, 8), dtype, packing=sent)
    came = replace(made, packing=sent if taken is None else taken)
    first = SliceEntry("slice-0.tflite", HASH, 0, 1, (x,), (made,))
    last = SliceEntry("slice-1.tflite", HASH, 1, 2, (came, x), (y,))
    return versioned(SliceManifest(0, "m", HASH, (first, last), wire))


@pytest.mark.parametrize("packing", ["f2", "q8:0.5:3", "zstd", "f2+zstd", "q8:0.5:3+zstd"])
def test_a_packed_tensor_makes_a_manifest_of_version_3(packing: str) -> None:
    assert find_flaw(manifest(packing)) == "" and manifest(packing).version == 3
    assert manifest().version == 2


FLAWS = {
    "two packings": (manifest("f2", "zstd"), "gives tensor 't' two packings"),
    "the taker lacks it": (manifest("f2", ""), "gives tensor 't' two packings"),
    "an older wire": (manifest("f2", wire=1), "gives a packing to tensor 't' in wire version 1, expected none"),
    "no packing": (manifest("gzip"), "has a flaw at tensor 't': packing 'gzip' came; expected f2"),
    "not calibrated": (manifest("q8"), "packing 'q8' came"),
    "an integer": (manifest("f2", dtype="int8"), "at tensor 't': packing 'f2' came for a tensor of int8"),
}


@pytest.mark.parametrize("what", FLAWS)
def test_a_packing_that_cannot_be_is_refused(what: str) -> None:
    made, expected = FLAWS[what]
    assert expected in find_flaw(made)


def test_a_window_of_a_sensor_has_no_packing() -> None:
    made = manifest()
    inputs = tuple(replace(spec, packing="f2") if spec.name == "x" else spec for spec in made.slices[0].inputs)
    first, last = replace(made.slices[0], inputs=inputs), made.slices[1]
    last = replace(last, inputs=tuple(replace(one, packing="f2") if one.name == "x" else one for one in last.inputs))
    assert "gives a packing to tensor 'x' which no slice sends" in find_flaw(replace(made, slices=(first, last)))


def test_stages_of_other_packings_never_take_each_others_activations() -> None:
    packings = ["", "f2", "zstd", "q8:0.5:3", "q8:0.5:4", "q8:0.25:3"]
    assert len({generation_id(manifest(one)) for one in packings}) == len(packings)
