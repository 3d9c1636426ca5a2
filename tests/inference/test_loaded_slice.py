"""A shard holds an interpreter for each size of step where files are small, and gives the same bits either way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from har_edge.inference import loaded_slice
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.loaded_slice import LoadedSlice
from har_edge.tflite.model import read_model
from har_edge.tflite.split.folder import write_split
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan
from har_edge.tflite.split.program import split_model
from tests.tflite import models
from tests.tflite.split.layers import Layers


def border_first() -> tuple[bytes, SplitPlan]:
    """Return a model, and a plan by which its middle shard computes border rows apart."""
    layers = Layers(0, (1, 24, 6, 3), models.FLOAT)
    content = layers.build(layers.scores(layers.conv(layers.conv(layers.x, 16), 16)))
    rows, count = (0, 8, 16, 24), len(read_model(content).main.operators)
    blocks = (Block(0, 1, SplitMethod.ROWS, rows), Block(1, 2, SplitMethod.ROWS, rows))
    return content, SplitPlan(3, (*blocks, Block(2, count, SplitMethod.WHOLE, (0, 1, 1, 1))), border_first=True)


def allocations(monkeypatch: pytest.MonkeyPatch, folder: Path, twin_bytes: int) -> tuple[int, list[bytes]]:
    """Return how often the middle shard allocates in its third window, and the bytes that it gives."""
    monkeypatch.setattr(loaded_slice, "TWIN_BYTES", twin_bytes)
    content, plan = border_first()
    manifest = write_split(split_model(read_model(content), [plan]), folder)
    loaded = LoadedSlice(manifest.slices[1], lambda file, sha256: Interpreter(folder / file))
    values, count, refit = loaded.sample(np.random.default_rng(0)), 0, Interpreter._refit

    def counted(self: Interpreter, values: object) -> None:
        nonlocal count
        count += 1
        refit(self, values)  # type: ignore[arg-type]

    for _ in range(2):
        loaded.run(values)
    with monkeypatch.context() as patch:
        patch.setattr(Interpreter, "_refit", counted)
        made = loaded.run(values)
    return count, [made[name].tobytes() for name in sorted(made)]


def test_small_files_have_an_interpreter_for_each_size_and_others_allocate_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few, with_twins = allocations(monkeypatch, tmp_path / "a", 8 * 2**20)
    many, without = allocations(monkeypatch, tmp_path / "b", 0)
    assert few == 0 < many and with_twins == without


def test_a_twin_shares_the_model_and_gives_the_same() -> None:
    content = models.skip()
    interpreter = Interpreter(content)
    twin, (port, *_) = interpreter.twin(), interpreter.inputs
    assert twin.model_bytes == interpreter.model_bytes == len(content)
    values = {one.name: np.ones([abs(n) for n in one.shape], one.dtype) for one in interpreter.inputs}
    assert port.name in values
    assert [one.tobytes() for one in twin.run(values).values()] == [
        one.tobytes() for one in interpreter.run(values).values()
    ]
