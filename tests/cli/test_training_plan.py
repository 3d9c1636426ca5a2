"""`plan --train` and `profile --train`: what they print, keep and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from har_edge.cli.main import main
from har_edge.cli.reports.split_training import BACKWARD, FORWARD, WAITING, draw_step, print_training_profile
from har_edge.cli.training_plans import optimizer_vectors
from har_edge.learning.lenet import write_lenet5
from har_edge.planner.profile import LinkCost, MessageCost
from har_edge.planner.training_costs import TrainingProblem
from har_edge.planner.training_devices import SplitDevice
from har_edge.planner.training_plan import PlannedTraining, plan_training
from har_edge.planner.training_profile import TrainingProfile, load_training_profile, store_training_profile
from har_edge.tflite.model import read_model
from tests.planner.training_cases import even, profile, segment

Run = Callable[..., tuple[int, str, str]]
DEVICES = '[[device]]\nname = "pi"\ncount = 4\nmemory_bytes = 60_000_000\nlink_bytes_per_s = 11_750_000\n'


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder, with a cache of its own; return exit code, standard output and error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    Path("devices.toml").write_text(DEVICES)
    Path("lenet5.tflite").write_bytes(write_lenet5())

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def made_profile() -> TrainingProfile:
    """Return a profile of LeNet-5 with made-up figures: each operator has 200,000 weights."""
    model = read_model(Path("lenet5.tflite"))
    segments = even(len(model.main.operators), elements=200_000, entering=1000, kept=2000)
    found = profile(segments, base=10_000_000, message=MessageCost(1e-3, 1e-8, "test"))
    found = msgspec.structs.replace(found, model=model.name, model_sha256=model.sha256)
    store_training_profile(found, Path("profile.json"))
    return found


def test_a_plan_shows_stages_a_step_and_what_else_there_is(run: Run) -> None:
    made_profile()
    options = [
        "--train",
        "--devices",
        "devices.toml",
        "--profile",
        "profile.json",
        "--batch",
        "8",
        "--optimizer",
        "sgd:lr=0.1",
    ]
    code, out, _ = run("plan", "lenet5.tflite", *options, "--out", "plan.json")
    assert code == 0
    lines = out.splitlines()
    rows = [line for line in lines if line.startswith("pi-")]
    drawn = out[: out.index("4 stages on")].splitlines()
    assert max(map(len, drawn)) <= 80
    assert len(rows) == 4 and all(FORWARD in row or BACKWARD in row for row in rows)
    assert any(line.startswith("one device: does not fit: takes") for line in lines)
    assert any(line.startswith("data parallel: does not fit: each device takes") for line in lines)
    assert "times as fast as one device, given the memory" in out
    kept = msgspec.json.decode(Path("plan.json").read_bytes(), type=PlannedTraining)
    assert all(stage.memory_bytes <= 60_000_000 for stage in kept.stages)
    code, out, _ = run("plan", "lenet5.tflite", *options, "--json")
    assert code == 0 and msgspec.convert(json.loads(out), PlannedTraining) == kept


def test_a_layer_above_the_limit_ends_the_plan_with_its_name(run: Run) -> None:
    made_profile()
    Path("devices.toml").write_text(DEVICES.replace("60_000_000", "15_000_000"))
    code, _, err = run("plan", "lenet5.tflite", "--train", "--devices", "devices.toml", "--profile", "profile.json")
    assert code == 2
    assert "operator 0 (CONV_2D) of" in err and "the largest device has 15.0 MB" in err


@pytest.mark.parametrize("option", ["--parity", "--no-split", "--float-parity"])
def test_what_a_training_does_not_have_is_refused(run: Run, option: str) -> None:
    made_profile()
    code, _, err = run("plan", "lenet5.tflite", "--train", "--devices", "devices.toml", option)
    assert code == 2 and f"--train came with {option}, which a training does not have" in err


def test_a_profile_of_another_model_is_refused(run: Run) -> None:
    store_training_profile(profile(even(2)), Path("other.json"))
    code, _, err = run("plan", "lenet5.tflite", "--train", "--devices", "devices.toml", "--profile", "other.json")
    assert code == 2 and "other.json is the training profile of made, another model" in err


@pytest.mark.slow
def test_a_profile_is_measured_and_kept(run: Run) -> None:
    code, out, _ = run("profile", "lenet5.tflite", "--train", "--micro-batch", "1,2", "--out", "own.json")
    assert code == 0
    assert max(len(line) for line in out.splitlines() if line.startswith("[")) <= 80
    found = load_training_profile(Path("own.json"), read_model(Path("lenet5.tflite")).sha256)
    assert found.batches == (1, 2)
    code, out, _ = run("profile", "lenet5.tflite", "--train")
    assert code == 0 and "measured before; --again measures anew" in out


def test_a_training_profile_fits_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parts = [segment(k, 123.4, 234.5, elements=123_456_789, kept=123_456_789, last=k == 11) for k in range(12)]
    long = [
        msgspec.structs.replace(one, layer="DEPTHWISE_CONV_2D, SPACE_TO_BATCH_ND, FULLY_CONNECTED") for one in parts
    ]
    found = profile(long, base=10**8, message=MessageCost(1e-3, 1e-8, "mqtt://broker"), whole=True)
    found = msgspec.structs.replace(found, link=LinkCost(1e-3, 1e7))
    print_training_profile(found, ["a remark"], Path("profile.json"), as_json=False)
    out = capsys.readouterr().out
    assert "…" not in out
    table = out.splitlines()[1:-6]
    assert max(map(len, table)) <= 80
    assert out.count("123,456,789") == 12


def test_a_step_is_drawn_cell_by_cell() -> None:
    """Two stages of 1 s forward and 2 s back, two micro-batches: 9 s, a cell each."""
    devices = (SplitDevice("a"), SplitDevice("b"))
    problem = replace(TrainingProblem(profile(even(2)), devices, 2), micro_batches=2, stages=2)
    lines = draw_step(plan_training(problem), problem, 11)
    assert lines[0] == "a " + 2 * FORWARD + 2 * WAITING + 2 * BACKWARD + WAITING + 2 * BACKWARD
    assert lines[1] == "b " + WAITING + 6 * BACKWARD + 2 * WAITING
    assert lines[2].endswith("9.00 s in all")


@pytest.mark.parametrize(
    ("spec", "vectors"), [("sgd:lr=0.1", 0), ("momentum:lr=0.1", 1), ("adam:lr=0.1,schedule=cosine", 2)]
)
def test_optimizers_keep_vectors(spec: str, vectors: int) -> None:
    assert optimizer_vectors(spec) == vectors
