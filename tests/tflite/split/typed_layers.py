"""Models of one or a few operators in each type of numbers, to split and to compare with the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.tflite.models import FLOAT, Draft, GraphDraft, tflite

TYPES = {
    "float32": FLOAT,
    "float16": FLOAT,
    "int8": tflite.TensorType.INT8,
    "uint8": tflite.TensorType.UINT8,
    "int16": tflite.TensorType.INT16,
}
NONE, RELU = tflite.ActivationFunctionType.NONE, tflite.ActivationFunctionType.RELU
RELU6, RELU_N1_TO_1 = tflite.ActivationFunctionType.RELU6, tflite.ActivationFunctionType.RELU_N1_TO_1
SAME, VALID = tflite.Padding.SAME, tflite.Padding.VALID


def options(kind: str, **values: Any) -> Any:
    """Return an options object of the schema."""
    result = getattr(tflite, f"{kind}OptionsT")()
    for name, value in values.items():
        setattr(result, name, value)
    return result


class LayerDraft:
    """A model in the making whose tensors all have one type of numbers; float16 stands for weights only."""

    def __init__(self, dtype: str, seed: int = 0, zero: int | None = None) -> None:
        self.zero = {"int8": -3, "uint8": 120}.get(dtype, 0) if zero is None else zero
        self.dtype, self.rng, self.draft = dtype, np.random.default_rng(seed), Draft()
        self.graph: GraphDraft = self.draft.graph()

    @property
    def integer(self) -> bool:
        return self.dtype in ("int8", "uint8", "int16")

    def input(self, shape: Sequence[int], name: str = "x", **more: Any) -> int:
        return self.graph.input(shape, name, **self._kind(0.05), **more)

    def result(self, shape: Sequence[int], scale: float = 0.4, name: str | None = None, **more: Any) -> int:
        return self.graph.tensor(shape, name, **self._kind(scale), **more)

    def _kind(self, scale: float) -> dict[str, Any]:
        if not self.integer:
            return {"type": FLOAT}
        step = scale / (256 if self.dtype == "int16" else 1)
        return {"type": TYPES[self.dtype], "quantization": (step, self.zero)}

    def scale(self, tensor: int) -> float:
        return float(self.graph.raw.tensors[tensor].quantization.scale[0])

    def weights(self, shape: Sequence[int], axis: int) -> int:
        """Return weights with a scale per channel (int8), one for all (uint8), or behind DEQUANTIZE (float16)."""
        if self.integer:
            count = shape[axis] if self.dtype in ("int8", "int16") else 1
            scales = self.rng.uniform(0.002, 0.02, count).astype(np.float32)
            zeros = np.full(count, 0 if self.dtype != "uint8" else 131)
            low, high = (0, 256) if self.dtype == "uint8" else (-127, 128)
            values = self.rng.integers(low, high, shape).astype("uint8" if self.dtype == "uint8" else "int8")
            return self.graph.const(values, quantization=(scales, zeros), axis=axis)
        values = self.rng.standard_normal(shape)
        if self.dtype == "float32":
            return self.graph.const(values.astype(np.float32))
        unpacked = self.graph.tensor(shape, type=FLOAT)
        packed = self.graph.const(values.astype(np.float16))
        self.graph.op("DEQUANTIZE", [packed], [unpacked], options("Dequantize"), version=3)
        return unpacked

    def bias(self, count: int, x: int, weights: int) -> int:
        if not self.integer:
            values = self.rng.standard_normal(count).astype(np.float32)
            if self.dtype == "float32":
                return self.graph.const(values)
            unpacked = self.graph.tensor([count], type=FLOAT)
            packed = self.graph.const(values.astype(np.float16))
            self.graph.op("DEQUANTIZE", [packed], [unpacked], options("Dequantize"), version=3)
            return unpacked
        scales = self.graph.raw.tensors[weights].quantization.scale * np.float32(self.scale(x))
        values = self.rng.integers(-3000, 3000, count)
        kind = np.int64 if self.dtype == "int16" else np.int32
        return self.graph.const(values.astype(kind), quantization=(scales, np.zeros(len(scales))))

    def constant(self, shape: Sequence[int]) -> int:
        """Return a constant that an element-wise operator takes."""
        if not self.integer:
            return self.graph.const(self.rng.standard_normal(shape).astype(np.float32))
        limits = np.iinfo(self.dtype)
        values = self.rng.integers(limits.min, limits.max, shape).astype(self.dtype)
        kind = self._kind(0.03)
        return self.graph.const(values, quantization=kind["quantization"])

    def build(self, *outputs: int) -> bytes:
        self.graph.output(*outputs)
        return self.draft.build()

    # Layers: each takes a tensor and returns its result.

    def shape(self, tensor: int) -> list[int]:
        return [int(n) for n in self.graph.raw.tensors[tensor].shape]

    def dense(self, x: int, units: int, *, act: int = 0, bias: bool = True, **more: Any) -> int:
        weights = self.weights((units, self.shape(x)[-1]), 0)
        bias_tensor = self.bias(units, x, weights) if bias else -1
        result = self.result([*self.shape(x)[:-1], units], _fitting(act, 3.0))
        made = options("FullyConnected", fusedActivationFunction=act, **more)
        self.graph.op("FULLY_CONNECTED", [x, weights, bias_tensor], [result], made, version=4)
        return result

    def conv(
        self,
        x: int,
        filters: int,
        kernel: int = 3,
        *,
        groups: int = 1,
        stride: int = 1,
        act: int = 0,
        dilation: int = 1,
    ) -> int:
        batch, height, width, channels = self.shape(x)
        weights = self.weights((filters, kernel, kernel, channels // groups), 0)
        size = [-(-height // stride), -(-width // stride)]
        result = self.result([batch, *size, filters], _fitting(act, 4.0))
        made = options(
            "Conv2D", padding=SAME, strideH=stride, strideW=stride, fusedActivationFunction=act,
            dilationHFactor=dilation, dilationWFactor=dilation,
        )  # fmt: skip
        self.graph.op("CONV_2D", [x, weights, self.bias(filters, x, weights)], [result], made, version=5)
        return result

    def depthwise(self, x: int, multiplier: int = 1, kernel: int = 3, *, act: int = 0) -> int:
        batch, height, width, channels = self.shape(x)
        weights = self.weights((1, kernel, kernel, channels * multiplier), 3)
        result = self.result([batch, height, width, channels * multiplier], _fitting(act, 2.0))
        made = options(
            "DepthwiseConv2D", padding=SAME, strideH=1, strideW=1, depthMultiplier=multiplier,
            fusedActivationFunction=act,
        )  # fmt: skip
        bias = self.bias(channels * multiplier, x, weights)
        self.graph.op("DEPTHWISE_CONV_2D", [x, weights, bias], [result], made, version=4)
        return result

    def transposed(self, x: int, filters: int, *, bias: bool = True) -> int:
        batch, height, width, channels = self.shape(x)
        weights = self.weights((filters, 3, 3, channels), 0)
        size = [batch, 2 * height, 2 * width, filters]
        shape, result = self.graph.const(np.array(size, np.int32)), self.result(size, 4.0)
        inputs = [shape, weights, x, *([self.bias(filters, x, weights)] if bias else [])]
        made = options("TransposeConv", padding=SAME, strideH=2, strideW=2)
        self.graph.op("TRANSPOSE_CONV", inputs, [result], made, version=3 if bias else 1)
        return result

    def conv_3d(self, x: int, filters: int, *, act: int = 0) -> int:
        batch, depth, height, width, channels = self.shape(x)
        weights = self.weights((3, 3, 3, channels, filters), 4)
        result = self.result([batch, depth, height, width, filters])
        made = options("Conv3D", padding=SAME, strideD=1, strideH=1, strideW=1, fusedActivationFunction=act)
        self.graph.op("CONV_3D", [x, weights, self.bias(filters, x, weights)], [result], made)
        return result

    def product(self, a: int, b: int, shape: Sequence[int], *, x: bool = False, y: bool = False) -> int:
        result = self.result(shape, 2.0)
        self.graph.op("BATCH_MATMUL", [a, b], [result], options("BatchMatMul", adjX=x, adjY=y), version=2)
        return result

    def pool(self, x: int, kind: str = "MAX_POOL_2D") -> int:
        batch, height, width, channels = self.shape(x)
        like = self.graph.raw.tensors[x].quantization
        more = {} if like is None else {"quantization": (like.scale, like.zeroPoint)}
        result = self.graph.tensor([batch, height // 2, width // 2, channels], type=TYPES[self.dtype], **more)
        made = options("Pool2D", padding=VALID, strideH=2, strideW=2, filterHeight=2, filterWidth=2)
        self.graph.op(kind, [x], [result], made, version=2)
        return result

    def binary(self, kind: str, a: int, b: int, *, act: int = 0) -> int:
        result = self.result(self.shape(a), 0.2)
        made = options(kind.title(), fusedActivationFunction=act)
        self.graph.op(kind, [a, b], [result], made, version=2)
        return result

    def unary(self, kind: str, x: int, made: Any = None, *more: int, shape: Sequence[int] | None = None) -> int:
        like = self.graph.raw.tensors[x].quantization
        quantization = {} if like is None else {"quantization": (like.scale, like.zeroPoint)}
        sizes = self.shape(x) if shape is None else shape
        result = self.graph.tensor(sizes, type=TYPES[self.dtype], **quantization)
        version = 1 if kind in ("RESHAPE", "LOCAL_RESPONSE_NORMALIZATION") else 2
        self.graph.op(kind, [x, *more], [result], made, version=version)
        return result


def _fitting(act: int, scale: float) -> float:
    """Return a scale that has many steps within the limits of an activation."""
    return 0.05 if act == RELU6 else scale
