"""What a study writes: rows, report, pictures."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest

from har_edge.errors import ConfigError
from har_edge.evaluation.curve import choose_row, draw_study
from har_edge.evaluation.protocol import Protocol
from har_edge.evaluation.results import (
    MeasuredTraffic,
    StudyConditions,
    StudyResults,
    add_measured,
    add_rows,
    format_csv,
    format_report,
    load_results,
    merge_results,
    write_results,
)
from har_edge.evaluation.rows import Row

CONDITIONS = StudyConditions("real data from there", True, ["a", "b"], [0], "2 epochs", "0.0", "digest")


def row(reducer: str = "none", **changes: Any) -> Row:
    values = {
        "protocol": Protocol.LOSO,
        "method": "network",
        "reducer": reducer,
        "downstream": "codes",
        "grouping": "location",
        "precision": "int8",
        "batch": 1,
        "subjects": 2,
        "windows": 8,
        "accuracy": 0.875,
        "accuracy_std": 0.125,
        "macro_f1": 0.75,
        "accuracy_pooled": 0.8,
        "macro_f1_pooled": 0.7,
        "raw_bytes_per_s": 400.0,
        "code_bytes_per_s": 800.0,
        "wire_bytes_per_s": 840.0,
        "named_bytes_per_s": 900.0,
        "ack_bytes_per_s": 4.0,
        "reduction": -1.1,
        "operations": 10,
        "encode_us": 5.5,
        "error": None,
        "per_subject": {"a": 0.75, "b": 1.0},
        "without": {},
        "confusion": [[3, 1], [0, 4]],
        "labels": ["run", "walk"],
        "conditions": "digest",
    }
    return Row(**(values | changes))


SMALL = row("paa:9", wire_bytes_per_s=40.0, reduction=0.9, accuracy=0.8, without={"chest": 0.5, "arm": 0.25})


def results(*rows: Row) -> StudyResults:
    return add_rows(merge_results(None, CONDITIONS, "har-edge evaluate --protocol loso"), rows)


def test_rows_of_the_same_conditions_come_together(tmp_path: Path) -> None:
    write_results(results(row(), SMALL), tmp_path)
    again = merge_results(load_results(tmp_path), CONDITIONS, "har-edge evaluate --protocol random")
    better = msgspec.structs.replace(SMALL, accuracy=0.9)
    random = row(protocol=Protocol.RANDOM)
    merged = add_rows(again, [random, better])
    assert merged.rows == [row(), better, random]  # by protocol, what sends most first; the newer one counts
    assert merged.headline == [row(), better]
    assert merged.commands == ["har-edge evaluate --protocol loso", "har-edge evaluate --protocol random"]
    other = msgspec.structs.replace(CONDITIONS, digest="other")
    assert merge_results(merged, other, "now").rows == []
    assert load_results(tmp_path / "nowhere") is None


def test_rows_of_one_design_stay_together() -> None:
    bigger = [row(batch=2, wire_bytes_per_s=500.0), msgspec.structs.replace(SMALL, batch=2, wire_bytes_per_s=30.0)]
    middle = row("paa:2", wire_bytes_per_s=600.0)
    assert add_rows(results(*bigger, SMALL), [middle, row()]).rows == [row(), bigger[0], middle, SMALL, bigger[1]]


def test_a_sheet_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('{"rows": 1}')
    with pytest.raises(ConfigError, match=r"rows.json: .*another version of har-edge wrote it: remove it, or choose"):
        load_results(tmp_path)


def test_the_csv_has_a_column_for_each_subject_and_missing_source() -> None:
    first, second = csv.DictReader(io.StringIO(format_csv([row(), SMALL])))
    assert (first["protocol"], first["reducer"], first["accuracy"], first["error"]) == ("loso", "none", "0.875", "")
    assert (first["accuracy_a"], first["accuracy_b"], first["without_chest"]) == ("0.75", "1.0", "")
    assert (second["wire_bytes_per_s"], second["without_arm"]) == ("40.0", "0.25")


def test_the_report_says_what_the_figures_are_of() -> None:
    flattering = row(protocol=Protocol.RANDOM, accuracy=0.99)
    measured = MeasuredTraffic("paa:9 codes", Protocol.LOSO, "a", 4, True, 39.0, 44.0, 400.0, "Mosquitto")
    text = format_report(add_measured(results(row(), SMALL, flattering), [measured]))
    assert "Data: real data from there, 2 streams (a, b); seeds 0; har-edge 0.0; 2 epochs." in text
    assert "synthetic" not in text
    assert "| paa:9 | codes | location | int8 | 1 | 0.8000 ± 0.1250 | 0.7500 | 40.0 | 800.0 | 400 | 90.0 % |" in text
    assert "| none | 0.8750 | 0.9900 | +0.1150 |" in text  # the random split beside leave-one-subject-out
    assert "| row | a | b |" in text and "| paa:9 codes | 0.750 | 1.000 |" in text
    assert "| paa:9 codes | 0.8000 | 0.5000 | 0.2500 |" in text
    assert "| paa:9 codes | loso a | 4 | identical | 39.0 | 44.0 | 89.0 % | Mosquitto |" in text
    made_up = msgspec.structs.replace(CONDITIONS, real=False)
    assert "these figures say nothing about people" in format_report(StudyResults(made_up, [], [row()]))


def test_the_row_to_show_is_the_best_that_saves_enough() -> None:
    trees = row(method="extra-trees", reduction=0.9, accuracy=1.0)
    assert choose_row([row(), SMALL, trees]) == SMALL
    assert choose_row([row()]) == row()


@pytest.mark.parametrize("crowd", [1, 12])
def test_pictures_are_drawn(crowd: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    # Names at one and the same spot must find places of their own, or at least none may be lost.
    rows = [msgspec.structs.replace(SMALL, reducer=f"paa:{9 + number}") for number in range(crowd)]
    rows += [msgspec.structs.replace(row, batch=8, wire_bytes_per_s=30.0) for row in rows]
    alone = msgspec.structs.replace(SMALL, accuracy_std=None, downstream="restore", per_subject={"a": 0.8})
    trees = row(method="extra-trees", downstream="-")
    paths = draw_study(results(row(), trees, *rows, alone), tmp_path)
    assert [path.name for path in paths] == ["curve.png", "subjects.png", "confusion.png"]
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000 for path in paths)
    assert draw_study(StudyResults(CONDITIONS, [], []), tmp_path / "none") == []
