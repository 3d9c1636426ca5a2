"""Which shapes tensors have when a model runs, and which of them carry the batch."""

from __future__ import annotations

import numpy as np
import pytest

from har_edge.inference import tensor_observation as module
from har_edge.inference.interpreter import Delegate, Interpreter
from har_edge.inference.tensor_observation import observe_tensors, open_model
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.slices import slice_model, write_slice
from tests.tflite import models


def crossing(model: Model) -> dict[str, tuple[tuple[int, ...], bool, int]]:
    """Return signature, whether it carries the batch, and bytes of each tensor that may cross."""
    return {
        item.tensor.name: (item.tensor.shape, item.tensor.batched, item.bytes)
        for cut in list_cuts(model)
        for item in cut.crossing
    }


def test_blocks_of_a_dilated_layer_are_no_batch() -> None:
    found = crossing(open_model(models.dilated()))
    blocks = [value for value in found.values() if not value[1]]
    assert blocks == [((-1, 4, 5), False, 2 * 4 * 5 * 4)] * 2  # of one window; the file plans half of it
    assert found["mean"] == ((-1, 5), True, 20)


def test_with_a_fixed_batch_they_are_what_they_are() -> None:
    model = open_model(models.dilated(batch=1))
    assert {value[:2] for value in crossing(model).values()} == {((2, 4, 5), True), ((1, 8, 5), True), ((1, 5), True)}
    assert model.remarks == ()


def test_rows_of_all_steps_are_no_batch_and_sizes_are_themselves() -> None:
    found = crossing(open_model(models.dense_each_step()))
    assert found["rows"] == found["each"] == ((-1, 5), False, 8 * 5 * 4)
    assert found["sizes"] == ((3,), True, 12)
    assert found["again"] == ((-1, -1, -1), True, 8 * 5 * 4)
    assert found["flat"] == ((-1, 40), True, 160)


@pytest.mark.parametrize("signed", [True, False])
def test_sizes_that_depend_on_values_are_found_without_a_signature_too(signed: bool) -> None:
    found = crossing(open_model(models.positive_places(signed=signed)))
    assert found["places"][:2] == found["real"][:2] == ((-1, 2), False)
    assert found["places"][2] > 16 and found["total"] == ((1, 2), True, 8)


def test_tensors_without_a_signature_carry_the_batch_where_they_do() -> None:
    model = open_model(models.unsigned())
    assert crossing(model) == {"mean": ((-1, 5), True, 20), "middle": ((-1, 3), True, 12)}
    values = np.random.default_rng(0).standard_normal((4, 8, 5)).astype(np.float32)
    known = {"c": values}
    for piece in slice_model(model, [1, 2]):
        interpreter = Interpreter(bytes(write_slice(model, piece)))
        assert interpreter.inputs[0].shape[0] == -1
        known |= interpreter.run({spec.name: known[spec.name] for spec in piece.inputs})
    assert known["scores"].tobytes() == Interpreter(models.unsigned()).run({"c": values})["scores"].tobytes()


def test_a_batch_that_mixes_its_windows_is_none() -> None:
    found = crossing(open_model(models.mixes_windows()))
    assert found["flat"][:2] == ((-1, 40), True)
    assert found["rest"][:2] == ((-1, 40), False)


@pytest.mark.parametrize("place", [False, True])
def test_a_batch_of_which_a_little_depends_on_others_is_none(place: bool) -> None:
    model = open_model(models.mixes_few(place=place))
    batched = {tensor.name: tensor.batched for tensor in model.main.tensors}
    assert (batched["flat"], batched["hidden"], batched["last"], batched["scores"]) == (True, True, False, False)


def test_what_a_file_says_has_no_elements_is_looked_at() -> None:
    found = crossing(open_model(models.without_elements()))
    assert found["mean"] == ((-1, 5), True, 20) and found["none"] == ((-1, 0), True, 0)
    assert crossing(open_model(models.without_elements(planned=False)))["mean"] == ((-1, 5), True, 20)


def test_a_model_for_one_window_says_so() -> None:
    model = open_model(models.reshaped())
    assert model.remarks == () and crossing(model)["flat"] == ((-1, -1, -1), True, 32)
    (remark,) = open_model(models.one_at_a_time()).remarks
    assert remark.startswith("model takes one window at a time: the model cannot take inputs of these sizes: c [3, 8")
    assert {value[1] for value in crossing(open_model(models.one_at_a_time())).values()} == {True}
    assert not open_model(models.one_at_a_time()).main.tensors[0].batched


def test_what_cannot_run_here_is_no_batch() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x", signature=[-1, 4])
    middle, result = (graph.tensor([1, 4], name, signature=[-1, 4]) for name in ("middle", "result"))
    graph.op("Mystery", [x], [middle], custom=True)
    graph.op("Mystery", [middle], [result], custom=True)
    graph.output(result)
    model = open_model(draft.build())
    assert crossing(model) == {"middle": ((-1, 4), False, 16)}
    (remark,) = model.remarks
    assert remark.startswith("this machine cannot run model, so nobody knows which tensors carry a batch; ")


def test_what_cannot_run_here_and_is_fixed_stays_as_it_is() -> None:
    model = open_model(models.custom())
    assert model.remarks == () and all(value[1] for value in crossing(model).values())


@pytest.mark.parametrize(
    "content",
    [models.chain(), models.skip(), models.quantised(), models.recurrent(), models.half_weights(), models.described()],
)
def test_fixed_models_are_not_run(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_edge.inference.tensor_observation.Interpreter", None)
    open_model(content)


@pytest.mark.parametrize("delegate", [None, "xnnpack", "none"])
def test_a_model_is_run_by_who_will_compute_it(delegate: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def make(content: bytes, *, fresh: bool, delegate: Delegate) -> Interpreter:
        asked.append(delegate)
        return Interpreter(content, fresh=fresh, delegate=delegate)

    monkeypatch.setattr(module, "Interpreter", make)
    monkeypatch.setattr(module, "default_check", lambda: lambda content, what, told: asked.append(Delegate(told)))
    found = crossing(open_model(models.dilated(), delegate))
    assert set(asked) == {Delegate(delegate or "xnnpack")} and len(asked) > 1
    assert found["mean"] == ((-1, 5), True, 20)


@pytest.mark.parametrize("content", [models.loop(), models.branch(), models.initialised(), models.odd_outputs()])
def test_every_other_model_is_read_as_before(content: bytes) -> None:
    assert observe_tensors(read_model(content)).remarks == ()
