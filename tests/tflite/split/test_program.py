"""Layouts of splits: who takes what of whom, when it leaves, and what is refused."""

import hashlib

import pytest

from har_edge.errors import CutError
from har_edge.inference.interpreter import load_slice
from har_edge.inference.shard_run import run_shards
from har_edge.tflite.manifest import find_flaw, load_manifest
from har_edge.tflite.model import read_model
from har_edge.tflite.split.folder import write_split
from har_edge.tflite.split.plan import SplitPlan
from har_edge.tflite.split.program import ordinary, split_model
from tests.tflite.models import FLOAT, INT8
from tests.tflite.split.compare import check, lay_out, rows, whole
from tests.tflite.split.layers import VALID, Layers


def chain(type=INT8, layers=3):
    """Convolutions over 24 rows, then all values in a row."""
    model = Layers(0, (1, 24, 6, 3), type)
    x = model.x
    for _ in range(layers):
        x = model.conv(x, 4)
    return model, model.build(model.scores(x))


def test_shards_send_their_neighbours_only_the_border_rows():
    _, content = chain()
    blocks = (*(rows(k, k + 1, 0, 8, 16, 24) for k in range(3)), whole(3, 4, 3))
    first, second, third = lay_out(content, *blocks).programs
    names = [spec.name for spec in first.outputs]
    assert names == ["t3[1:7:8]", "t6[1:7:8]", "t10"]
    assert [spec.name for spec in first.inputs] == ["x[1:0:9]", "t3[1:8:9]", "t6[1:8:9]", "t9[1:8:16]", "t9[1:16:24]"]
    assert [spec.name for spec in second.inputs] == [
        "x[1:7:17]",
        "t3[1:7:8]",
        "t3[1:16:17]",
        "t6[1:7:8]",
        "t6[1:16:17]",
    ]
    # A row to each neighbour by itself, and for the last block all rows at once.
    assert {spec.name: spec.flow for spec in second.outputs} == {
        "t3[1:8:9]": 0, "t3[1:15:16]": 1, "t6[1:8:9]": 2, "t6[1:15:16]": 3, "t9[1:8:16]": 4
    }  # fmt: skip
    assert second.takers == ((0,), (2,), (0,), (2,), (0,))
    assert third.takers == ((1,), (1,), (0,))


def test_border_rows_are_made_first_by_the_same_file():
    _, content = chain()
    blocks = (*(rows(k, k + 1, 0, 8, 16, 24) for k in range(3)), whole(3, 4, 3))
    layout = lay_out(content, *blocks)
    second = layout.programs[1]
    made = [(step.outputs[0].region.start, step.outputs[0].region.stop) for step in second.steps]
    assert made == [(8, 9), (15, 16), (9, 15), (8, 9), (15, 16), (9, 15), (8, 16)]
    assert len({step.key for step in second.steps}) == 3
    later = lay_out(content, *blocks, border_first=False)
    assert [len(program.steps) for program in later.programs] == [4, 3, 3]
    assert len(later.files) == 3 * 3 + 1  # a top, a middle and a bottom for each block
    # The ends of the picture need the file of the middle, too, for the rows beside it.
    assert len(layout.files) == len(later.files)


def test_the_last_layer_of_a_fused_block_makes_border_rows_first():
    """All layers apart would compute the halo again for each part; the last one alone costs nothing."""
    model, content = chain(INT8, 4)
    blocks = (rows(0, 3, 0, 8, 16, 24), rows(3, 4, 0, 8, 16, 24), whole(4, 5, 3))
    layout = lay_out(content, *blocks)
    second = layout.programs[1]
    made = [(step.outputs[0].of, step.outputs[0].region.start, step.outputs[0].region.stop) for step in second.steps]
    assert made == [("t6", 7, 17), ("t9", 8, 9), ("t9", 15, 16), ("t9", 9, 15), ("t12", 8, 16)]
    assert second.macs == lay_out(content, *blocks, border_first=False).programs[1].macs
    assert [spec.name for spec in second.inputs] == ["x[1:5:19]", "t9[1:7:8]", "t9[1:16:17]"]
    assert {spec.name: spec.flow for spec in second.outputs} == {"t9[1:8:9]": 0, "t9[1:15:16]": 1, "t12[1:8:16]": 2}
    check(content, layout, {"x": model.window()})


def test_redundant_arithmetic_is_counted():
    _, content = chain(FLOAT)
    whole_model = lay_out(content, rows(0, 3, 0, 24), whole(3, 4, 1))
    halves = lay_out(content, rows(0, 3, 0, 12, 24), whole(3, 4, 2))
    macs = 24 * 6 * 4 * 9 * (3 + 4 + 4)
    assert whole_model.programs[0].macs == macs
    # The first layer is computed for two rows more on each side of the middle, the second for one.
    assert sum(program.macs for program in halves.programs) == macs + 2 * 6 * 4 * 9 * (2 * 3 + 4)


def test_files_are_shared_by_shards_and_stand_once_in_the_folder(tmp_path):
    model, content = chain()
    layout = lay_out(content, rows(0, 1, 0, 4, 9, 13, 17, 24), rows(1, 3, 0, 6, 6, 12, 18, 24), whole(3, 4, 5, 2))
    manifest = write_split(layout, tmp_path / "split")
    assert load_manifest(tmp_path / "split") == manifest and manifest.version == 3 and find_flaw(manifest) == ""
    used = {name: sha256 for entry in manifest.slices for name, sha256 in entry.files.items()}
    files = {path.name: path.read_bytes() for path in (tmp_path / "split").glob("*.tflite")}
    assert used == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert len(set(used.values())) == len(used) == 7
    loaded = {name: load_slice(tmp_path / "split" / name, used[name]) for name in used}
    values = {"x": model.window()}
    got = run_shards(manifest, loaded.__getitem__, values)
    _, again = chain()
    check(again, layout, values)
    assert got["t10"].shape == (1, 24 * 6 * 4)
    # A later cut replaces all of it.
    second = write_split(lay_out(content, rows(0, 3, 0, 12, 24), whole(3, 4, 2)), tmp_path / "split")
    assert {path.name for path in (tmp_path / "split").iterdir()} == {
        *second.slices[0].files,
        *second.slices[1].files,
        "manifest.json",
    }


def test_groups_and_slices_follow_each_other():
    model, content = chain(INT8, 6)
    parts = [
        SplitPlan(3, (rows(0, 1, 0, 8, 16, 24), rows(1, 2, 0, 4, 20, 24))),
        ordinary(2, 3),
        SplitPlan(2, (rows(3, 5, 0, 20, 24),)),
        SplitPlan(2, (rows(5, 6, 0, 12, 24), whole(6, 7, 2, 1))),
    ]
    layout = split_model(read_model(content), parts)
    assert [(program.start, program.stop) for program in layout.programs] == [(0, 2)] * 3 + [(2, 3)] + [(3, 5)] * 2 + [
        (5, 7)
    ] * 2
    # The slice between groups puts pieces together, so it is a program of one step.
    assert [len(entry.steps) for entry in layout.manifest.slices[3:4]] == [1]
    check(content, layout, {"x": model.window()})


def test_plain_slices_need_no_steps():
    model, content = chain()
    layout = split_model(read_model(content), [ordinary(0, 2), ordinary(2, 4)])
    assert layout.manifest.version == 2 and not any(entry.steps for entry in layout.manifest.slices)
    check(content, layout, {"x": model.window()})


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([rows(0, 4, 0, 12, 24)], r"operator 3 \(RESHAPE\) cannot be split by rows: .*let one shard compute it whole"),
        ([rows(0, 3, 0, 12, 23), whole(3, 4, 2)], "expected them to end at 24, the rows of t9"),
        ([rows(0, 3, 0, 24, 24), whole(3, 4, 2)], "shard 1 has no share of any block"),
        ([rows(0, 3, 0, 12, 24)], "splits of 3 operators came; expected all 4"),
    ],
)
def test_splits_that_cannot_run_are_refused(blocks, message):
    _, content = chain()
    with pytest.raises(CutError, match=message):
        lay_out(content, *blocks)


def test_a_result_in_parts_is_refused():
    model = Layers(0, (1, 8, 6, 3))
    content = model.build(model.conv(model.conv(model.x, 4), 4))
    with pytest.raises(CutError, match="the shards would have parts of the result t6, and none has it whole"):
        lay_out(content, rows(0, 2, 0, 4, 8))
    layout = lay_out(content, rows(0, 1, 0, 4, 8), whole(1, 2, 2, 1))
    check(content, layout, {"x": model.window()})


def test_results_made_early_and_skips_over_blocks():
    """One result early, one late; a tensor that two later blocks read, one of them with other shares."""
    model = Layers(3, (1, 24, 10, 3), INT8)
    first = model.conv(model.x, 4, 5)
    second = model.conv(first, 4, 3)
    early = model.pool(model.pool(first), "AVERAGE", (12, 5), 1)
    third = model.conv(model.add(first, second), 4, 3, 2, VALID)
    content = model.build(model.scores(third), early)
    layout = lay_out(
        content, rows(0, 2, 0, 5, 14, 24), rows(2, 3, 0, 4, 8, 12), whole(3, 4, 3, 2), rows(4, 6, 0, 2, 4, 11),
        whole(6, 7, 3, 1),
    )  # fmt: skip
    check(content, layout, {"x": model.window()})
    assert [sum(not spec.region for spec in program.outputs) for program in layout.programs] == [0, 1, 1]
