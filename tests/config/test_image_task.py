"""The task of a model of pictures, from its file and from options; other models are refused with the reason."""

from __future__ import annotations

import msgspec
import pytest

from har_edge.config.image_task import PIXELS, Normalization, derive_image_task
from har_edge.config.task import ArrayOutput, ImageInput, Task
from har_edge.data.pictures import AspectRule
from har_edge.errors import ConfigError
from har_edge.tflite.metadata import read_normalizations
from har_edge.tflite.model import Model, read_model
from tests.tflite import models, picture_models

LABELS = [f"class {number}" for number in range(7)]
META = picture_models.normalized([127.5], [128.0])


def derive(content: bytes, **options: object) -> Task:
    return derive_image_task(read_model(content), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("meta", [None, META])
def test_an_uint8_model_takes_bytes_whatever_its_metadata_say(meta: bytes | None) -> None:
    task = derive(picture_models.classifier(meta=meta), labels=LABELS, fit=AspectRule.PAD)
    assert task.image == ImageInput(8, 6, 3, AspectRule.PAD)
    assert (task.stream.description, task.stream.length, task.stream.hop) == ("images", 48, 48)
    ((source, enters),) = task.inputs.items()
    assert (source, enters.tensor, enters.reducer) == ("camera", "image", PIXELS)
    assert (task.output, task.labels, task.label_ids, task.arrays) == ("scores", LABELS, [*range(7)], ())


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_constants_come_from_the_options_else_from_the_metadata(dtype: str) -> None:
    content = picture_models.classifier(dtype, meta=META)
    assert derive(content, labels=LABELS).image == ImageInput(8, 6, 3, AspectRule.STRETCH, (127.5,), (128.0,))
    given = Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    image = derive(content, labels=LABELS, normalization=given).image
    assert image is not None and (image.mean, image.std) == (given.mean, given.std)


def test_an_int8_model_without_constants_takes_bytes() -> None:
    image = derive(picture_models.classifier("int8"), labels=LABELS).image
    assert image is not None and image.mean == ()


def test_a_float_model_of_which_nothing_says_how_bytes_enter_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"input 'image' is float32.*give --normalize MEAN,STD: 127\.5,127\.5"):
        derive(picture_models.classifier("float32"), labels=LABELS)


@pytest.mark.parametrize(("shape", "channels"), [((1, 8, 6), 1), ((1, 8, 6, 1), 1), ((1, 8, 6, 3), 3)])
def test_grey_and_rgb(shape: tuple[int, ...], channels: int) -> None:
    image = derive(picture_models.classifier(shape=shape), labels=LABELS).image
    assert image is not None and (image.height, image.width, image.channels) == (8, 6, channels)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (picture_models.classifier(shape=(1, 3, 8, 6)), "channels come first here: convert it with channels last"),
        (picture_models.classifier(shape=(1, 8, 6, 4)), r"expected pictures \[1, height, width, channels\]"),
        (picture_models.classifier(shape=(1, 48)), r"expected pictures \[1, height, width, channels\]"),
        (models.many_ports(), "a model of pictures has one input; this one has"),
    ],
)
def test_other_inputs_are_refused(content: bytes, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        derive(content, labels=LABELS)


def test_constants_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="mean has 2 figures and std 2; expected one each, 3 each"):
        derive(picture_models.classifier(), normalization=Normalization((1.0, 2.0), (1.0, 2.0)))
    with pytest.raises(ConfigError, match="std above 0"):
        derive(picture_models.classifier(), normalization=Normalization((1.0,), (0.0,)))


def test_labels_that_fit_no_output_are_refused_where_a_person_gave_them() -> None:
    with pytest.raises(ConfigError, match=r"6 labels came, and no output of the model has one score for each: scores"):
        derive(picture_models.classifier(), labels=LABELS[1:], asked=True)
    task = derive(picture_models.classifier(), labels=LABELS[1:])
    assert (task.labels, task.output, task.arrays) == ([], "scores", (ArrayOutput("scores"),))


def test_several_outputs_are_arrays_and_labels_may_name_one() -> None:
    normalization, arrays = Normalization((0.0,), (255.0,)), ("boxes", "scores", "mask")
    task = derive(picture_models.many_outputs(), normalization=normalization)
    assert (task.labels, task.output, task.results) == ([], "boxes", arrays) and not task.ranked
    assert task.arrays[2] == ArrayOutput("mask", 0.5, -3)
    named = derive(picture_models.many_outputs(), normalization=normalization, labels=["a", "b", "c"], asked=True)
    assert (named.labels, named.output) == (["a", "b", "c"], "scores") and named.ranked
    assert {one.tensor for one in named.arrays} == set(arrays)


def test_arrays_may_be_asked_for() -> None:
    task = derive(picture_models.classifier(), labels=LABELS, arrays=True)
    assert (task.labels, task.arrays) == (LABELS, (ArrayOutput("scores"),))


class OldTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The keys of a task before there were pictures."""

    stream: msgspec.Raw
    inputs: msgspec.Raw
    output: str
    labels: list[str] = []
    label_ids: list[int] = []
    state: str = "refuse"


def test_older_nodes_refuse_pictures_and_arrays_and_read_all_other_tasks() -> None:
    task = derive(picture_models.classifier(), labels=LABELS)
    with pytest.raises(msgspec.ValidationError, match="unknown field `image`"):
        msgspec.json.decode(msgspec.json.encode(task), type=OldTask)
    plain = msgspec.structs.replace(
        task, image=None, stream=msgspec.structs.replace(task.stream, description="mhealth", hop=3)
    )
    assert msgspec.json.decode(msgspec.json.encode(plain), type=OldTask).output == "scores"
    arrays = msgspec.structs.replace(plain, arrays=(ArrayOutput("scores"),))
    with pytest.raises(msgspec.ValidationError, match="unknown field `arrays`"):
        msgspec.json.decode(msgspec.json.encode(arrays), type=OldTask)


@pytest.mark.parametrize("change", [{"length": 47}, {"hop": 1}, {"description": "mhealth"}])
def test_a_stream_that_is_not_that_of_the_pictures_is_refused(change: dict[str, object]) -> None:
    task = derive(picture_models.classifier(), labels=LABELS)
    with pytest.raises(ValueError, match="image is 8 x 6, but the stream"):
        msgspec.structs.replace(task, stream=msgspec.structs.replace(task.stream, **change))


def with_metadata(meta: bytes) -> Model:
    return read_model(picture_models.classifier(meta=meta))


def test_constants_are_read_from_the_metadata() -> None:
    by_channel = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    made = read_normalizations(with_metadata(picture_models.normalized(*by_channel)))
    assert made == {"image": (tuple(by_channel[0]), tuple(by_channel[1]))}
    assert read_normalizations(read_model(picture_models.classifier())) == {}
    other_unit = picture_models.normalized([1.0], [1.0], kind=2)
    assert read_normalizations(with_metadata(other_unit)) == {}


@pytest.mark.parametrize(
    ("mean", "std"), [([1.0], []), ([1.0], [0.0]), ([float("nan")], [1.0]), ([0.0] * 65, [1.0] * 65)]
)
def test_constants_that_are_none_are_left_out(mean: list[float], std: list[float]) -> None:
    assert read_normalizations(with_metadata(picture_models.normalized(mean, std))) == {}


def test_damaged_metadata_never_raise() -> None:
    whole = bytearray(META)
    for at in range(len(whole)):
        for bits in (0xFF, 0x80, 0x01):
            broken = bytearray(whole)
            broken[at] ^= bits
            read_normalizations(with_metadata(bytes(broken)))
