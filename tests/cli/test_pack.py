"""`--pack`: slices whose activations travel in fewer bytes, and what that changes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from har_edge.cli.main import main
from har_edge.config.catalog import find_model
from har_edge.config.pipeline import load_pipeline
from har_edge.evaluation.composition import load_composition, packings_of
from har_edge.evaluation.packed import TensorWay
from har_edge.evaluation.prediction import Classifier
from har_edge.inference.codecs import FolderFiles
from har_edge.protocol import compression
from har_edge.tflite.manifest import load_manifest
from tests.cli.test_slice import plan_of
from tests.runtime import test_odd_models as odd
from tests.runtime.rig import windows_of
from tests.tflite import models


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without data."""
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cut(*options: str) -> int:
    return main(["slice", "float", "--at", "5,10", "--out", "slices", *options])


@pytest.mark.parametrize("how", ["f2", "zstd", "q8", "f2+zstd", "q8+zstd"])
def test_stages_answer_as_the_evaluated_slices_do(
    how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real stages, messages between them: class and confidence are those that `evaluate` scores."""
    assert cut("--pack", how) == 0
    said = capsys.readouterr()
    assert ("calibrated on 286 windows of synthetic data" in " ".join(said.out.split())) == ("q8" in how)
    pipeline, found = load_pipeline(Path("slices")), find_model("float")
    packings = packings_of(pipeline.manifest)
    assert packings and all(one.is_calibrated for one in packings.values())
    way = TensorWay(packings)
    slices = load_composition(Path("slices"), found.sha256, pipeline.task, None, way)
    channels = {source: pipeline.channels(source) for source in pipeline.task.inputs}
    files = FolderFiles(found.path.parent, pipeline.task.files, None)
    classifier = Classifier(slices.run, slices.inputs, pipeline.task, channels=channels, files=files)
    stages = [odd.build_stage(pipeline, index) for index in range(3)]
    output = next(port for port in slices._slices[-1].outputs if port.name == pipeline.task.output)
    sensor, windows, results = odd.build_sensor(pipeline, list(channels)), windows_of(pipeline, "s", 6), []
    for window in windows:
        todo = sensor.handle([window], [float(window.seq)])
        while todo:
            sent = todo.pop()
            if "/result/" in sent.topic:
                results += odd.read_results(sent)
                continue
            for stage in stages:
                if any(odd._matches(one, sent.topic) for one in stage.filters):
                    delivery = odd.Delivery(sent.topic, sent.payload, (0, 0))
                    todo += [made for made in stage.handle(delivery) if made.topic]
    assert [(stage.complaint, stage.counters.rejected) for stage in stages] == [("", 0)] * 3
    expected = [classifier.predict(window) for window in windows]
    assert [(one.label_id, one.confidence) for one in sorted(results, key=lambda one: one.seq)] == [
        (pipeline.task.label_ids[one.answer], one.confidence(output)) for one in expected
    ]
    assert way.bytes < way.raw_bytes


def figures(*options: str) -> dict:
    assert main(["evaluate", "--model", "float", "--subjects", "7", *options, "--json", "o.json"]) == 0
    return msgspec.json.decode(Path("o.json").read_bytes())


def test_evaluate_says_what_packing_changes_and_saves(capsys: pytest.CaptureFixture[str]) -> None:
    assert cut("--pack", "f2") == 0
    capsys.readouterr()
    found = figures("--slices", "slices")["packed"]
    said = capsys.readouterr().out
    assert found["raw_bytes"] == 2 * found["bytes"] > 0 and found["windows"] == 143 and found["clipped"] == 0
    assert "packed " in said and "times fewer" in said and "2.00 times fewer" in said
    assert f"{found['labels_differ']} of 143 labels differ from the whole model's; accuracy" in said
    assert "slices:" not in said  # rounded: nobody expects the same bits


def test_lossless_activations_keep_every_bit(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures("--at", "5,10", "--pack", "zstd")
    assert found["packed"]["bytes"] < found["packed"]["raw_bytes"] and found["packed"]["labels_differ"] == 0
    assert "slices: 143 outputs, all identical to those of the whole model" in capsys.readouterr().out
    assert figures("--at", "5,10")["packed"] is None


def test_q8_is_calibrated_on_the_data_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures("--at", "5,10", "--pack", "q8")["packed"]
    assert "calibrated int8 activations on 143 windows of synthetic data" in capsys.readouterr().out
    assert found["raw_bytes"] == 4 * found["bytes"] and found["clipped"] == 0
    assert all(text.startswith("q8:") for text in found["packings"].values())


def test_one_cut_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cut("--pack", "f2@10") == 0
    manifest = load_manifest(Path("slices"))
    packed = {spec.name for spec in manifest.tensors if spec.packing}
    assert packed == {spec.name for spec in manifest.slices[2].inputs} & {
        spec.name for entry in manifest.slices for spec in entry.outputs
    }
    assert "as f2" in capsys.readouterr().out


def test_a_model_of_which_nobody_says_what_it_takes_is_calibrated_on_random_inputs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("m.tflite").write_bytes(models.chain())
    assert main(["slice", "m.tflite", "--at", "2", "--out", "cut", "--pack", "q8"]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "calibrated on 16 random inputs, for want of real ones" in " ".join(said.split())
    assert [spec.packing[:3] for spec in load_manifest(Path("cut")).slices[1].inputs] == ["q8:"]


def test_the_pieces_of_shards_travel_as_their_tensor_does(tmp_path: Path) -> None:
    content = models.skip()
    Path("m.tflite").write_bytes(content)
    plan = plan_of(content, tmp_path)
    assert main(["slice", "m.tflite", "--plan", str(plan), "--out", "cut", "--pack", "q8+zstd"]) == 0
    manifest = load_manifest(Path("cut"))
    packings: dict[str, set[str]] = {}
    for spec in manifest.tensors:
        packings.setdefault(spec.of, set()).add(spec.packing)
    sent = {spec.of for entry in manifest.slices[:2] for spec in entry.outputs}
    assert sent == {"first", "second"} and any(spec.region for spec in manifest.tensors)
    assert all(len(packings[name]) == 1 and max(packings[name]).startswith("q8:") for name in sent)
    assert packings["image"] == packings["result"] == {""}


REFUSED = {
    "no cut": (["--list", "--pack", "f2"], "--pack came without --at, --stages, --split or --plan"),
    "an unknown cut": (["--at", "5", "--out", "o", "--pack", "f2@6"], "--pack names cut 6; expected one of 5"),
    "an older wire": (["--at", "5", "--out", "o", "--wire", "1", "--pack", "f2"], "need --wire 3"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_says_why(what: str, capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    options, text = REFUSED[what]
    assert main(["slice", "float", *options]) == 2
    assert text in " ".join(capsys.readouterr().err.split()) and not (nowhere / "o").exists()


def test_a_machine_without_zstandard_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "is_available", lambda: False)
    assert cut("--pack", "zstd") == 2
    assert "pip install 'har-edge[zstd]'" in " ".join(capsys.readouterr().err.split())


def test_evaluate_refuses_pack_where_it_means_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", "float", "--pack", "f2"]) == 2
    assert "--pack came; expected it with --at or --stages" in " ".join(capsys.readouterr().err.split())
