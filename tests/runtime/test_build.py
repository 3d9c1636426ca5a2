"""How a stage is built: how much it takes from the broker at once, and in which order it loads files."""

from __future__ import annotations

from pathlib import Path

import pytest

from har_edge.cli.main import main
from har_edge.config.pipeline import load_pipeline
from har_edge.config.wiring import Wiring
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.load_check import LoadCheck
from har_edge.runtime.build import RECEIVE_LEAST, RECEIVE_MAX, build_setup, receive_max
from har_edge.tflite.manifest import SliceEntry, TensorSpec
from tests.tflite import models


def wiring(*shape: int, makers: int = 1, source: bool = False) -> Wiring:
    tensors = tuple(TensorSpec(f"t{number}", shape, "float32") for number in range(makers))
    entry = SliceEntry("slice.tflite", "0" * 64, 0, 1, tensors, tensors)
    earlier = {} if source else {number: (f"t{number}",) for number in range(makers)}
    return Wiring(makers, entry, {"chest": "t0"} if source else {}, earlier, ("t0",), False)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (wiring(1, 100), RECEIVE_MAX),
        (wiring(-1, 512, 512), 64),
        (wiring(1, 4096, 4096), RECEIVE_LEAST),
        (wiring(1, 4096, 4096, makers=2), RECEIVE_MAX),
        (wiring(1, 4096, 4096, source=True), RECEIVE_LEAST),
    ],
    ids=["small", "a megabyte", "large", "parts that wait for others", "one source"],
)
def test_large_messages_wait_at_the_broker_unless_parts_wait_for_each_other(taken: Wiring, expected: int) -> None:
    assert receive_max(taken) == expected


def test_a_shard_checks_all_of_its_files_before_it_holds_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check takes as much memory as what it runs; beside files that are loaded, a plan's limit would not hold it."""
    path = tmp_path / "skip.tflite"
    path.write_bytes(models.skip())
    words = ["--stream", "images", "--normalize", "0,255", "--split", "rows:0-2@2 rows:2-4@2 whole:4-5@2"]
    assert main(["slice", str(path), *words, "--out", str(tmp_path / "out")]) == 0
    pipeline, events = load_pipeline(tmp_path / "out"), list[str]()
    begin = Interpreter.__init__

    def load(self: Interpreter, *args: object, **more: object) -> None:
        events.append("load")
        begin(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Interpreter, "__init__", load)
    check = LoadCheck(None, command=("true",))
    monkeypatch.setattr(LoadCheck, "__call__", lambda self, content, what, delegate="xnnpack": events.append("check"))
    build_setup(pipeline, 0, check=check)
    files = len({step.sha256 for step in pipeline.manifest.slices[0].steps})
    assert files > 1 and events[: 2 * files] == ["check"] * files + ["load"] * files
    assert "check" not in events[files:]
