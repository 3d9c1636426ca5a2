"""The text of a split."""

from itertools import pairwise

import pytest

from har_edge.errors import CutError
from har_edge.tflite.model import read_model
from har_edge.tflite.split.plan import SplitMethod
from har_edge.tflite.split.spec import parse_split
from tests.tflite import models


@pytest.fixture(scope="module")
def model():
    return read_model(models.skip())


def test_blocks_of_as_many_shards_are_one_group_and_others_begin_a_new_one(model):
    count = len(model.main.operators)
    rows = parse_split(f"rows:0-1@2 output:1-2@2 whole:2-{count}", model)
    assert [one.shards for one in rows] == [2, 1]
    assert [block.method for block in rows[0].blocks] == [SplitMethod.ROWS, SplitMethod.OUTPUT]
    apart = parse_split(f"rows:0-1@2 / output:1-2@2 whole:2-{count}@2", model)
    assert [(one.shards, len(one.blocks)) for one in apart] == [(2, 1), (2, 2)]
    assert apart[1].blocks[1].bounds == (0, 1, 1)  # the first shard computes it alone


def test_shares_are_equal_in_proportion_or_exact(model):
    count = len(model.main.operators)
    for text, sizes in (("@2", [4, 4]), ("@3,1", [6, 2]), ("=5,3", [5, 3])):
        (first, *_) = parse_split(f"rows:0-1{text} whole:1-{count}", model)
        bounds = first.blocks[0].bounds
        assert [b - a for a, b in pairwise(bounds)] == sizes


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no block came; expected some, as in"),
        ("rows", "'rows' is no block of a split; expected METHOD:START-STOP@SHARDS"),
        ("columns:0-1@2", "with one of the methods whole, rows, output, input, heads"),
        ("rows:0-1", "'rows:0-1' says no shares; expected rows:0-1@N"),
        ("rows:1-1@2", r"names operators \[1, 1\); expected some of the"),
        ("rows:0-99@2", r"names operators \[0, 99\); expected some of the"),
        ("rows:0-1@0", "has 0 shards; expected a whole number from 1 to 64"),
        ("rows:0-1@1.5", "has 1.5 shards; expected a whole number from 1 to 64"),
        ("rows:0-1@9", "9 shards came for operators .* which have 8 rows; expected at most 8"),
        ("rows:0-1@1,,2", "has shares '1,,2'; expected numbers with commas"),
        ("rows:0-1@1,0", "expected one positive number for each shard"),
        ("rows:0-1=4,3", "shares that add up to 7; expected whole numbers that add up to the 8 rows"),
        ("rows:0-1=" + ",".join(["1"] * 65), "has 65 shards; expected 1 to 64"),
        ("heads:0-1@2", r"operator 0 \(CONV_2D\)|no BATCH_MATMUL"),
    ],
)
def test_what_is_no_split_says_why(model, text, problem):
    with pytest.raises(CutError, match=problem):
        parse_split(text, model)
