"""`har-edge evaluate --protocol` from the outside, on synthetic people and with a trainer that takes milliseconds."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from har_edge.cli import study
from har_edge.cli.main import main
from har_edge.data.description import StreamDescription
from har_edge.data.windows import default_window
from har_edge.evaluation.results import load_results
from tests.evaluation.trainer import REFUSED, MeansTrainer

true_trainer_of = study.trainer_of


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without data, and the quick trainer."""
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)

    def trainer_of(described: StreamDescription, epochs: int | None) -> tuple[partial[MeansTrainer], str]:
        length, hop = default_window(described.rate_hz)
        return partial(MeansTrainer, described, length, hop, tmp_path / "log"), "class means"

    monkeypatch.setattr(study, "trainer_of", trainer_of)
    return tmp_path


def evaluate(*options: str, protocol: str = "loso") -> int:
    return main(["evaluate", "--protocol", protocol, "--subjects", "1,2,3", "--jobs", "1", *options])


@pytest.mark.slow
def test_a_study_prints_a_table_and_writes_rows_report_and_pictures(
    capsys: pytest.CaptureFixture[str], nowhere: Path
) -> None:
    pytest.importorskip("matplotlib")
    assert evaluate("--reducer", "paa:10+q8", "--batch", "1,8", "--missing", "--out", "there") == 0
    said = capsys.readouterr()
    assert said.out.startswith(
        "data       synthetic data: subject1, subject2, subject3\n           on synthetic data: says"
    )
    assert "work       9 trials of 3 variants, kept in there" in said.out
    assert re.search(r"\[1/9\] none \(codes, location, int8\), loso fold subject1, seed 0: accuracy 0\.\d{4}", said.err)
    assert re.search(r"^\| reducer +\| sees +\| batch \| accuracy", said.out, re.MULTILINE)
    assert re.search(r"^\| paa:10\+q8 +\| restore +\| +8 \|", said.out, re.MULTILINE)
    assert re.search(r"^none, accuracy without: chest 0\.\d+, ankle 0\.\d+, arm 0\.\d+ ", said.out, re.MULTILINE)
    with (nowhere / "there" / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["reducer"], row["downstream"], row["batch"]) for row in rows] == [
        ("none", "codes", "1"),
        ("none", "codes", "8"),
        ("paa:10+q8", "codes", "1"),
        ("paa:10+q8", "codes", "8"),
        ("paa:10+q8", "restore", "1"),
        ("paa:10+q8", "restore", "8"),
    ]
    report = (nowhere / "there" / "report.md").read_text()
    assert "these figures say nothing about people" in report
    command = "har-edge evaluate --protocol loso --reducer paa:10+q8 --batch 1,8 --subjects subject1,subject2,subject3"
    assert f"{command} --missing" in report
    for name in ("curve.png", "confusion.png", "subjects.png"):
        assert (nowhere / "there" / name).stat().st_size > 10_000 and f"there/{name}" in said.out


@pytest.mark.slow
def test_the_random_split_stands_beside_leave_one_subject_out(nowhere: Path) -> None:
    assert evaluate("--out", "there") == 0
    assert evaluate("--out", "there", protocol="random") == 0
    report = (nowhere / "there" / "report.md").read_text()
    assert re.search(r"## What a random split flatters.*\| none \| 0\.\d+ \| 0\.\d+ \| \+0\.\d+ \|", report, re.DOTALL)
    assert "--protocol loso" in report and "--protocol random" in report


def test_a_split(nowhere: Path) -> None:
    split = ("--train-subjects", "1,2", "--test-subjects", "3")
    assert evaluate(*split, "--seeds", "0,1", protocol="split") == 0
    results = load_results(nowhere / "study")
    assert results is not None and list(results.rows[0].per_subject) == ["subject3"]
    assert results.rows[0].accuracy_std is None and results.conditions.seeds == [0, 1]


@pytest.mark.slow
def test_rows_that_cannot_be_compared_do_not_stay(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    assert evaluate("--batch", "1") == 0
    assert evaluate("--batch", "2", "--seeds", "1") == 0
    assert "rows in study are of other recordings, seeds, recipe or version: left out" in capsys.readouterr().err
    results = load_results(nowhere / "study")
    assert results is not None and [row.batch for row in results.rows] == [2]


@pytest.mark.slow
def test_a_failure_is_named_and_the_exit_code_is_1(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    assert evaluate("--reducer", REFUSED, "--downstream", "codes") == 1
    said = capsys.readouterr()
    assert (
        "failed: paa:7 (codes, location, int8), loso fold subject1, seed 0: ConfigError: this trainer wants nothing of "
        "sevens" in said.err
    )
    results = load_results(nowhere / "study")
    assert results is not None and [row.reducer for row in results.rows] == ["none"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reducer", "paa:0"], "paa:0: expected a piece of 1 to 250 samples"),
        (["--reducer", "stats", "--downstream", "restore"], "nothing restores windows from these codes"),
        (["--model", "int8"], "--model measures one model: leave out --protocol"),
        (["--stream", "nowhere.toml"], "no stream description 'nowhere.toml'"),
        (["--protocol", "split"], "split of subject1, subject2, subject3, subject4, subject5, subject6 against"),
        (["--protocol", "random", "--mqtt"], "--mqtt with --protocol random: sensors send whole streams"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], nowhere: Path
) -> None:
    assert evaluate(*options) == 2
    assert message in capsys.readouterr().err
    assert not (nowhere / "log").exists()


def test_options_of_a_study_need_a_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--reducer", "paa:5"]) == 2
    assert "--reducer is for studies: add --protocol loso, split or random" in capsys.readouterr().err


@pytest.mark.slow
def test_both_ways_leave_out_what_is_the_same_or_cannot_be(nowhere: Path) -> None:
    reducers = [part for spec in ("q8", "stats", "paa:5", "none") for part in ("--reducer", spec)]
    assert evaluate(*reducers) == 0
    results = load_results(nowhere / "study")
    assert results is not None
    assert {row.name for row in results.rows} == {"none", "q8 restore", "stats codes", "paa:5 codes", "paa:5 restore"}


def test_both_precisions_have_a_network_without_reduction(nowhere: Path) -> None:
    assert evaluate("--reducer", "paa:10", "--downstream", "codes", "--precision", "both") == 0
    results = load_results(nowhere / "study")
    assert results is not None
    assert {row.name for row in results.rows} == {"none", "none float", "paa:10 codes", "paa:10 codes float"}


def members(group: int) -> list[str]:
    """Return the processes of a group that still run; zombies do not."""
    found = []
    for process in psutil.process_iter(["pid", "name", "status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.info["name"])
        except ProcessLookupError:  # it ended meanwhile
            continue
    return found


def test_stopped_with_ctrl_c_it_ends_its_processes_and_goes_on_later(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = nowhere / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            from functools import partial
            from pathlib import Path
            from har_edge.cli import study
            from har_edge.cli.main import main
            from tests.evaluation.trainer import MeansTrainer

            class Slow(MeansTrainer):
                def fit(self, variant, training, seed, unreduced):
                    if Path("log").exists():
                        Path("busy").touch()
                        time.sleep(600)
                    return super().fit(variant, training, seed, unreduced)

            def trainer_of(described, epochs):
                return partial(Slow, described, 250, 125, Path("log")), "class means"

            study.trainer_of = trainer_of
            if __name__ == "__main__":
                sys.exit(main(sys.argv[1:]))
            """
        )
    )
    command = [sys.executable, "script.py", "evaluate", "--protocol", "loso", "--subjects", "1,2,3", "--jobs", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with (nowhere / "errors").open("w") as errors:
        running = subprocess.Popen(command, stderr=errors, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (nowhere / "busy").exists() or not list(nowhere.glob("study/cells/*.json")):
            assert running.poll() is None and time.monotonic() < deadline, (nowhere / "errors").read_text()
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to every process at once
        assert running.wait(60) == 130
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert "stopped; the same command goes on from what is in study" in (nowhere / "errors").read_text()
    assert "Traceback" not in (nowhere / "errors").read_text()
    deadline = time.monotonic() + 10
    while members(running.pid) and time.monotonic() < deadline:  # Python's resource tracker goes a moment later
        time.sleep(0.05)
    assert members(running.pid) == []
    assert evaluate() == 0
    assert capsys.readouterr().err.count("stored") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
def test_another_data_set_needs_its_description_only(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    """Fans at 100 Hz with other sources, channels and labels; see data/machine.toml."""
    folder = Path(__file__).parents[2] / "data"
    make = [sys.executable, str(folder / "make_machine.py"), "--machines", "3", "--seconds", "20", "--out", "fans"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    command = ["evaluate", "--protocol", "loso", "--stream", str(folder / "machine.toml"), "--data", "fans"]
    assert main([*command, "--jobs", "1", "--reducer", "stats+q8", "--grouping", "all", "--mqtt"]) == 0
    results = load_results(nowhere / "study")
    assert results is not None and not results.conditions.real
    assert [row.name for row in results.rows] == ["none all", "stats+q8 codes all"]
    assert all(row.raw_bytes_per_s == 100 * 8 * 4 and len(row.confusion) == 4 for row in results.rows)
    assert [one.identical for one in results.measured] == [True, True]
    assert "says nothing about" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
def test_over_mqtt_the_answers_are_the_same_and_the_bytes_are_counted(
    capsys: pytest.CaptureFixture[str], nowhere: Path
) -> None:
    options = ["--reducer", "paa:10+q8", "--downstream", "codes", "--batch", "8", "--mqtt"]
    assert evaluate(*options) == 0
    results = load_results(nowhere / "study")
    assert results is not None
    assert [one.row for one in results.measured] == ["none batch 8", "paa:10+q8 codes batch 8"]
    for one, row in zip(results.measured, results.rows, strict=True):
        assert one.identical and one.windows == 143 and one.fold == "subject1"
        assert one.computed_bytes_per_s == pytest.approx(row.wire_bytes_per_s, rel=0.05)
        # What sensors write besides: CONNECT, SUBSCRIBE, their status, and 4 bytes for each result.
        assert one.computed_bytes_per_s < one.sent_bytes_per_s < one.computed_bytes_per_s + 20
    assert "all answers identical" in capsys.readouterr().out
    assert "## Over a real broker" in (nowhere / "study" / "report.md").read_text()


@pytest.mark.training
@pytest.mark.usefixtures("mosquitto")
def test_networks_and_principal_components_are_trained_deployed_and_answer_alike_over_mqtt(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From recordings to processes that use fitted files; one epoch, so the figures are worth nothing."""
    pytest.importorskip("tensorflow")
    monkeypatch.setattr(study, "trainer_of", true_trainer_of)
    split = ["--train-subjects", "1", "--test-subjects", "2", "--epochs", "1", "--downstream", "codes", "--mqtt"]
    assert evaluate(*split, "--subjects", "1,2", "--reducer", "pca:4", protocol="split") == 0
    results = load_results(nowhere / "study")
    assert results is not None
    assert [(one.row, one.identical) for one in results.measured] == [("none", True), ("pca:4 codes", True)]
    none, few = results.rows
    assert few.wire_bytes_per_s < 0.05 * none.wire_bytes_per_s and few.error is not None and 0 < few.error < 1.5
    assert len(list(nowhere.glob("study/systems/*/*.npz"))) == 3
