"""Rows of measurements: what is kept in the file, and what several of them say together."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from har_edge.errors import ConfigError
from har_edge.experiments.rows import MeasuredRow, append_row, gains, read_rows

ROW = MeasuredRow(
    model="net",
    sha256="ab",
    cpus="0.1",
    link_bits_per_s=94_000_000,
    repeat=1,
    used="0.1",
    cuts="",
    crossing_bytes="",
    in_flight=4,
    windows=40,
    seconds=10.0,
    period_s=0.25,
    predicted_s=0.2,
    link_s=0.1,
    speeds="0.1 0.1",
    busy="0.99",
    stage_ms="24.75",
    latency_s=1.0,
)


def on(cpus: str, repeat: int, period_s: float) -> MeasuredRow:
    return msgspec.structs.replace(ROW, cpus=cpus, used=cpus, repeat=repeat, period_s=period_s)


def test_rows_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    path, rows = tmp_path / "measured.csv", [ROW, on("0.1 0.1", 1, 0.15)]
    assert read_rows(path) == []
    for row in rows:
        append_row(row, path)
    assert read_rows(path) == rows and len(path.read_text().splitlines()) == 3


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "measured.csv"
    path.write_text("model,seconds\nnet,soon\n")
    with pytest.raises(ConfigError, match=r"measured.csv holds no measurements of this command: .*give another folder"):
        read_rows(path)


def test_a_prediction_is_compared_with_what_was_measured() -> None:
    assert ROW.error == pytest.approx(ROW.predicted_s / ROW.period_s - 1) and ROW.error == pytest.approx(-0.2)


def test_a_gain_is_the_median_of_ratios_within_repeats() -> None:
    rows = [on("0.1", 1, 0.2), on("0.1", 2, 0.3), on("0.1", 3, 0.4)]
    rows += [on("0.1 0.1", 1, 0.1), on("0.1 0.1", 2, 0.2), on("0.1 0.1", 3, 0.1), on("0.1 0.1", 4, 9.0)]
    one, two = gains(rows)
    assert (one.devices, one.speedup, one.repeats, one.windows_per_s) == (1, 1.0, 3, pytest.approx(1 / 0.3))
    assert (two.devices, two.repeats) == (2, 3)  # the fourth repeat has nothing to compare with
    assert (two.lowest, two.speedup, two.highest) == pytest.approx((1.5, 2.0, 4.0))
    assert gains(rows[3:]) == []
