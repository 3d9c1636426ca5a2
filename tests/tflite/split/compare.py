"""Run a split in one process, and compare what it gives with the whole model."""

from __future__ import annotations

import numpy as np

from har_edge.inference.interpreter import Interpreter
from har_edge.inference.shard_run import run_shards
from har_edge.tflite.model import read_model
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan
from har_edge.tflite.split.program import SplitLayout, split_model


def rows(start: int, stop: int, *bounds: int) -> Block:
    return Block(start, stop, SplitMethod.ROWS, bounds)


def whole(start: int, stop: int, shards: int, at: int = 0) -> Block:
    return Block(start, stop, SplitMethod.WHOLE, tuple(int(k > at) for k in range(shards + 1)))


def lay_out(content: bytes, *blocks: Block, border_first: bool = True) -> SplitLayout:
    plan = SplitPlan(len(blocks[0].bounds) - 1, blocks, border_first)
    return split_model(read_model(content), [plan])


def results(content: bytes, layout: SplitLayout, values: dict[str, np.ndarray]) -> dict[str, tuple]:
    """Return each output of the model as the whole gives it and as the split does."""
    loaded = {name: Interpreter(bytes(step.write())) for name, step in layout.files.items()}
    got = run_shards(layout.manifest, loaded.__getitem__, values)
    wanted = Interpreter(content).run(values)
    return {name: (value, got[name]) for name, value in wanted.items()}


def check(content: bytes, layout: SplitLayout, values: dict[str, np.ndarray]) -> bool:
    """Assert that integers are equal to the bit and floats within 1e-5; return whether floats are equal to the bit."""
    equal = True
    for name, (wanted, got) in results(content, layout, values).items():
        assert wanted.shape == got.shape and wanted.dtype == got.dtype, name
        if wanted.dtype.kind == "f":
            bound = 1e-5 * max(1e-30, float(np.abs(wanted).max()))
            assert np.abs(wanted - got).max() <= bound, name
            equal = equal and wanted.tobytes() == got.tobytes()
        else:
            differ = int(np.count_nonzero(wanted != got))
            assert differ == 0, f"{differ} of {wanted.size} elements of {name} differ"
    return equal
