"""Which cuts are offered, and why others are refused."""

from __future__ import annotations

import pytest

from har_edge.errors import CutError
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.model import read_model
from har_edge.tflite.slices import slice_model
from tests.tflite import models

STRING, RESOURCE, VARIANT, INT4 = 5, 13, 14, 17


def _refusals(content: bytes) -> dict[int, str]:
    return {cut.index: cut.refusal for cut in list_cuts(read_model(content)) if cut.refusal}


def test_a_cut_names_its_operators_and_what_crosses() -> None:
    cuts = list_cuts(read_model(models.skip()))
    assert [cut.index for cut in cuts] == [1, 2, 3, 4]
    assert (cuts[3].before, cuts[3].after) == ("ADD", "CONV_2D")
    crossing = [[(item.tensor.name, item.bytes) for item in cut.crossing] for cut in cuts]
    first, second, third, total = ((name, 8 * 8 * 4 * 4) for name in ("first", "second", "third", "sum"))
    assert crossing == [[first], [first, second], [first, third], [total]]
    assert cuts[1].bytes == 2048
    assert cuts[0].crossing[0].tensor.shape == (1, 8, 8, 4)
    assert cuts[0].crossing[0].tensor.dtype == "float32"


def test_inputs_do_not_cross_and_neither_do_early_outputs() -> None:
    cuts = list_cuts(read_model(models.many_ports()))
    assert [[item.tensor.name for item in cut.crossing] for cut in cuts] == [["early"], ["mixed"], ["scaled"]]


def test_state_stays_on_one_side() -> None:
    assert _refusals(models.recurrent()) == {}
    reason = "both sides use the recurrent state state"
    assert _refusals(models.recurrent(shared=True)) == {1: reason, 2: reason}


def test_resource_variables_stay_on_one_side() -> None:
    reason = "both sides use variable /v"
    refused = _refusals(models.variable(apart=True))
    assert refused == {2: reason, 3: reason, 4: reason, 5: refused[5]}
    assert "its type RESOURCE cannot be sent between devices" in refused[5]


def test_what_fills_a_variable_once_stays_with_its_readers() -> None:
    refused = _refusals(models.initialised())
    assert {index: refused[index] for index in range(2, 6)} == dict.fromkeys(range(2, 6), "both sides use variable /v")
    assert sorted(refused) == [2, 3, 4, 5, 6]


def test_hash_tables_stay_on_one_side() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    for number in (0, 1):
        options = models.tflite.HashtableOptionsT()
        options.tableId = 9
        handle, found = graph.tensor([1], type=RESOURCE), graph.tensor([1, 4])
        graph.op("HASHTABLE", [], [handle], options)
        graph.op("HASHTABLE_FIND", [handle, x, x], [found], models.tflite.HashtableFindOptionsT())
        x = graph.add(found, found, f"sum {number}")
    graph.output(x)
    refused = _refusals(draft.build())
    assert {index: refused[index] for index in (1, 2, 3)} == dict.fromkeys((1, 2, 3), "both sides use hash table 9")
    assert sorted(refused) == [1, 2, 3, 4]


def test_custom_operators_with_resources_are_kept_together() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    for _ in range(2):
        handle, result = graph.tensor([], type=RESOURCE), graph.tensor([1, 4])
        graph.op("FlexVarHandleOp", [], [handle], custom=True)
        graph.op("FlexReadVariableOp", [handle, x], [result], custom=True)
        x = graph.add(result, result)
    graph.output(x)
    refused = _refusals(draft.build())
    assert refused[2] == refused[3] == "both sides hold custom operators that may share a resource"


@pytest.mark.parametrize(("kind", "name"), [(STRING, "STRING"), (VARIANT, "VARIANT"), (INT4, "INT4"), (99, "type 99")])
def test_tensors_that_no_message_carries_may_not_cross(kind: int, name: str) -> None:
    refusal = _refusals(models.of_type(kind))[1]
    assert refusal == f"tensor middle would cross, and its type {name} cannot be sent between devices"


def test_sparse_empty_and_unranked_tensors_may_not_cross() -> None:
    def refusal(change) -> str:
        draft = models.Draft()
        graph = draft.graph()
        x = graph.input([1, 4], "x")
        middle = graph.add(x, x, "middle")
        change(graph.raw.tensors[middle])
        graph.output(graph.add(middle, middle))
        return _refusals(draft.build())[1]

    def sparse(raw) -> None:
        raw.sparsity = models.tflite.SparsityParametersT()

    def unranked(raw) -> None:
        raw.shape, raw.hasRank = raw.shape[:0], False

    assert refusal(sparse) == "tensor middle would cross, and it is sparse"
    assert refusal(unranked) == "tensor middle would cross, and the file does not say how many dimensions it has"


def test_unpacked_weights_never_cross() -> None:
    cuts = list_cuts(read_model(models.half_weights()))
    assert [cut.refusal for cut in cuts[:3]] == [
        "operators 0 to 0 only prepare constants",
        "operators 0 to 1 only prepare constants",
        "operators 0 to 2 only prepare constants",
    ]
    assert [cut.bytes for cut in cuts[3:]] == [24, 24]


def test_a_tensor_written_twice_or_never_filled_ties_its_operators() -> None:
    def twice(graph: models.GraphDraft) -> None:
        graph.raw.operators[1].outputs = graph.raw.operators[0].outputs.copy()

    def unfilled(graph: models.GraphDraft) -> None:
        loose = graph.tensor([1, 4], "loose")
        for operator in graph.raw.operators[:2]:
            operator.inputs[1] = loose

    def refused(change) -> dict[int, str]:
        draft = models.Draft()
        graph = draft.graph()
        x = graph.input([1, 4], "x")
        a = graph.add(x, x, "a")
        b = graph.add(x, x, "b")
        graph.output(graph.add(a, a, "c"), b)
        change(graph)
        return _refusals(draft.build())

    written = "tensor a is written more than once"
    assert refused(twice) == {1: written, 2: written}
    assert refused(unfilled) == {1: "both sides use loose, which nothing fills"}


def test_a_side_without_input_or_without_use_is_refused() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    random = graph.tensor([2], "random")
    shape = graph.const(models.np.array([2], models.np.int32))
    graph.op("RANDOM_UNIFORM", [shape], [random], models.tflite.RandomOptionsT())
    dead = graph.add(x, x, "dead")
    graph.output(graph.add(x, x, "alive"), random)
    assert dead
    refused = _refusals(draft.build())
    assert refused == {1: "operators 0 to 0 need no input, so nothing would start them"}
    model = read_model(draft.build())
    with pytest.raises(CutError, match="need no input"):
        slice_model(model, [1])


def test_two_legal_cuts_with_nothing_to_do_between_are_refused() -> None:
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    first = graph.add(x, x, "first")
    packed, unpacked = graph.const(models.np.ones((1, 4), models.np.float16)), graph.tensor([1, 4], "weights")
    graph.op("DEQUANTIZE", [packed], [unpacked], models.tflite.DequantizeOptionsT(), version=3)
    graph.output(graph.add(first, unpacked, "last"))
    model = read_model(draft.build())
    assert [cut.refusal for cut in list_cuts(model)] == [None, None]
    text = "cannot cut before both operator 1 and operator 2: operators 1 to 1 only prepare constants; leave one out"
    with pytest.raises(CutError, match=text):
        slice_model(model, [1, 2])


@pytest.mark.parametrize("index", [-1, 0, 4, 99])
def test_a_cut_out_of_range_says_what_is_legal(index: int) -> None:
    text = f"cut {index} is out of range; this model can be cut before operators 1 to 3"
    with pytest.raises(CutError, match=text):
        slice_model(read_model(models.chain()), [index])


def test_a_refused_cut_says_why() -> None:
    with pytest.raises(CutError, match=r"cannot cut before operator 1 \(ADD\): both sides use the recurrent state"):
        slice_model(read_model(models.recurrent(shared=True)), [1])


@pytest.mark.parametrize("square", ["SQUARE", "MUL"])
@pytest.mark.parametrize("reduction", ["MEAN", "SUM"])
def test_squares_and_their_mean_stay_together(square: str, reduction: str) -> None:
    """The runtime makes one operator of both, which rounds otherwise: slices would not give the bits of the whole."""
    model = read_model(models.layer_norm(square=square, reduction=reduction))
    refusals = {cut.index: cut.refusal for cut in list_cuts(model)}
    text = (
        f"{reduction} of the squares squares is rounded otherwise apart from them, since the runtime makes one "
        "operator of both"
    )
    assert refusals == {1: None, 2: text, 3: text, 4: None}


@pytest.mark.parametrize(("square", "reduction"), [("twice", "MEAN"), ("SQUARE", "REDUCE_MAX")])
def test_what_only_looks_like_the_mean_of_squares_is_cut(square: str, reduction: str) -> None:
    model = read_model(models.layer_norm(square=square, reduction=reduction))
    assert [cut.refusal for cut in list_cuts(model)] == [None] * 4
