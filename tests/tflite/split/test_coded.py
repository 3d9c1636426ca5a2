"""Splits with a parity shard: layouts, refusals, and the same answer whichever shard is missing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.errors import CutError, ModelError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.shard_program import ShardProgram, ShardRun
from har_edge.runtime.verify_split import check_split
from har_edge.tflite.manifest import SliceManifest, encode_manifest, find_flaw, load_manifest
from har_edge.tflite.model import read_model
from har_edge.tflite.split.folder import write_split
from har_edge.tflite.split.plan import SplitMethod
from har_edge.tflite.split.program import split_model
from har_edge.tflite.split.spec import parse_split
from tests.tflite.models import FLOAT, INT8
from tests.tflite.split.compare import check
from tests.tflite.split.layers import UINT8, Layers

SPLITS = {
    "a chain": "parity:0-2@3 parity:2-3@3 whole:3-4=0,0,0,1",
    "uneven shares": "parity:0-2@5,1,2 parity:2-3=1,6,1 whole:3-4=0,0,0,1",
    "the answer on a shard": "parity:0-2@3 parity:2-3@3 whole:3-4@4",
    "the answer on a slice of its own": "parity:0-2@3 parity:2-3@3 whole:3-4",
    "operators before": "parity:0-1@2 parity:1-3@2 whole:3-4=0,0,1",
    "other methods behind": "parity:0-2@3 output:2-3@4 whole:3-4@4",
    "two groups": "parity:0-2@3 / parity:2-3@3 whole:3-4=0,0,0,1",
}
# How many shards may be missing, if not three: those that do nothing but sums.
SPARED = {
    "operators before": 2,
    "other methods behind": 0,
    "the answer on a slice of its own": 4,
    "two groups": 7,
}


def chain(type: int) -> tuple[Layers, bytes]:
    """Return two convolutions with a pooling between them, and all values in a row."""
    model = Layers(0, (1, 12, 12, 3), type)
    x = model.conv(model.pool(model.conv(model.x, 8)), 8)
    return model, model.build(model.scores(x))


def residual(type: int) -> tuple[Layers, bytes]:
    """Return a convolution whose result is added to that of the next one."""
    model = Layers(0, (1, 8, 8, 4), type)
    first = model.conv(model.x, 8)
    x = model.add(first, model.conv(first, 8))
    return model, model.build(model.scores(model.conv(x, 8)))


def for_type(split: str, type: int) -> str:
    return split.replace("parity", "floatparity") if type == FLOAT else split


@pytest.mark.parametrize("type", [INT8, UINT8, FLOAT])
@pytest.mark.parametrize("case", SPLITS)
def test_a_split_with_parities_gives_the_whole_without_any_one_of_the_shards(
    case: str, type: int, tmp_path: Path
) -> None:
    model, content = chain(type)
    read = read_model(content)
    layout = split_model(read, parse_split(for_type(SPLITS[case], type), read))
    assert layout.manifest.version == 4
    check(content, layout, {"x": model.window()})
    write_split(layout, tmp_path / "slices")
    checked = check_split(read, tmp_path / "slices", runs=2, orders=6)
    assert checked.difference is None
    assert checked.spared == SPARED.get(case, 3)
    assert checked.error == 0.0 if type != FLOAT else checked.error <= 1e-5


@pytest.mark.parametrize("type", [INT8, FLOAT])
def test_a_tensor_that_goes_around_a_layer_is_finished_once_by_each_shard(type: int, tmp_path: Path) -> None:
    _, content = residual(type)
    read = read_model(content)
    split = for_type("parity:0-1@3 parity:1-3@3 parity:3-4@3 whole:4-5=0,0,0,1", type)
    layout = split_model(read, parse_split(split, read))
    names = [spec.name for step in layout.programs[0].steps for spec in step.outputs if spec.region is None]
    assert len(names) == len(set(names)) == 3  # the two results and their sum
    write_split(layout, tmp_path / "slices")
    checked = check_split(read, tmp_path / "slices", runs=2, orders=4)
    assert checked.difference is None and checked.spared == 3


def test_a_result_that_a_coded_layer_makes_is_finished_by_the_parity_shard() -> None:
    model = Layers(0, (1, 6, 6, 3), INT8)
    content = model.build(model.conv(model.x, 8))
    read = read_model(content)
    layout = split_model(read, parse_split("parity:0-1@3", read))
    check(content, layout, {"x": model.window()})
    assert [len(program.steps) for program in layout.programs] == [1, 1, 1, 2]
    assert layout.manifest.spared == [0, 1, 2]


def test_a_shard_costs_its_share_and_each_finishes_what_it_takes() -> None:
    _, content = chain(INT8)
    read = read_model(content)
    layout = split_model(read, parse_split(SPLITS["a chain"], read))
    first, last = layout.programs[0], layout.programs[3]
    assert [step.outputs[0].name for step in first.steps] == ["t3+sums[3:0:3]", "t3", "t4", "t7+sums[3:0:3]"]
    assert [step.outputs[0].name for step in last.steps] == ["t3+sums/parity", "t3", "t4", "t7+sums/parity", "t7", "t8"]
    assert (
        first.macs <= layout.programs[2].macs and layout.programs[2].steps[0].macs == last.steps[0].macs
    )  # the largest share
    assert {spec.name: (spec.dtype, spec.flow) for spec in first.outputs} == {
        "t3+sums[3:0:3]": ("int32", 0), "t7+sums[3:0:3]": ("int32", 1)
    }  # fmt: skip
    assert first.takers == ((1, 2, 3), (3,)) and last.takers[0] == (0, 1, 2)


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("parity:0-3@3 whole:3-4@4", r"operators \[0, 3\) have 2 linear operators with weights: 0 \(CONV_2D\), 2"),
        ("parity:1-2@3 whole:2-4@4", r"operators \[1, 2\) have 0 linear operators with weights; a parity shard takes"),
        ("parity:0-2@1 whole:2-4@2", "came for a parity shard; expected two or more, and a shard without a share"),
        ("parity:0-2@9 whole:2-4@2", "9 shards came for operators .* which have 8 output channels"),
        ("parity:0-2=4,3 whole:2-4@2", "shares that add up to 7; expected whole numbers that add up to the 8 output"),
        ("whole:0-4=0,2", r"has shares \['0', '2'\]; expected one 1 and zeros"),
        ("parity:0-2@" + ",".join(["1"] * 64) + " whole:2-4", "64 shares and a parity; expected at most 64 shards"),
    ],
)
def test_a_parity_that_cannot_be_is_refused_with_the_reason(split: str, said: str) -> None:
    model = read_model(chain(INT8)[1])
    with pytest.raises(CutError, match=said):
        split_model(model, parse_split(split, model))


def test_floats_must_be_asked_for() -> None:
    model = read_model(chain(FLOAT)[1])
    with pytest.raises(CutError, match=r"operator 0 \(CONV_2D\) sums up floats: .* with the method floatparity"):
        split_model(model, parse_split(SPLITS["a chain"], model))


def test_what_operators_before_the_sums_give_to_others_is_refused() -> None:
    model = Layers(0, (1, 8, 8, 8), INT8)
    pooled = model.pool(model.x, kernel=3, stride=1, padding=0)
    content = model.build(model.scores(model.add(pooled, model.conv(pooled, 8))))
    read = read_model(content)
    with pytest.raises(CutError, match=r"which operators before operator 1 \(CONV_2D\) make; begin the block later"):
        split_model(read, parse_split("parity:0-2@2 whole:2-4@3", read))


def test_depthwise_layers_have_no_parity() -> None:
    model = Layers(0, (1, 8, 8, 8), INT8)
    read = read_model(model.build(model.scores(model.depthwise(model.x))))
    with pytest.raises(CutError, match="have 0 linear operators with weights; a parity shard takes one, of FULLY_CONN"):
        split_model(read, parse_split("parity:0-1@2 whole:1-2@3", read))


def make_manifest(tmp_path: Path) -> SliceManifest:
    read = read_model(chain(INT8)[1])
    return write_split(split_model(read, parse_split(SPLITS["a chain"], read)), tmp_path / "slices")


def test_an_older_reader_refuses_a_manifest_with_a_parity_by_name(tmp_path: Path) -> None:
    """A node before version 4 has regions without this key, and refuses unknown ones."""
    manifest = make_manifest(tmp_path)
    fields = [(name, int, 0) for name in ("axis", "start", "stop", "summand", "summands")]
    older = msgspec.defstruct("TensorRegion", [("of", str), *fields], forbid_unknown_fields=True)
    found = next(spec.region for spec in manifest.tensors if spec.region and spec.region.parity)
    with pytest.raises(msgspec.ValidationError, match="unknown field `parity`"):
        msgspec.json.decode(msgspec.json.encode(found), type=older)
    assert load_manifest(tmp_path / "slices").version == 4 and find_flaw(manifest) == ""


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((0, 3, 8), "gives tensor 't3.sums' two parities, expected one|3 elements, expected 5"),
        ((0, 3, 3, 8), r"shares with the bounds \[0, 3, 3, 8\], expected three or more from 0 on"),
        ((1, 3, 5, 8), r"shares with the bounds \[1, 3, 5, 8\]"),
        ((0, 8), r"shares with the bounds \[0, 8\]"),
        ((0, 1, 2, 8), "expected one|3 elements, expected 6, as the largest share has"),
    ],
)
def test_a_manifest_whose_parity_stands_for_other_shares_is_refused(
    bounds: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    manifest = make_manifest(tmp_path)
    entries = list(manifest.slices)
    taken = [
        msgspec.structs.replace(spec, region=msgspec.structs.replace(spec.region, parity=bounds))
        if spec.name == "t3+sums/parity" and spec.region
        else spec
        for spec in entries[0].inputs
    ]
    entries[0] = msgspec.structs.replace(entries[0], inputs=tuple(taken))
    (tmp_path / "slices" / "manifest.json").write_bytes(
        encode_manifest(msgspec.structs.replace(manifest, slices=tuple(entries)))
    )
    with pytest.raises(ModelError, match=said):
        load_manifest(tmp_path / "slices")


def test_a_step_takes_the_shares_that_are_there_and_decodes_the_missing_one(tmp_path: Path) -> None:
    model, content = chain(INT8)
    read = read_model(content)
    layout = split_model(read, parse_split(SPLITS["a chain"], read))
    loaded = {name: Interpreter(bytes(step.write())).run for name, step in layout.files.items()}
    programs = [ShardProgram(entry, [loaded[step.file] for step in entry.steps]) for entry in layout.manifest.slices]
    first = programs[0]
    assert first.optional == {"t3+sums[3:3:5]", "t3+sums[3:5:8]", "t3+sums/parity"}
    values = {"x": model.window()}
    pieces: dict[str, np.ndarray] = {}
    for program in programs:
        run = ShardRun(program, program.outputs)
        run.add(values)
        run.step(0)
        pieces |= {name: run.take(name) for name in run.covered}
    made = set()
    for lost in (None, *first.optional):
        run = ShardRun(first, first.outputs, spares=True)
        run.add(values)
        run.step(0)
        run.take("t3+sums[3:0:3]")
        run.add({name: piece for name, piece in pieces.items() if name in first.optional and name != lost})
        while run.next is not None:
            run.step(run.next)
        assert run.complete and run.decoded == (lost not in (None, "t3+sums/parity"))
        made.add(run.take("t7+sums[3:0:3]").tobytes())
    assert len(made) == 1
    late = ShardRun(first, first.outputs, spares=True)
    late.add(values | {name: pieces[name] for name in first.optional})
    assert late.next == 1, "its own share of the first layer is of no use any more"


def test_methods_of_a_plan_keep_their_names() -> None:
    assert [method.value for method in SplitMethod][-2:] == ["parity", "floatparity"]
