"""Which devices may give other bits than each other, and for which models."""

from __future__ import annotations

import pytest

from har_edge.protocol.status import NodeCapabilities
from har_edge.runtime.agreement import RuntimeInfo, disagreement, kind_of, way_of

LITERT, OLDER = "ai-edge-litert 2.3.0", "tflite-runtime 2.14.0"
PI = RuntimeInfo(LITERT, "aarch64", "xnnpack")
BOX = RuntimeInfo(LITERT, "x86_64", "xnnpack")
OLD_PI = RuntimeInfo(OLDER, "armv7l", "none")


def card(**changed: object) -> NodeCapabilities:
    figures = {"protocol": 1, "machine": "m", "cores": 4, "memory_bytes": 1, "speed": 1.0, "runtime": LITERT}
    return NodeCapabilities(**({"system": "Linux aarch64, Python 3.11.2", "delegate": "xnnpack"} | figures | changed))  # type: ignore[arg-type]


def test_a_card_says_how_its_device_computes() -> None:
    assert way_of(card()) == PI
    assert way_of(card(runtime="")) is None
    assert way_of(None) is None
    assert str(PI) == "ai-edge-litert 2.3.0, aarch64, delegate xnnpack"
    assert way_of(card(system="", delegate="")) == RuntimeInfo(LITERT, "", "")


def test_the_least_exact_numbers_decide() -> None:
    assert kind_of({"int8", "uint8", "float32"}) == "float32"
    assert kind_of({"int8", "uint8"}) == "uint8"
    assert kind_of({"int8", "int32"}) == "int8"


def test_float_models_are_warned_of_for_every_difference() -> None:
    assert disagreement({"a": PI, "b": PI}, {"float32"}) == ""
    for other in (
        BOX,
        OLD_PI,
        RuntimeInfo("ai-edge-litert 2.4.0", "aarch64", "xnnpack"),
        RuntimeInfo(LITERT, "aarch64", "none"),
    ):
        said = disagreement({"a": PI, "b": other, "c": None}, {"float32", "int8"})
        assert said.startswith("this model computes in float32, and its nodes in different ways: answers may differ in")
        assert f"by where a slice runs: a ({PI}), b ({other}) (" in said
        assert said.endswith("(docs/reference/runtimes.md)")


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_integers_agree_between_machines_where_xnnpack_computes(kind: str) -> None:
    assert disagreement({"a": PI, "b": BOX}, {kind}) == ""
    said = disagreement({"a": PI, "b": OLD_PI}, {kind})
    assert f"computes in {kind}, and its nodes in different ways: answers may differ by some steps of their" in said
    without = {name: RuntimeInfo(LITERT, machine, "none") for name, machine in (("a", "aarch64"), ("b", "x86_64"))}
    assert f"computes in {kind}" in disagreement(without, {kind})


def test_tflite_runtime_is_warned_of_even_alone_unless_nothing_is_delegated() -> None:
    said = disagreement({"a": OLD_PI, "b": OLD_PI}, {"float32"})
    assert said.startswith("a, b run tflite-runtime, which gives some float32 slices no XNNPACK")
    assert "--delegate none prevents it" in said
    assert disagreement({"a": OLD_PI}, {"float32"}, delegate="none") == ""
    assert disagreement({"a": OLD_PI}, {"uint8"}) == ""


def test_a_long_list_of_nodes_is_cut() -> None:
    many = {f"n{number:02}": RuntimeInfo(LITERT, f"machine{number}", "xnnpack") for number in range(10)}
    assert "n07 (" in disagreement(many, {"float32"})
    assert "and 2 more" in disagreement(many, {"float32"})
