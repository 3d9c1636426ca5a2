"""The live table: what it shows, on any terminal, and how much of it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import msgspec
import pytest
from rich.console import Console

from har_edge.cli.reports.live_table import MAX_ROWS, LiveTable
from har_edge.cluster.cluster import Arrival
from har_edge.protocol.results import AnomalyScore, HeatMap, LabelScore, NamedArray, Result

LABELS = {4: "walking", 7: "frontal elevation of arms"}


def arrival(
    stream: str = "subject7",
    seq: int = 0,
    label_id: int = 7,
    truth: int | None = 7,
    missing: Sequence[str] = (),
) -> Arrival:
    result = Result(stream, seq, LABELS[label_id], label_id, 0.98, 1.0, 1.1, 1, truth, list(missing))
    return Arrival(result, 1.12)


def drawn(table: LiveTable, columns: int) -> list[str]:
    console = Console(width=columns, file=io.StringIO(), color_system=None)
    console.print(table.draw("live", columns))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("columns", [80, 120])
def test_every_column_is_readable(columns: int) -> None:
    table = LiveTable(LABELS)
    table.add(arrival())
    lines = drawn(table, columns)
    heads, row = (lines[1], lines[2]) if columns == 80 else (lines[2], lines[4])
    for heading in ("stream", "window", "activity", "score", "truth", "latency", "accuracy"):
        assert heading in heads
    assert all(text in row for text in ("subject7", "frontal elevation of arms", "0.98", "120 ms", "1.000"))
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", [80, 120])
def test_no_column_is_shown_before_a_result_says_which_there_are(columns: int) -> None:
    said = "\n".join(drawn(LiveTable(LABELS), columns))
    assert "live" in said and "no result yet" in said
    assert not any(name in said for name in ("activity", "truth", "accuracy", "score", "latency", "stream"))


def with_outputs() -> Arrival:
    """A result with five classes, one of a long name, and with arrays."""
    names = ["Egyptian cat", "tabby, tabby cat", "a very long name of a class, with one more, and others", "d", "e"]
    classes = [LabelScore(name, number, 0.5 / (number + 1)) for number, name in enumerate(names)]
    arrays = [
        NamedArray("boxes", (2, 10), [0.123456, None, 1e-9, *([12345.678] * 17)]),
        NamedArray("StatefulPartitionedCall/a/very/long/name/of/an/output:0", (2,), [True, 7]),
    ]
    result = Result("door", 3, names[0], 0, 0.5, 1.0, 1.1, 1, classes=classes, arrays=arrays)
    return Arrival(result, 1.12)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_best_classes_and_arrays_are_readable(columns: int) -> None:
    table = LiveTable({})
    table.add(with_outputs())
    lines = drawn(table, columns)
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= columns
    assert "stream window output score latency door 3 Egyptian cat 0.50 120 ms tabby, tabby cat 0.25 a very" in text
    assert "boxes [2, 10]: 0.1235 - 1e-09 1.235e+04 1.235e+04" in text
    assert "/a/very/long/name/of/an/output:0 [2]: True 7" in text


def test_accuracy_counts_known_windows_only() -> None:
    table = LiveTable(LABELS)
    for seq, (label, truth) in enumerate([(7, 7), (4, 7), (4, None), (7, 7)]):
        table.add(arrival(seq=seq, label_id=label, truth=truth))
    assert "0.667" in drawn(table, 120)[4]


def test_the_rows_are_bounded() -> None:
    table = LiveTable(LABELS)
    for number in range(MAX_ROWS + 5):
        table.add(arrival(stream=f"s{number}"))
    text = "\n".join(drawn(table, 120))
    assert text.count("│ s") == MAX_ROWS and f"│ s{MAX_ROWS + 4} " in text and "│ s0 " not in text


@pytest.mark.parametrize("columns", [80, 120])
def test_what_the_last_result_of_a_stream_lacks_stands_below_the_table(columns: int) -> None:
    table = LiveTable(LABELS)
    table.add(arrival("s1"))
    assert "lacks" not in "".join(drawn(table, columns))
    table.add(arrival("s2", missing=["ankle", "arm"]))
    assert drawn(table, columns)[-1].strip() == "s2 lacks ankle, arm"
    table.add(arrival("s2", 1))
    assert "lacks" not in "".join(drawn(table, columns))


def test_brackets_from_the_network_are_no_markup() -> None:
    table = LiveTable(LABELS)
    odd = arrival(missing=["[/b]"])
    table.add(Arrival(msgspec.structs.replace(odd.result, label="[/red]"), odd.arrived))
    text = "".join(drawn(table, 120))
    assert "[/red]" in text and "[/b]" in text


@pytest.mark.slow
def test_what_the_network_says_cannot_move_the_cursor() -> None:
    table = LiveTable({7: "\x9b1mx"})
    odd = arrival(stream="\x1b[2J", missing=["\x1b]0;t\x07"])
    table.add(Arrival(msgspec.structs.replace(odd.result, label="\x1b[31m"), odd.arrived))
    text = "".join(drawn(table, 120))
    assert all(shown in text for shown in (r"\x1b[2J", r"\x1b[31m", r"\x9b1mx", r"\x1b]0;t\x07"))
    assert "\x1b" not in text and "\x9b" not in text


def judged(score: float, heat_map: HeatMap | None, seq: int = 0) -> Arrival:
    anomaly = AnomalyScore(score, 9.0, score > 9.0, heat_map)
    label = "anomaly" if anomaly.anomaly else "normal"
    result = Result("line-2", seq, label, int(anomaly.anomaly), 1.0, 1.0, 1.1, 1, anomaly=anomaly)
    return Arrival(result, 1.12)


@pytest.mark.parametrize("columns", [80, 120])
def test_scores_stand_against_their_threshold_and_anomalies_are_counted(columns: int) -> None:
    table = LiveTable({})
    table.add(judged(1.25, None))
    table.add(judged(14.021, HeatMap((2, 4), [0.5, 1.0, None, 14.02, 0.5, 0.25, 0.5, 0.5]), 1))
    lines = drawn(table, columns)
    text = " ".join(" ".join(lines).replace("│", " ").split())
    assert max(map(len, lines)) <= columns
    assert "line-2 1 anomaly 14.02 9 █████▌ " in text and " 1 of 2 120 ms" in text
    assert ("88% 25%" in text) == (columns == 120)
    table.add(judged(0.0, None, 2))
    assert "line-2 2 normal 0 9 " in " ".join(" ".join(drawn(table, 80)).split())
