"""A parity shard stands in for any one share: integers bit for bit, floats within the stated bound."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from har_edge.errors import CutError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.split_check import RegionStore
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.decoding import decode_share
from har_edge.tflite.model import read_model
from har_edge.tflite.split.block import StepDraft
from har_edge.tflite.split.parity import CodedSplit, float_bound
from har_edge.tflite.split.plan import Block, SplitMethod
from tests.tflite.models import chain
from tests.tflite.split.agreement import even, uneven
from tests.tflite.split.typed_layers import RELU, RELU6, LayerDraft, options

SHARES = (even(12, 2), even(12, 3), even(12, 5), even(12, 12), uneven(12, 4), (0, 1, 12), (0, 0, 7, 12))


def dense(draft: LayerDraft) -> int:
    return draft.dense(draft.input([1, 37]), 12, act=RELU)


def dense_of_rows(draft: LayerDraft) -> int:
    return draft.dense(draft.input([1, 5, 16]), 12, keepNumDims=True)


def conv(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 9, 7, 5]), 12, act=RELU6)


def conv_wide(draft: LayerDraft) -> int:
    return draft.conv(draft.input([1, 4, 4, 300]), 12)


def transposed(draft: LayerDraft) -> int:
    return draft.transposed(draft.input([1, 4, 5, 6]), 12)


def conv_3d(draft: LayerDraft) -> int:
    return draft.conv_3d(draft.input([1, 4, 5, 6, 3]), 12, act=RELU)


def run(step: StepDraft, values: dict[str, np.ndarray]) -> np.ndarray:
    store = RegionStore(values)
    taken = {spec.name: store.get(spec) for spec in step.inputs}
    return Interpreter(bytes(step.write())).run(taken)[step.outputs[0].name]


class Group:
    """All shards of one operator with their parity, on one window."""

    def __init__(self, layer: Callable[[LayerDraft], int], dtype: str, bounds: tuple[int, ...]) -> None:
        draft = LayerDraft(dtype)
        self.content = draft.build(layer(draft))
        self.model = read_model(self.content)
        last = len(self.model.main.operators)
        first = sum(operator.name == "DEQUANTIZE" for operator in self.model.main.operators)
        block = Block(first, last, SplitMethod.OUTPUT, bounds)
        self.split = CodedSplit(self.model, trace_dataflow(self.model), block)
        whole = Interpreter(self.content)
        values = sample(whole.inputs, np.random.default_rng(3))
        (self.whole,) = whole.run(values).values()
        self.values = values
        self.sums = [run(self.split.share_step(k), values) for k in range(len(self.split.shares))]
        self.parity = run(self.split.parity_step(), values)

    def decode(self, missing: int) -> np.ndarray:
        return self.split.decode(missing, self.parity, {k: one for k, one in enumerate(self.sums) if k != missing})

    def finish(self, sums: list[np.ndarray]) -> np.ndarray:
        step = self.split.finish_step()
        return run(step, {step.inputs[0].name: np.concatenate(sums, self.split.axis)})


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("layer", [dense, dense_of_rows, conv, conv_wide, transposed])
def test_any_share_of_integers_is_decoded_to_the_bit(layer: Callable[[LayerDraft], int], dtype: str) -> None:
    for bounds in SHARES:
        group = Group(layer, dtype, bounds)
        assert group.parity.dtype == np.int32
        assert group.finish(group.sums).tobytes() == group.whole.tobytes(), bounds
        for missing, share in enumerate(group.sums):
            assert group.decode(missing).tobytes() == share.tobytes(), (bounds, missing)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layer", [dense, dense_of_rows, conv, conv_wide, transposed, conv_3d])
def test_any_share_of_floats_is_decoded_within_the_bound(layer: Callable[[LayerDraft], int], dtype: str) -> None:
    for bounds in SHARES:
        group = Group(layer, dtype, bounds)
        view = group.split.view
        products = (
            view.extent
            * int(np.prod(group.split.weights.shape))
            // (view.extent * group.split.weights.shape[view.places.filters_axis])
        )
        values = float(np.abs(next(iter(group.values.values()))).max())
        weights = float(np.abs(group.split.weights.astype(np.float64)).max())
        magnitude = len(group.sums) * (products * values * weights + max(float(np.abs(s).max()) for s in group.sums))
        limit = float_bound(products, len(group.sums), magnitude)
        largest = max(float(np.abs(one).max()) for one in group.sums)
        for missing, share in enumerate(group.sums):
            gap = float(np.abs(group.decode(missing) - share).max())
            assert gap <= limit and gap / largest < 1e-5, (bounds, missing, gap)
        assert np.abs(group.finish(group.sums) - group.whole).max() <= 1e-5 * np.abs(group.whole).max()


def test_a_parity_costs_as_much_as_the_largest_share() -> None:
    group = Group(conv, "float32", (0, 3, 8, 12))
    macs = [group.split.share_step(k).macs for k in range(3)]
    assert macs == [63 * 9 * 5 * size for size in (3, 5, 4)] and group.split.parity_step().macs == max(macs)
    (spec,) = group.split.parity_step().outputs
    assert spec.shape == (1, 9, 7, 5) and spec.region is not None and spec.region.parity == (0, 3, 8, 12)


def test_sums_that_leave_32_bits_wrap_around_and_are_decoded() -> None:
    shares = {0: np.array([[2**31 - 1, 5]], np.int32), 1: np.array([[7]], np.int32)}
    with np.errstate(over="ignore"):
        parity = shares[0].copy()
        parity[:, :1] += shares[1]
    assert np.array_equal(decode_share([2, 1], 0, parity, {1: shares[1]}, 1), shares[0])
    assert np.array_equal(decode_share([2, 1], 1, parity, {0: shares[0]}, 1), shares[1])


@pytest.mark.parametrize(
    ("layer", "bounds", "said"),
    [
        (lambda d: d.depthwise(d.input([1, 4, 4, 12])), (0, 6, 12), "(DEPTHWISE_CONV_2D) adds no products"),
        (lambda d: d.dense(d.dense(d.input([1, 9]), 8), 12), (0, 6, 12), "expected one linear operator"),
        (dense, (0, 6, 11), "expected some that add up to its 12 output channels"),
        (
            lambda d: d.product(d.input([1, 2, 5, 8], "a"), d.input([1, 2, 8, 12], "b"), [1, 2, 5, 12]),
            (0, 6, 12),
            "(BATCH_MATMUL) has no weights to add",
        ),
    ],
)
def test_what_has_no_parity_is_refused(layer: Callable[[LayerDraft], int], bounds: tuple[int, ...], said: str) -> None:
    with pytest.raises(CutError) as error:
        Group(layer, "float32", bounds)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("missing", "others"), [(0, {}), (0, {0: [1.0, 2.0], 1: [1.0]}), (1, {0: [1.0]}), (2, {0: [1.0, 2.0], 1: [1.0]})]
)
def test_too_few_or_wrong_shares_are_refused(missing: int, others: dict[int, list[float]]) -> None:
    with pytest.raises(CutError, match="came to decode share"):
        decode_share([2, 1], missing, np.zeros(2), {k: np.array(one) for k, one in others.items()}, 0)


def test_weights_that_come_with_the_window_have_no_parity() -> None:
    draft = LayerDraft("float32")
    result = draft.result([1, 5])
    inputs = [draft.input([1, 9], "x"), draft.input([5, 9], "w"), -1]
    draft.graph.op("FULLY_CONNECTED", inputs, [result], options("FullyConnected"))
    model = read_model(draft.build(result))
    with pytest.raises(CutError, match="weights that another operator computes"):
        CodedSplit(model, trace_dataflow(model), Block(0, 1, SplitMethod.OUTPUT, (0, 2, 5)))


def test_a_share_gives_a_region_of_the_sums() -> None:
    model = read_model(chain())
    split = CodedSplit(model, trace_dataflow(model), Block(1, 2, SplitMethod.OUTPUT, (0, 2, 5)))
    assert [spec.name for spec in split.share_step(1).outputs] == [f"{split.sums}[1:2:5]"]
