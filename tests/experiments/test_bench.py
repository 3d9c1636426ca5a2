"""A bench on a real bed: rows come, and a second run measures nothing again."""

from __future__ import annotations

from pathlib import Path

from har_edge.experiments.bench import Bench, Conditions
from har_edge.experiments.model_under_test import find_model_under_test
from har_edge.experiments.rows import MeasuredRow
from tests.emulation.machine import require_machine

CONDITIONS = Conditions(94_000_000, warm_s=0.2, seconds=0.5, windows=5)


def test_two_devices_are_measured_once(tmp_path: Path) -> None:
    require_machine()
    told: list[MeasuredRow] = []
    tmp_path.chmod(0o755)
    model_under_test = find_model_under_test("int8", tmp_path / "models")
    bench = Bench(tmp_path / "out", CONDITIONS, tell=told.append)
    row = bench.measure(model_under_test, bench.profile(model_under_test), [0.5, 0.5], 1)
    assert row.cpus == "0.5 0.5" and row.windows >= 5 and row.predicted_s > 0 and told == [row]
    assert len(row.busy.split()) == len(row.used.split()) == len(row.cuts.split()) + 1
    assert 0 < max(map(float, row.busy.split())) < 1.5
    again = Bench(tmp_path / "out", CONDITIONS, tell=told.append)
    assert again.measure(model_under_test, again.profile(model_under_test), [0.5, 0.5], 1) == row and told == [row]
