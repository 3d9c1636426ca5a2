"""Shipped models, and those of others where they are, split by rows as far as that goes, against the whole."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from har_edge.errors import CutError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.tensor_observation import open_model
from har_edge.tflite.cuts import list_cuts, trace_dataflow
from har_edge.tflite.model import Model
from har_edge.tflite.split.geometry import RowGeometry
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan
from har_edge.tflite.split.program import split_model
from tests.tflite.split.compare import check, whole

ROOT = Path(__file__).parents[3]
SHIPPED = ("har-float", "har-int8", "har-float-split", "har-int8-split", "har-decimate-q8-zlib-restore")


def row_blocks(model: Model, shards: int, size: int) -> list[Block]:
    """Return blocks of up to `size` operators, by rows where they have as many rows as there are shards."""
    flow, count = trace_dataflow(model), len(model.main.operators)
    legal = sorted({count} | {cut.index for cut in list_cuts(model) if cut.refusal is None})
    blocks, at = list[Block](), 0
    while at < count:
        found = None
        for stop in (one for one in legal if at < one <= at + size):
            try:
                geometry = RowGeometry(model, at, stop, flow)
            except CutError:
                continue
            if geometry.size >= shards:
                found = stop, tuple(round(geometry.size * k / shards) for k in range(shards + 1))
        if found is not None:
            blocks.append(Block(at, found[0], SplitMethod.ROWS, found[1]))
            at = found[0]
            continue
        stop = next(one for one in legal if one > at)
        if blocks and blocks[-1].method is SplitMethod.WHOLE:
            blocks[-1] = whole(blocks[-1].start, stop, shards)
        else:
            blocks.append(whole(at, stop, shards))
        at = stop
    return blocks


def compare(path: Path, shards: int, size: int) -> int:
    """Compare a split with the whole; return how many blocks are split by rows."""
    model = open_model(path)
    blocks = row_blocks(model, shards, size)
    layout = split_model(model, [SplitPlan(shards, tuple(blocks))])
    content = path.read_bytes()
    values = sample(Interpreter(content).inputs, np.random.default_rng(0), batch=1)
    check(content, layout, values)
    return sum(block.method is SplitMethod.ROWS for block in blocks)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize(("shards", "size"), [(2, 4), (3, 1), (5, 30)])
def test_shipped_models_split_by_rows(name: str, shards: int, size: int) -> None:
    assert compare(ROOT / "models" / f"{name}.tflite", shards, size) > 0


@pytest.mark.dataset
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128_quant.tflite", "mobilenet_v2_1.0_224_quant.tflite"])
@pytest.mark.parametrize(("shards", "size"), [(2, 10), (4, 6), (7, 1), (3, 70)])
def test_models_of_others_split_by_rows(name: str, shards: int, size: int) -> None:
    default = Path(os.environ.get("HAR_EDGE_DATA", ".")).parent / "models"
    path = Path(os.environ.get("HAR_EDGE_MODELS", default)) / name
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs {path}: set HAR_EDGE_MODELS to the folder with the models that others made")
        pytest.skip(f"needs {name}: set HAR_EDGE_MODELS")
    assert compare(path, shards, size) > 0
