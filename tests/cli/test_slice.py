"""The `slice` command: what it prints, writes and refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from har_edge.cli.main import main
from har_edge.cli.reports.split_methods import OperatorMethods, print_operators
from har_edge.config.pipeline import load_pipeline
from har_edge.config.pipeline_writer import write_pipeline
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.inference.interpreter import load_slice
from har_edge.tflite.manifest import load_manifest
from tests.tflite import models

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Write a model, run the command on it, and return exit code, standard output and standard error."""

    def command(content: bytes, *options: str) -> tuple[int, str, str]:
        path = tmp_path / "model.tflite"
        path.write_bytes(content)
        code = main(["slice", str(path), *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def test_list_prints_every_cut(run: Run) -> None:
    code, out, _ = run(models.skip(), "--list")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("model.tflite: 5 operators, 4 cuts, 0 refused, sha256 ")
    assert [line.split() for line in lines[2:5]] == [
        ["cut", "before", "it", "after", "it", "bytes", "tensors", "that", "cross"],
        ["1", "CONV_2D", "CONV_2D", "1024", "first", "float32[1,8,8,4]"],
        ["2", "CONV_2D", "CONV_2D", "2048", "first", "float32[1,8,8,4],", "second", "float32[1,8,8,4]"],
    ]


def test_list_says_why_a_cut_is_refused(run: Run) -> None:
    code, out, _ = run(models.recurrent(shared=True), "--list")
    assert code == 0
    assert "4 operators, 1 cuts, 2 refused" in out
    assert "refused: both sides use the recurrent state state" in out


def test_list_says_where_a_message_carries_one_window(run: Run) -> None:
    _, out, _ = run(models.dilated(), "--list")
    assert "at 2 cuts something crosses whose first dimension is no batch" in out.replace("\n", " ")
    assert "(--batch 1): 1, 2" in out.replace("\n", " ")
    assert " 160  " in out  # bytes of two blocks, where the file plans one
    _, out, _ = run(models.chain(dynamic=True), "--list")
    assert "no batch" not in out


def test_older_nodes_are_named_where_they_would_drop_what_crosses(run: Run, tmp_path: Path) -> None:
    for cut, said in (("1", True), ("3", False)):
        _, out, _ = run(models.dilated(), "--at", cut, "--out", str(tmp_path / cut), "--wire", "1")
        assert ("older nodes refuse this folder: something without a batch" in out.replace("\n", " ")) == said
        assert load_manifest(tmp_path / cut).version == 1 + said


def test_names_cannot_move_the_cursor(run: Run) -> None:
    _, out, _ = run(models.named(b"in", b"mid\x1b[2J", b"out"), "--list")
    assert "mid\\x1b[2J float32[1,4]" in out and "\x1b" not in out


def test_check_says_what_a_stage_would_not_take(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_edge.inference.tensor_observation.observe_tensors", lambda model, delegate: model)
    code, out, _ = run(models.dilated(), "--check")
    assert code == 1
    assert "cuts 1: slice 1: har/v1/check/act/1/0/check: input 't" in out.replace("\n", " ")
    assert "5 ways to cut compared with the whole model, 2 not equal" in out.replace("\n", " ")


def test_methods_say_how_many_devices_can_share_each_operator(run: Run) -> None:
    code, out, _ = run(models.skip(), "--methods")
    assert code == 0
    assert [line.split() for line in out.splitlines()[1:6]] == [
        ["#", "operator", "result", "rows", "output", "input", "heads"],
        ["0", "CONV_2D", *["1", "x", "8", "x", "8", "x", "4"], "8", "4", "3", "-"],
        ["1", "CONV_2D", *["1", "x", "8", "x", "8", "x", "4"], "8", "4", "4", "-"],
        ["2", "CONV_2D", *["1", "x", "8", "x", "8", "x", "4"], "8", "4", "4", "-"],
        ["3", "ADD", *["1", "x", "8", "x", "8", "x", "4"], "8", "4", "-", "-"],
    ]
    assert "5 of 5 operators can be shared" in out and max(map(len, out.splitlines())) <= 80


def test_methods_show_every_shape_whole_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = [(1, 112, 112, 128), (1, 8, 8, 4), (1, 10000, 10000, 1024), (1, 2000, 2000, 2000, 2000, 2000, 2000)]
    print_operators([OperatorMethods(k, "DEPTHWISE_CONV_2D", shape, {"rows": 9}, {}) for k, shape in enumerate(shapes)])
    heading, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and all("DEPTHWISE_CONV_2D " in line for line in lines[:4])
    assert "1 x 112 x 112 x 128  " in lines[0] and "1 x 8 x 8 x 4  " in lines[1]
    assert "1x10000x10000x1024  " in lines[2] and lines[3].endswith(" 1x2000x2000x2000x2000x2000x2000")
    rows = heading.index("rows") + len("rows")
    assert [line[rows - 1] for line in (*lines[:3], lines[4])] == ["9"] * 4


def test_methods_as_json_say_why_others_are_refused(run: Run) -> None:
    _, out, _ = run(models.chain(), "--methods", "--json")
    first = json.loads(out)["operators"][0]
    assert (first["index"], first["name"], first["shares"]) == (0, "FULLY_CONNECTED", {"output": 8, "input": 6})
    assert "operators [0, 1) have no BATCH_MATMUL" in first["refused"]["heads"]
    assert "operator 0 (FULLY_CONNECTED) cannot be split by rows" in first["refused"]["rows"]


def test_list_as_json(run: Run) -> None:
    _, out, _ = run(models.chain(dynamic=True), "--list", "--json")
    report = json.loads(out)
    assert [cut["index"] for cut in report["cuts"]] == [1, 2, 3]
    assert report["cuts"][0] == {
        "index": 1,
        "before": "FULLY_CONNECTED",
        "after": "FULLY_CONNECTED",
        "crossing": [{"tensor": {"name": "t3", "shape": [-1, 8], "dtype": "float32"}, "bytes": 32}],
        "refusal": None,
    }


def test_at_writes_slices_and_manifest(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code, out, _ = run(models.many_ports(), "--out", str(folder), "--at", "1,3")
    assert code == 0
    assert f"written to {folder}" in out
    manifest = load_manifest(folder)
    for entry in manifest.slices:
        load_slice(folder / entry.file, entry.sha256)
    assert [(entry.start, entry.stop) for entry in manifest.slices] == [(0, 1), (1, 3), (3, 4)]


def test_stages_balances_and_predicts(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(models.skip(), "--out", str(tmp_path / "out"), "--stages", "3", "--json")
    assert code == 0
    slices = json.loads(out)["slices"]
    assert len(slices) == 3
    assert all(item["predicted_s"] > 0 for item in slices)
    assert [slices[0]["start"], slices[2]["stop"]] == [0, 5]
    code, out, _ = run(models.skip(), "--out", str(tmp_path / "out"), "--stages", "2")
    assert re.search(r"slowest slice: [0-9.]+ [mµ]s, at most \d+ runs/s", out)


def test_check_compares_every_cut_and_the_chosen_ones(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(models.loop(), "--check")
    assert code == 0
    assert "check: 3 ways to cut compared with the whole model, all equal, bit for bit" in out
    code, out, _ = run(models.chain(), "--out", str(tmp_path / "out"), "--at", "1,2", "--check", "--json")
    assert code == 0
    assert json.loads(out)["check"] == {"compared": 4, "refused": 0, "unequal": []}


def test_an_unequal_cut_ends_with_1_and_the_chosen_one_is_not_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from har_edge.runtime import verify

    monkeypatch.setattr(verify, "_same", lambda wanted, got: False)
    folder = tmp_path / "out"
    code, out, _ = run(models.chain(), "--out", str(folder), "--at", "1", "--check")
    assert code == 1
    assert "cuts 2: output t12: 0 of 3 elements differ" in out
    assert "3 ways to cut compared with the whole model, 3 not equal" in out
    assert f"nothing written to {folder}: these slices do not give what the whole model gives" in out
    assert not folder.exists()


def test_signatures_that_are_left_out_are_named(run: Run) -> None:
    _, out, _ = run(models.described(), "--list")
    assert "note: slices hold the first graph only; the signatures second are left out" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "options", "text"),
    [
        (b"no model at all", ["--list"], "no TFLite model"),
        (models.chain(), [], "nothing to do; give --list, --methods, --at, --stages, --split, --plan or --check"),
        (models.chain(), ["--methods", "--check"], "goes with no --check and no --out"),
        (models.chain(), ["--at", "1"], "give the folder for them with --out DIR"),
        (
            models.chain(),
            ["--out", "{}/o", "--at", "4"],
            "cut 4 is out of range; this model can be cut before operators 1 to 3",
        ),
        (models.chain(), ["--out", "{}/o", "--at", "0"], "cut 0 is out of range"),
        (models.chain(), ["--out", "{}/o", "--stages", "5"], "cannot make 5 stages; this model has 3 legal cuts"),
        (models.chain(), ["--out", "{}/o", "--stages", "0"], "--stages 0: expected at least 1"),
        (models.recurrent(shared=True), ["--out", "{}/o", "--at", "1"], "both sides use the recurrent state"),
        (models.custom(), ["--out", "{}/o", "--stages", "2"], "choose the cuts yourself with --at"),
        (models.custom(), ["--check"], "cut it without --check"),
        (models.chain(), ["--out", "{}", "--at", "1"], "holds no manifest of slices"),
    ],
)
def test_what_cannot_be_done_says_why(run: Run, tmp_path: Path, content: bytes, options: list[str], text: str) -> None:
    code, out, err = run(content, *(option.format(tmp_path) for option in options))
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and text in err
    assert not (tmp_path / "o").exists()


def test_a_malformed_index_is_a_usage_error(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(models.chain(), "--at", "1,x")
    assert caught.value.code == 2
    assert "'1,x' is no list of operator indices such as 4 or 4,9" in capsys.readouterr().err


_WITHOUT_SCHEMA = """
import sys
sys.modules["ai_edge_litert"] = None
from har_edge.cli.main import main
sys.exit(main(["slice", "model.tflite", "--list"]))
"""


def test_a_machine_without_the_schema_says_where_to_cut() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT_SCHEMA], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: cutting a model needs the TFLite schema of ai_edge_litert, which this machine does not have; "
        "cut it on a 64-bit machine and copy the slices here\n"
    )


def test_looking_does_not_touch_the_folder(run: Run, tmp_path: Path) -> None:
    assert run(models.chain(), "--list", "--out", str(tmp_path))[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]


def test_a_custom_operator_can_still_be_cut_out(run: Run, tmp_path: Path) -> None:
    code, _, _ = run(models.custom(), "--out", str(tmp_path / "o"), "--at", "1,2")
    assert code == 0
    assert len(load_manifest(tmp_path / "o").slices) == 3


def cut(name: str, out: Path, at: str) -> int:
    return main(["slice", name, "--out", str(out), "--at", at])


def test_an_edited_pipeline_file_survives_another_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cut("int8", tmp_path, "4,9") == 0
    file, first = tmp_path / "pipeline.toml", load_pipeline(tmp_path)
    said = capsys.readouterr().out
    assert (
        "kept" not in said
        and f"note: the generation of these slices, `epoch` in pipeline.toml, is {first.config.epoch}\n" in said
    )
    own = file.read_text().replace('name = "har"', 'name = "lab"').replace("timeout_s = 30.0", "timeout_s = 5.0")
    file.write_text(own)
    assert cut("int8", tmp_path, "5") == 0
    assert f"note: kept {file}, which fits these slices too\n" in capsys.readouterr().out
    assert file.read_text() == own
    again = load_pipeline(tmp_path)
    assert (again.config.name, again.config.join.timeout_s, len(again.manifest.slices)) == ("lab", 5.0, 2)
    assert again.config.epoch != first.config.epoch


def test_a_name_is_written_and_a_kept_file_is_not_renamed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "slices"
    cut = ["slice", "int8", "--at", "4", "--out", str(out)]
    assert main([*cut, "--name", "lab-2"]) == 0
    assert load_pipeline(out).config.name == "lab-2"
    assert main([*cut, "--name", "other"]) == 2
    assert "nothing is written: --name came, but" in capsys.readouterr().err
    assert main(cut) == 0 and load_pipeline(out).config.name == "lab-2"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--at", "4", "--name", "a/b"], "--name is 'a/b'; expected 1 to 128 letters, digits, '_' or '-'"),
        (["--list", "--name", "lab"], "--name came without --at, --stages, --split or --plan"),
    ],
)
def test_names_that_cannot_be_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    assert main(["slice", "int8", "--out", str(tmp_path / "slices"), *options]) == 2
    assert text in capsys.readouterr().err and not (tmp_path / "slices").exists()


def test_a_pipeline_file_of_another_model_stops_the_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Run
) -> None:
    out = tmp_path / "out"
    assert cut("int8", out, "4,9") == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert cut("float", out, "4") == 2
    assert capsys.readouterr().err == (
        "error: nothing is written, because the pipeline file that is there would not fit the new slices: "
        f"the [task] in {out / 'pipeline.toml'} is that of another model; "
        "give a new folder with --out, or remove that file to have it made anew\n"
    )
    code, _, err = run(models.chain(), "--out", str(out), "--at", "1")  # no manifest knows this one
    assert code == 2
    assert "would not fit the new slices" in err and "is taken by no slice; expected an input of the model" in err
    (out / "pipeline.toml").write_text("colour = 3")
    assert cut("int8", out, "4") == 2
    assert "see docs/reference/pipeline-file.md for every key; give a new folder" in capsys.readouterr().err
    (out / "pipeline.toml").write_bytes(before["pipeline.toml"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "pipeline.toml").unlink()
    assert cut("float", out, "4") == 0
    assert load_pipeline(out).manifest.model == "har-float.tflite"


def test_a_model_without_a_task_keeps_a_pipeline_file_that_fits(run: Run, tmp_path: Path) -> None:
    out, content = tmp_path / "out", models.recurrent_classifier(4, 5)
    code, said, _ = run(content, "--out", str(out), "--at", "1")
    assert code == 0
    assert "note: slices 0 keep state from one run to the next; stages refuse them unless" in said
    assert "to run the slices write pipeline.toml" in said
    task = Task(
        stream=StreamTask("mhealth", 50.0, 4, 2),
        inputs={"chest": SourceInput("c")},
        output="scores",
        labels=["walking", "running"],
        label_ids=[4, 11],
    )
    own = write_pipeline(out, task).read_text()
    code, said, _ = run(content, "--out", str(out), "--at", "2")
    assert code == 0
    assert f"note: kept {out / 'pipeline.toml'}" in said and f"har-edge stage --config {out} --index N" in said
    assert (out / "pipeline.toml").read_text() == own


def test_reducers_are_written_for_the_sources_that_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reducers(spec: str, name: str) -> list[str]:
        assert main(["slice", "int8", "--at", "4", "--out", str(tmp_path / name), "--reducer", spec]) == 0
        return [enters.reducer for enters in load_pipeline(tmp_path / name).task.inputs.values()]

    assert reducers("paa:5+q8", "one") == ["paa:5+q8"] * 3
    own = load_pipeline(tmp_path / "one").task.inputs["ankle"].tensor
    assert own == "ankle" and reducers("arm=sod:0.5,chest=none", "two") == [
        "none",
        "q8:0.1725490242242813:-1",
        "sod:0.5",
    ]
    assert main(["slice", "int8", "--at", "4", "--out", str(tmp_path / "one"), "--reducer", "q8"]) == 2
    assert "nothing is written: --reducer came, but " in capsys.readouterr().err
    assert [enters.reducer for enters in load_pipeline(tmp_path / "one").task.inputs.values()] == ["paa:5+q8"] * 3


@pytest.mark.parametrize(
    ("model", "spec", "text"),
    [
        (
            "int8",
            "pca:8",
            "error: source 'chest': reducer 'pca:8': pca:8 is a recipe that is yet to be fitted; train with",
        ),
        (
            "int8",
            "stats",
            "error: source 'chest' gives windows [250, 5], of which reducer 'stats' makes features [55] and",
        ),
        ("int8", "pca:none.npz", "none.npz: No such file or directory; a fitted reducer's files lie beside the model"),
        ("int8", "leg=q8", "error: a reducer came for source leg; expected sources that the model takes: chest, ankle"),
        (
            "model.tflite",
            "q8",
            "error: --reducer came, but no manifest says what this model is for; name the stream of its",
        ),
    ],
)
def test_reducers_that_cannot_be_are_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    spec: str,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.tflite").write_bytes(models.chain())
    assert main(["slice", model, "--at", "1", "--out", "out", "--reducer", spec]) == 2
    assert text in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_pipeline_file_that_cannot_be_written_leaves_no_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("har_edge.config.pipeline_writer.write_atomic", fail)
    out = tmp_path / "out"
    assert main(["slice", "int8", "--at", "4", "--out", str(out)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"cannot write {out / 'pipeline.toml'}: No space left on device" in said and not out.exists()


def plan_of(content: bytes, tmp_path: Path) -> Path:
    """Write the plan of two devices that share the rows of two layers, and a third one for the last layer."""
    bounds = {"start": 0, "stop": 2, "method": "rows", "bounds": [0, 5, 8]}
    plan = {
        "model_sha256": hashlib.sha256(content).hexdigest(),
        "stages": [
            {"start": 0, "stop": 2, "split": {"shards": 2, "blocks": [bounds]}, "predicted": 0.5},
            {"start": 2, "stop": 5, "devices": ["c"]},
        ],
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    return path


def test_a_plan_with_shared_layers_is_cut(run: Run, tmp_path: Path) -> None:
    content, out = models.skip(), tmp_path / "slices"
    code, text, _ = run(content, "--plan", str(plan_of(content, tmp_path)), "--out", str(out))
    assert code == 0
    assert [(entry.start, entry.stop, len(entry.steps)) for entry in load_manifest(out).slices] == [
        (0, 2, 1),
        (0, 2, 1),
        (2, 5, 1),
    ]
    assert "shard 0" in text and "runs 1 step a window" in text and "nodes that know no shards" in text
    assert "takes 1 region of 1 tensor, 672 B" in text
    code, text, _ = run(content, "--check", "--slices", str(out))
    assert code == 0 and "3 slices compared with the whole model in 3 runs" in text
    code, _, error = run(models.quantised(), "--plan", str(tmp_path / "plan.json"), "--out", str(out))
    assert code == 2 and "is a plan for the model with sha256" in error
    code, text, _ = run(content, "--plan", str(tmp_path / "plan.json"), "--out", str(out), "--check")
    assert code == 0 and "3 stages compared with the whole model in 3 runs" in text


def test_a_plan_whose_devices_take_turns_says_that_a_folder_has_no_replicas(run: Run, tmp_path: Path) -> None:
    content, path = models.skip(), tmp_path / "plan.json"
    groups = [{"start": 0, "stop": 2, "devices": ["a", "b"]}, {"start": 2, "stop": 5, "devices": ["c"]}]
    path.write_text(json.dumps({"model_sha256": hashlib.sha256(content).hexdigest(), "stages": groups}))
    code, text, _ = run(content, "--plan", str(path), "--out", str(tmp_path / "slices"))
    said = " ".join(text.split())
    assert code == 0 and said.count("take turns") == 1
    assert "the plan lets a and b take turns at stage 0: start it on each of them, with --turn 0 to 1;" in said


def test_a_split_is_checked_and_written(run: Run, tmp_path: Path) -> None:
    split = ["--split", "rows:0-2@2 rows:2-4@2 whole:4-5@2"]
    code, out, _ = run(models.skip(), *split, "--check", "--out", str(tmp_path / "slices"))
    assert code == 0
    assert "check: 2 stages compared with the whole model in 3 runs," in out and "with messages in 4 orders" in out
    assert "shard 0" in out and "nodes that know no shards refuse this folder" in out
    manifest = load_manifest(tmp_path / "slices")
    assert [(one.start, one.stop) for one in manifest.slices] == [(0, 5), (0, 5)] and manifest.version == 3
    code, out, _ = run(models.skip(), *split, "--check", "--json")
    figures = json.loads(out)["split_check"]
    assert code == 0 and figures["difference"] is None and figures["error"] <= 1e-5


@pytest.mark.parametrize(
    ("split", "groups", "computed"),
    [
        (
            "rows:0-2@2 whole:2-5@2",
            ["2 devices in 1 group:", "    shards 0 to 1 share operators [0, 5)"],
            {
                "shard 0  [0, 5)": ["rows [0, 4) of 8 in operators [0, 2)", "operators [2, 5) whole"],
                "shard 1  [0, 2)": ["rows [4, 8) of 8 in operators [0, 2)"],
            },
        ),
        (
            "output:0-1=3,1 / rows:1-4@2 whole:4-5",
            [
                "5 devices in 3 groups:",
                "    shards 0 to 1 share operators [0, 1)",
                "    shards 2 to 3 share operators [1, 4)",
                "    slice 4 computes operators [4, 5) alone",
            ],
            {
                "shard 0  [0, 1)": ["output channels [0, 3) of 4 in operators [0, 1)"],
                "shard 1  [0, 1)": ["output channels [3, 4) of 4 in operators [0, 1)"],
                "shard 2  [1, 4)": ["rows [0, 4) of 8 in operators [1, 4)"],
                "shard 3  [1, 4)": ["rows [4, 8) of 8 in operators [1, 4)"],
                "slice 4  [4, 5)": [],
            },
        ),
    ],
)
def test_a_split_says_how_many_devices_it_is_for_and_what_each_computes(
    run: Run, tmp_path: Path, split: str, groups: list[str], computed: dict[str, list[str]]
) -> None:
    code, text, _ = run(models.skip(), "--split", split, "--out", str(tmp_path / "slices"))
    lines = text.splitlines()
    first, last = lines.index(groups[0]), lines.index(f"written to {tmp_path / 'slices'}")
    assert code == 0 and max(map(len, lines[first:last])) <= 80
    assert lines[first : first + len(groups) + 1] == [*groups, ""]
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith(("shard ", "slice ")) and "operators" not in line:
            found[line[: line.index(")") + 1]] = computes = []
        elif line.startswith("    computes "):
            computes.append(line.removeprefix("    computes "))
    assert found == computed


def test_a_split_as_json_has_groups_and_shares(run: Run, tmp_path: Path) -> None:
    _, text, _ = run(models.skip(), "--split", "rows:0-2@2 whole:2-5", "--out", str(tmp_path / "slices"), "--json")
    found = json.loads(text)
    assert found["groups"] == [
        {"first": 0, "devices": 2, "start": 0, "stop": 2},
        {"first": 2, "devices": 1, "start": 2, "stop": 5},
    ]
    share = {"start": 0, "stop": 2, "method": "rows", "low": 4, "high": 8, "extent": 8}
    assert found["slices"][1]["shares"] == [share]


def test_packed_regions_of_a_split_say_how_they_travel(run: Run, tmp_path: Path) -> None:
    _, text, _ = run(
        models.skip(), "--split", "rows:0-2@2 whole:2-5", "--out", str(tmp_path / "slices"), "--pack", "f2+zstd"
    )
    assert "gives 2 regions of 2 tensors, 1.2 kB unpacked: 2 as f2+zstd\n" in text
    assert "takes 4 regions of 2 tensors, 2.0 kB unpacked: 4 as f2+zstd\n" in text
    assert "takes 1 region of 1 tensor, 576 B\n" in text  # what sensors send


def test_predicted_times_have_a_column_where_there_are_some(run: Run, tmp_path: Path) -> None:
    _, text, _ = run(models.chain(), "--at", "1", "--out", str(tmp_path / "cut"))
    assert re.search("^slice +operators +size$", text, re.MULTILINE)
    _, text, _ = run(models.chain(), "--stages", "2", "--out", str(tmp_path / "timed"))
    assert "operators  predicted" in text


def test_a_split_that_differs_is_not_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from har_edge.runtime import verify_split

    monkeypatch.setattr(verify_split, "SHARD_ERROR", -1.0)
    code, out, _ = run(
        models.skip(), "--split", "rows:0-2@2 rows:2-4@2 whole:4-5@2", "--check", "--out", str(tmp_path / "slices")
    )
    assert code == 1 and "elements differ" in out and not (tmp_path / "slices").exists()
    assert "these slices do not give what the whole model gives" in out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--split", "rows:0-2@2"], "--split and --plan write slices; give the folder for them with --out DIR"),
        (["--split", "rows:0-2@2", "--wire", "1", "--out", "x"], "shards need messages of wire version 3"),
        (["--split", "rows:0-2@2", "--out", "x"], "splits of 2 operators came; expected all 5 of the model"),
        (["--split", "rows:0-5@2", "--out", "x"], "let one shard compute the last operators whole"),
        (["--split", "heads:0-1@2 whole:1-5", "--out", "x"], "BATCH_MATMUL"),
        (["--plan", "no-such-file.json", "--out", "x"], "cannot read the plan no-such-file.json"),
    ],
)
def test_a_split_that_cannot_be_says_why(run: Run, options: list[str], text: str) -> None:
    code, _, error = run(models.skip(), *options)
    assert code == 2 and text in " ".join(error.split())
