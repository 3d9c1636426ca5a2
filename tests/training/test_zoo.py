"""The networks of the zoo: their parameters, their operators, and small ones that run and are cut."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.config.catalog import load_catalog
from har_edge.config.pipeline import load_pipeline
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.tensor_observation import open_model
from har_edge.runtime.verify import check_cuts
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.model import Model, read_model
from har_edge.training.zoo.catalog import ZOO, find_network

pytestmark = pytest.mark.training
INTEGERS = {"int8", "int32"}


@pytest.fixture(scope="module", autouse=True)
def _tensorflow() -> None:
    pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a function that makes a network at its smallest size with six classes, once."""
    from har_edge.training.zoo.convert import make

    known = {}

    def made(name: str, int8: bool) -> bytes:
        if (name, int8) not in known:
            network = find_network(name)
            known[name, int8] = make(network, int8=int8, size=network.smallest, classes=6, seed=0, log=print)
        return known[name, int8]

    return made


def images(name: str, count: int) -> np.ndarray:
    from har_edge.training.zoo.weights import make_images

    network = find_network(name)
    return np.concatenate(list(make_images(network.shape(network.smallest), count, np.random.default_rng(5))))


def answers(content: bytes, batch: np.ndarray) -> np.ndarray:
    runner = Interpreter(content)
    (image,), (scores,) = runner.inputs, runner.outputs
    if image.dtype == np.int8:
        batch = np.clip(np.round(batch / image.scale) + image.zero_point, -128, 127).astype(np.int8)
    return runner.run({image.name: batch})[scores.name]


def operators(model: Model) -> list[str]:
    return [operator.name for operator in model.main.operators]


@pytest.mark.parametrize("name", ZOO)
def test_a_network_has_the_parameters_of_its_paper(name: str) -> None:
    import keras

    from har_edge.training.zoo.networks import build

    network = ZOO[name]
    keras.backend.clear_session()
    model = build(network, network.size, network.classes)
    assert model.count_params() == network.parameters
    assert model.output_shape == (None, network.classes)
    keras.backend.clear_session()


def test_counts_that_papers_take_otherwise() -> None:
    """Chollet counts what is trained; C3D is often quoted with the 101 classes of UCF101."""
    from har_edge.training.zoo.networks import build

    xception = build(ZOO["xception"], 299, 1000)
    assert sum(math.prod(weight.shape) for weight in xception.trainable_variables) == 22_855_952
    assert build(ZOO["c3d"], 112, 101).count_params() == 78_409_573


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("name", ZOO)
def test_a_small_one_runs_and_is_cut(small, tmp_path: Path, name: str, int8: bool) -> None:
    content = small(name, int8)
    batch = images(name, 3)
    each = np.concatenate([answers(content, one[None]) for one in batch])
    assert each.shape == (3, 6) and len(np.unique(each, axis=0)) == 3  # different images, different answers
    scores = (each.astype(np.float32) + 128) / 256 if int8 else each
    assert np.allclose(scores.sum(axis=1), 1, atol=0.02)
    together = answers(content, batch)  # the batch is open
    assert np.array_equal(each, together) if int8 else np.allclose(each, together, atol=1e-5)
    (tmp_path / "model.tflite").write_bytes(content)
    model = open_model(tmp_path / "model.tflite")  # looks which tensors carry the batch: in a clip, frames do
    cuts = [cut.index for cut in list_cuts(model) if cut.refusal is None]
    thirds = (cuts[len(cuts) // 3], cuts[2 * len(cuts) // 3])
    (check,) = check_cuts(model, [thirds])
    assert check.difference is None


def test_the_operators_of_each_are_those_of_its_paper(small) -> None:
    found = {name: operators(read_model(small(name, False))) for name in ZOO}
    assert found["lenet5"].count("TANH") == 4 and found["lenet5"].count("AVERAGE_POOL_2D") == 2
    assert found["alexnet"].count("LOCAL_RESPONSE_NORMALIZATION") == 2 and found["alexnet"].count("CONV_2D") == 5
    assert found["vgg16"].count("CONV_2D") == 13 and found["vgg16"].count("FULLY_CONNECTED") == 3
    assert found["resnet50"].count("CONV_2D") == 53 and found["resnet50"].count("ADD") == 16
    assert found["xception"].count("DEPTHWISE_CONV_2D") == 34
    assert found["mobilenetv2"].count("DEPTHWISE_CONV_2D") == 17 and found["mobilenetv2"].count("ADD") == 10
    assert found["c3d"].count("CONV_3D") == 8 and "CONV_2D" not in found["c3d"]
    for name, names in found.items():
        assert not {"SHAPE", "PACK", "MUL", "RSQRT"} & set(names), name  # constant shapes, normalisation folded


def test_grouped_convolutions_of_alexnet_see_half_of_their_channels(small) -> None:
    for int8 in (False, True):
        graph = read_model(small("alexnet", int8)).main
        convolutions = [operator for operator in graph.operators if operator.name == "CONV_2D"]
        seen = [
            graph.tensors[one.inputs[0]].shape[-1] // graph.tensors[one.inputs[1]].shape[-1] for one in convolutions
        ]
        assert seen == [1, 2, 1, 2, 2]


@pytest.mark.parametrize("name", ZOO)
def test_int8_is_integers_throughout(small, name: str) -> None:
    """Local response normalisation alone has no integer kernel."""
    graph = read_model(small(name, True)).main
    for operator in graph.operators:
        types = {graph.tensors[index].dtype for index in (*operator.inputs, *operator.outputs) if index >= 0}
        if operator.name not in ("DEQUANTIZE", "LOCAL_RESPONSE_NORMALIZATION", "QUANTIZE"):
            assert types <= INTEGERS, operator.name
    reals = operators(read_model(small(name, True))).count("DEQUANTIZE")
    assert reals == (2 if name == "alexnet" else 0)


@pytest.mark.parametrize("name", ZOO)
def test_activations_neither_vanish_nor_explode(small, name: str) -> None:
    from ai_edge_litert.interpreter import Interpreter as Runtime

    content = small(name, False)
    runtime = Runtime(model_content=content, experimental_preserve_all_tensors=True)
    runtime.allocate_tensors()
    runtime.set_tensor(runtime.get_input_details()[0]["index"], images(name, 2)[1:])
    runtime.invoke()
    graph = read_model(content).main
    for operator in graph.operators[:-1]:  # all but softmax
        values = runtime.get_tensor(operator.outputs[0])
        assert 0.03 < np.sqrt(np.mean(np.square(values))) < 30, operator.name


def test_one_seed_gives_one_file() -> None:
    from har_edge.training.zoo.convert import make

    def made(name: str, seed: int, int8: bool) -> bytes:
        network = ZOO[name]
        return make(network, int8=int8, size=network.smallest, classes=4, seed=seed, log=print)

    assert made("mobilenetv2", 3, False) == made("mobilenetv2", 3, False)
    first = made("lenet5", 3, True)
    assert first == made("lenet5", 3, True)
    assert first != made("lenet5", 4, True)


@pytest.mark.parametrize(("frames", "side"), [(1, 4), (2, 4), (2, 7)])
def test_pooling_of_clips_is_that_of_keras(frames: int, side: int) -> None:
    import keras

    from har_edge.training.zoo.networks import Pooling3D

    clips = np.random.default_rng(1).standard_normal((2, 4, side, side, 3)).astype(np.float32)
    whole = keras.layers.MaxPooling3D((frames, 2, 2), padding="same")(clips)
    assert np.array_equal(Pooling3D(frames)(clips), whole)


def test_lowered_convolution_of_clips_is_that_of_keras() -> None:
    import keras

    from har_edge.training.zoo.networks import Convolution3D

    clips = np.random.default_rng(1).standard_normal((2, 4, 5, 6, 3)).astype(np.float32)
    whole, lowered = keras.layers.Conv3D(7, 3, padding="same", activation="relu"), Convolution3D(7)
    expected = whole(clips)
    lowered.build(clips.shape)
    lowered.set_weights([whole.get_weights()[0], np.zeros(7, np.float32)])
    assert np.allclose(lowered(clips), expected, atol=1e-5)


def test_slice_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest beside the file says what the model takes; a second network joins it."""
    for name, options in (("lenet5", ["--int8"]), ("mobilenetv2", ["--size", "32", "--classes", "3"])):
        assert main(["zoo", name, "--out", str(tmp_path / "models" / f"{name}.tflite"), *options]) == 0
    said = capsys.readouterr().out
    assert "LeNet-5: 61,706 parameters, input [32, 32, 1], 10 classes" in said
    lenet, mobilenet = load_catalog(tmp_path / "models").models
    assert lenet.data == "LeNet-5 with random weights, seed 0: its answers mean nothing"
    assert (lenet.split, lenet.trained_on, lenet.real) == (None, [], False)
    assert lenet.command == "har-edge zoo lenet5 --out lenet5.tflite --int8 --size 32 --classes 10 --seed 0"
    assert mobilenet.inputs[0].shape == (-1, 32, 32, 3) and len(mobilenet.task.labels) == 3
    for name, channels in (("lenet5", 1), ("mobilenetv2", 3)):
        folder = tmp_path / name
        model = str(tmp_path / "models" / f"{name}.tflite")
        assert main(["slice", model, "--stages", "3", "--check", "--out", str(folder)]) == 0
        assert "all equal, bit for bit" in capsys.readouterr().out
        pipeline = load_pipeline(folder)
        assert len(pipeline.manifest.slices) == 3
        assert pipeline.channels("camera") == channels
        assert pipeline.task.stream.length == 32 * 32


def test_figures_of_random_weights_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = ["channel-0,label", *(f"{value / 1024:.3f},1" for value in range(1024))]
    (folder / "a.csv").write_text("\n".join(lines))
    assert main(["zoo", "lenet5", "--out", str(tmp_path / "lenet5.tflite")]) == 0
    description = tmp_path / "images-1.toml"
    description.write_text(
        'name = "images"\nrate_hz = 1.0\nlabels = ["class-0", "class-1"]\n'
        '[files]\npattern = "(?P<stream>[a-z]+).csv"\nlabel = "label"\n'
        '[[sources]]\nname = "camera"\ncolumns = ["channel-0"]\n'
    )
    capsys.readouterr()
    assert main(["evaluate", "--model", str(tmp_path / "lenet5.tflite"), "--data", str(folder)]) == 0
    assert "on random weights: says nothing about anything" in capsys.readouterr().out


def test_the_list_needs_no_tensorflow(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert main(["zoo", "--list"]) == 0
    said = capsys.readouterr().out
    assert "vgg16         138,357,544     1000  224 x 224 x 3\n" in said
    assert all(f"\n{name}: " in said for name in ZOO)


def test_without_tensorflow_it_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert main(["zoo", "vgg16", "--out", str(tmp_path / "a.tflite")]) == 2
    assert (
        "error: making a network of the zoo needs TensorFlow, which is not installed; "
        "pip install 'har-edge[training]'" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected a network and --out FILE, or --list"),
        (["vgg16"], "expected a network and --out FILE, or --list"),
        (["vgg", "--out", "a.tflite"], "no network 'vgg' in the zoo; expected one of lenet5, alexnet, vgg16, resnet50"),
        (["xception", "--size", "70", "--out", "a.tflite"], "--size 70 came; Xception takes images of 71 to 1024"),
        (["vgg16", "--size", "2000", "--out", "a.tflite"], "--size 2000 came; VGG16 takes images of 32 to 1024"),
        (["vgg16", "--classes", "1", "--out", "a.tflite"], "--classes 1 came; expected 2 to 10000"),
        (["vgg16", "--out", "a"], "--out a came; expected a file whose name ends in .tflite"),
        (["vgg16", "--out", "folder.tflite"], "--out folder.tflite is a folder; expected the name of a file"),
        (["vgg16", "--out", "other/a.tflite"], "other/manifest.json is no manifest of models"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.tflite").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.json").write_text('{"version": 3, "slices": []}')
    assert main(["zoo", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
