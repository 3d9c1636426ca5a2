"""On a terminal of 80 columns no figure and no class is cut, and none is parted in the middle of a word."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from rich.console import Console

from har_edge.cli import console
from har_edge.cli.commands.doctor import draw as draw_finding
from har_edge.cli.console import count, first_fit, fold, fold_commands, follow
from har_edge.cli.log_filter import start
from har_edge.cli.main import main
from har_edge.cli.reports.live_table import LiveTable
from har_edge.cli.reports.plan import PlanReport, print_plan
from har_edge.cli.reports.profile import print_profile
from har_edge.cluster.cluster import Arrival
from har_edge.monitor.broker_checks import Finding, Verdict
from har_edge.planner.plan import Alternative, Objective, Plan, PlannedStage
from har_edge.planner.profile import OperatorWork, Profile, SegmentCost
from har_edge.protocol.results import Result

COLUMNS = 80
CLASSES = [
    "standing still", "sitting and relaxing", "lying down", "walking", "climbing stairs", "waist bends forward",
    "frontal elevation of arms", "knees bending", "cycling", "jogging", "running", "jump_front_and_back",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the renderers believe that they write to a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(console, "folds", lambda file=None: True)


def lines_of(table: object, width: int = COLUMNS) -> list[str]:
    out = io.StringIO()
    Console(width=width, file=out, color_system=None).print(table)
    return out.getvalue().splitlines()


def fits(text: str) -> list[str]:
    """Return the lines of a text, none of which is longer than the terminal is wide."""
    lines = text.splitlines()
    assert max(map(len, lines)) <= COLUMNS, max(lines, key=len)
    return lines


def words(text: str) -> list[str]:
    return re.findall(r"\S+", text)


def table(stream: str = "subject7", truth: int | None = 0) -> LiveTable:
    made = LiveTable(dict(enumerate(CLASSES)))
    for number, label in enumerate(CLASSES):
        result = Result(
            f"{stream}-{number}", 123_456, label, number, 0.987, 1.0, 1.1, 1, None if truth is None else truth
        )
        made.add(Arrival(result, 13.5))
    return made


@pytest.mark.parametrize("stream", ["s", "subject7", "person-in-the-kitchen-upstairs", "x" * 120])
@pytest.mark.parametrize("truth", [None, 0, 6])
def test_the_table_of_results(stream: str, truth: int | None) -> None:
    text = "\n".join(lines_of(table(stream, truth).draw("live", COLUMNS)))
    fits(text)
    shown = words(text)
    assert shown.count("123456") == shown.count("0.99") == len(CLASSES) and text.count("12.5 s") == len(CLASSES)
    for label in CLASSES:
        assert all(word in shown for word in label.split()), label
    assert "…" not in text


def test_a_wide_terminal_has_a_line_a_stream() -> None:
    text = "\n".join(lines_of(table().draw("live", 160), 160))
    assert "│ subject7-6  │ 123456 │ frontal elevation of arms │  0.99 │ standing still" in text


NAMES = ("raspberry-pi-in-the-kitchen-upstairs", "raspberry-pi-in-the-living-room", "b")


def stage(number: int, devices: tuple[str, ...]) -> PlannedStage:
    return PlannedStage(
        devices=devices, start=number * 1000, stop=number * 1000 + 1000, received=1, received_bytes=123_456, sent=1,
        sent_bytes=654_321, memory_bytes=123_456_789, compute_s=0.123, message_s=0.0456, link_s=0.00789,
        period_s=0.177, latency_s=0.2,
    )  # fmt: skip


@pytest.mark.parametrize("devices", [[(name,) for name in NAMES], [NAMES, (NAMES[0],)], [("a",), ("b",)]])
def test_a_plan_has_all_figures_and_names(devices: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    stages = tuple(stage(number, names) for number, names in enumerate(devices))
    made = Plan(1, "m", "0" * 64, Objective.THROUGHPUT, stages, ("spare-" + "x" * 30,), 0.177, 0.6, 0.1, False)
    others = [
        Alternative("all on raspberry-pi-in-the-kitchen-upstairs", 1, 1, 0.5, 0.9),
        Alternative(
            "an even split over every device there is", 3, 3, None, None, "it does not fit into the memory " * 3
        ),
    ]
    print_plan(PlanReport(made, others, ["never measured here: profile it for a plan to rely on"]), "m", as_json=False)
    text = capsys.readouterr().out
    fits(text)
    shown = words(text)
    for figure in ("[0,", "1000)", "123", "45.6", "7.89", "777.8", "123.5", "177"):
        assert shown.count(figure) >= 1, figure
    for name in {name for names in devices for name in names}:
        assert any(word.strip(",") == name for word in shown), name
    assert "…" not in text and "900 ms" in text


def test_a_profile_has_all_kinds_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("RESIZE_NEAREST_NEIGHBOR", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "AVERAGE_POOL_2D")
    work = tuple(OperatorWork(kind, 123, 1_234_567_890, 0) for kind in kinds)
    made = Profile(1, "pi", "Linux", "m", "0" * 64, 1, (SegmentCost(0, 1000, 0.123, False, work),) * 2, 0.001, 0.3)
    print_profile(made, [], Path("profile.json"), as_json=False)
    text = capsys.readouterr().out
    fits(text)
    assert words(text).count("~123") == 2 and text.count("4,938,271,560") == 2
    for kind in kinds:
        assert words(text).count(kind) == 2


def test_text_breaks_between_words_only() -> None:
    text = "note: " + " ".join(f"word{number}" for number in range(40)) + " /a/path/" + "x" * 90
    lines = fold(text).splitlines()
    assert words(" ".join(lines)) == words(text) and len(lines) > 3
    assert all(len(line) <= COLUMNS for line in lines[:-1]) and lines[-1].strip() == "/a/path/" + "x" * 90


def test_a_warning_breaks_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    said = "nobody listens to har/v1/har/act/1646578972/1/subject7; keeping the message, start the next stage"
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        start(verbose=False)
        logging.getLogger("har_edge.test").warning(said)
    finally:
        root.handlers = handlers
    lines = fits(capsys.readouterr().err)
    assert len(lines) == 2 and words(" ".join(lines))[1:] == ["WARNING", *words(said)]


def test_a_command_is_not_broken() -> None:
    command = "har-edge slice model --at 1,2,3 --out /a/long/path/" + "x" * 60
    assert fold(f"cut it with: {command}").splitlines() == ["cut it with:", f"    {command}"]


def test_a_command_in_backquotes_stays_whole_or_ends_with_backslashes() -> None:
    said = "mend: see the logs of stages and sensors for which and why; then forget those: "
    short = "har-edge doctor --clear --config slices"
    lines = fits(fold_commands(f"{said}`{short}`, and go on as before"))
    assert f"`{short}`" in "\n".join(lines) and len(lines) == 2
    long = "har-edge doctor --clear --config /home/anna/har/slices --broker mqtt://box.example.org:21883 --timeout 5"
    lines = fits(fold_commands(f"{said}`{long}`; then ask again"))
    at = next(number for number, line in enumerate(lines) if "har-edge" in line)
    assert lines[at].endswith(" \\") and lines[at + 2] == "    then ask again"
    assert words(" ".join(lines[at : at + 2]).replace("\\", "")) == words(long)
    assert fold_commands(f"mend: `{short}`") == f"mend: `{short}`"


@pytest.mark.parametrize("said", ["word " * 60, "cannot read /home/anna/" + "x" * 40 + "/slice-2.tflite: it is away"])
def test_findings_of_the_doctor(said: str) -> None:
    finding = Finding("broker's listeners", Verdict.SKIPPED, said)
    lines = fits(draw_finding(finding).plain)
    assert words(" ".join(lines)) == ["not", "reached", "broker's", "listeners", *words(said)]


def test_the_first_layout_that_fits_is_taken() -> None:
    from rich.table import Table

    def table(width: int) -> Table:
        made = Table(box=None)
        made.add_row("x" * width)
        return made

    found = first_fit(Console(width=80), [lambda: table(100), lambda: table(60), lambda: table(10)])
    assert lines_of(found)[-1].strip() == "x" * 60


def test_long_work_off_a_terminal_says_how_far_it_is_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0

    def clock() -> float:
        return now

    for item in follow(range(25), 25, "checking cuts", clock=clock):
        now = float(item)
    assert capsys.readouterr().err.splitlines() == ["checking cuts: 11 of 25", "checking cuts: 21 of 25"]


def test_work_of_unknown_length_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0

    def clock() -> float:
        return now

    for item in count(range(15), "windows", clock=clock):
        now = float(item)
    assert capsys.readouterr().err.splitlines() == ["windows: 11 so far"]


def run(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(list(options)) == 0
    return capsys.readouterr().out


def test_slice_lists_cuts_and_tensors_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "slice", "float", "--list")
    fits(text)
    assert "chest_second float32[?,23,1,16], ankle_second" in " ".join(words(text))
    assert not re.search(r"float32\[[^\]]*$", text, re.MULTILINE)
    for name in ("AVERAGE_POOL_2D", "FULLY_CONNECTED"):
        assert name in words(text)


def test_data_info(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    text = run(capsys, "data", "info")
    fits(text)
    assert all(label in text for label in CLASSES[:11])
