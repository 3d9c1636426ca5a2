"""Packings by cut: which tensors they are for, and what is refused."""

from __future__ import annotations

import pytest

from har_edge.errors import ConfigError, CutError
from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorRegion, TensorSpec, find_flaw, versioned
from har_edge.tflite.packed_cuts import choose_packings, crossing_tensors, parse_request, with_packings
from har_edge.tflite.packing import TensorPacking

HASH = "0" * 64


def tensor(name: str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, (-1, 4), dtype)


def manifest(wire: int = 3) -> SliceManifest:
    """Three slices, cut at 2 and 5: `a` crosses both cuts, `b` the first, `c` and the integers `d` the second."""
    x, a, b, c, d = tensor("x"), tensor("a"), tensor("b"), tensor("c"), tensor("d", "int8")
    slices = (
        SliceEntry("s0", HASH, 0, 2, (x,), (a, b)),
        SliceEntry("s1", HASH, 2, 5, (a, b), (c, d)),
        SliceEntry("s2", HASH, 5, 9, (a, c, d), (tensor("y"),)),
    )
    return versioned(SliceManifest(0, "m", HASH, slices, wire))


def chosen(*texts: str) -> dict[str, str]:
    return {
        name: one.text for name, one in choose_packings(manifest(), [parse_request(text) for text in texts]).items()
    }


def test_all_that_travels_is_packed_without_a_cut() -> None:
    assert list(crossing_tensors(manifest())) == ["a", "b", "c", "d"]
    assert chosen("f2") == {"a": "f2", "b": "f2", "c": "f2"}
    assert chosen("f2+zstd") == {"a": "f2+zstd", "b": "f2+zstd", "c": "f2+zstd", "d": "zstd"}
    assert chosen() == {}


def test_a_cut_of_its_own_comes_first() -> None:
    assert list(crossing_tensors(manifest(), 2)) == ["a", "b"] and list(crossing_tensors(manifest(), 5)) == [
        "a",
        "c",
        "d",
    ]
    assert chosen("f2@2") == {"a": "f2", "b": "f2"}
    assert chosen("zstd", "f2@2") == {"a": "f2", "b": "f2", "c": "zstd", "d": "zstd"}
    assert chosen("f2@2", "zstd") == {"a": "f2", "b": "f2", "c": "zstd", "d": "zstd"}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="two packings came for tensor 'a'; expected one for each"):
        chosen("f2@2", "zstd@5")
    with pytest.raises(CutError, match="--pack names cut 3; expected one of 2, 5"):
        chosen("f2@3")
    with pytest.raises(ConfigError, match="cut 'x' came; expected the number of an operator"):
        parse_request("f2@x")
    with pytest.raises(ConfigError, match="packing 'q8:1:0' came; expected f2, q8, zstd"):
        parse_request("q8:1:0")
    with pytest.raises(ConfigError, match="--pack came with wire version 1"):
        choose_packings(manifest(1), [parse_request("f2")])
    integers = SliceManifest(
        2, "m", HASH, (SliceEntry("a", HASH, 0, 1, (tensor("x"),), (tensor("d", "int8"),)),
                       SliceEntry("b", HASH, 1, 2, (tensor("d", "int8"),), (tensor("y"),))), 3,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="no tensor of float32 or float64 crosses any cut; use zstd"):
        choose_packings(integers, [parse_request("q8")])
    assert choose_packings(integers, [parse_request("zstd")])["d"].zstd


def test_both_sides_of_a_cut_have_the_packing() -> None:
    made = with_packings(manifest(), choose_packings(manifest(), [parse_request("f2+zstd@5")]))
    assert find_flaw(made) == "" and made.version == 3
    assert {spec.name: spec.packing for spec in made.tensors} == {
        "x": "", "a": "f2+zstd", "b": "", "c": "f2+zstd", "d": "zstd", "y": "",
    }  # fmt: skip
    assert with_packings(manifest(), {}) == manifest()


def test_pieces_of_a_tensor_travel_as_the_tensor_does() -> None:
    def rows(start: int, stop: int) -> TensorSpec:
        return TensorSpec(
            f"t[1:{start}:{stop}]", (1, stop - start), "float32", region=TensorRegion("t", 1, start, stop)
        )

    first = SliceEntry("s", HASH, 0, 1, (tensor("x"),), (rows(0, 2), rows(2, 4)))
    last = SliceEntry("u", HASH, 1, 2, (rows(0, 2), rows(2, 4)), (tensor("y"),))
    made = with_packings(SliceManifest(3, "m", HASH, (first, last), 3), {"t": TensorPacking(zstd=True)})
    assert [spec.packing for spec in made.tensors] == ["", "zstd", "zstd", "zstd", "zstd", ""]
