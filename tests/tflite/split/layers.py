"""Convolutional models of any shape for tests of splits, float32 or quantised."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as tflite

from tests.tflite.models import FLOAT, INT8, Draft

UINT8, INT16 = tflite.TensorType.UINT8, tflite.TensorType.INT16
SAME, VALID = tflite.Padding.SAME, tflite.Padding.VALID
_NUMPY = {FLOAT: np.float32, INT8: np.int8, UINT8: np.uint8, INT16: np.int16}


class Layers:
    """A chain or graph of layers; every method returns the tensor that it makes."""

    def __init__(self, seed: int, shape: tuple[int, ...], type: int = FLOAT) -> None:
        self.rng, self.draft, self.type = np.random.default_rng(seed), Draft(), type
        self.graph = self.draft.graph()
        self.x = self.graph.input(shape, "x", type=type, quantization=self.scale())

    def scale(self) -> tuple[float, int] | None:
        """Return the scale of an activation: the same for all, as operators that move values ask for."""
        return {FLOAT: None, INT8: (0.05, -3), UINT8: (0.05, 120), INT16: (0.0005, 0)}[self.type]

    def shape(self, x: int) -> list[int]:
        return [int(n) for n in self.graph.raw.tensors[x].shape]

    def tensor(self, shape: Any, name: str | None = None) -> int:
        return self.graph.tensor(shape, name, type=self.type, quantization=self.scale())

    def weights(self, shape: tuple[int, ...], filters: int, axis: int) -> tuple[int, int]:
        """Return weights and bias, quantised per channel; uint8 has one scale, as its kernels ask for."""
        fan = int(np.prod(shape)) // filters
        if self.type == FLOAT:
            data = self.rng.standard_normal(shape).astype(np.float32) / np.float32(fan**0.5)
            return self.graph.const(data), self.graph.const(self.rng.standard_normal(filters).astype(np.float32))
        input_scale = self.scale()[0]  # type: ignore[index]
        if self.type == UINT8:
            weights = self.graph.const(
                self.rng.integers(0, 256, shape).astype(np.uint8), quantization=(0.02 / fan**0.5, 128)
            )
            bias = self.rng.integers(-300, 300, filters).astype(np.int32)
            return weights, self.graph.const(bias, quantization=(0.02 / fan**0.5 * input_scale, 0))
        scales = self.rng.uniform(0.005, 0.02, filters).astype(np.float32) / np.float32(fan**0.5)
        zeros = np.zeros(filters)
        data = self.rng.integers(-127, 128, shape).astype(np.int8)
        weights = self.graph.const(data, quantization=(scales, zeros), axis=axis)
        bias = self.rng.integers(-300, 300, filters).astype(np.int64 if self.type == INT16 else np.int32)
        return weights, self.graph.const(bias, quantization=(scales * np.float32(input_scale), zeros))

    def conv(
        self, x: int, filters: int, kernel: Any = 3, stride: Any = 1, padding: int = SAME, dilation: int = 1
    ) -> int:
        (kh, kw), (sh, sw) = _pair(kernel), _pair(stride)
        n, h, w, c = self.shape(x)
        weights, bias = self.weights((filters, kh, kw, c), filters, 0)
        options = tflite.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = padding, sh, sw
        options.dilationHFactor = options.dilationWFactor = dilation
        options.fusedActivationFunction = tflite.ActivationFunctionType.RELU
        result = self.tensor([n, _size(h, kh, sh, padding, dilation), _size(w, kw, sw, padding, dilation), filters])
        self.graph.op("CONV_2D", [x, weights, bias], [result], options, version=3)
        return result

    def depthwise(self, x: int, kernel: Any = 3, stride: int = 1, padding: int = SAME, dilation: int = 1) -> int:
        kh, kw = _pair(kernel)
        n, h, w, c = self.shape(x)
        weights, bias = self.weights((1, kh, kw, c), c, 3)
        options = tflite.DepthwiseConv2DOptionsT()
        options.padding, options.strideH, options.strideW, options.depthMultiplier = padding, stride, stride, 1
        options.dilationHFactor = options.dilationWFactor = dilation
        result = self.tensor([n, _size(h, kh, stride, padding, dilation), _size(w, kw, stride, padding, dilation), c])
        self.graph.op("DEPTHWISE_CONV_2D", [x, weights, bias], [result], options, version=3)
        return result

    def pool(self, x: int, kind: str = "MAX", kernel: Any = 2, stride: Any = 2, padding: int = VALID) -> int:
        (kh, kw), (sh, sw) = _pair(kernel), _pair(stride)
        n, h, w, c = self.shape(x)
        options = tflite.Pool2DOptionsT()
        options.padding, options.strideH, options.strideW = padding, sh, sw
        options.filterHeight, options.filterWidth = kh, kw
        result = self.tensor([n, _size(h, kh, sh, padding), _size(w, kw, sw, padding), c])
        self.graph.op(f"{kind}_POOL_2D", [x], [result], options, version=2)
        return result

    def add(self, a: int, b: int) -> int:
        result = self.tensor(self.shape(a))
        options = tflite.AddOptionsT()
        options.potScaleInt16 = False
        self.graph.op("ADD", [a, b], [result], options, version=2)
        return result

    def concat(self, *parts: int, axis: int = 3) -> int:
        shape = self.shape(parts[0])
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        options, result = tflite.ConcatenationOptionsT(), self.tensor(shape)
        options.axis = axis
        self.graph.op("CONCATENATION", parts, [result], options, version=2)
        return result

    def pad(self, x: int, *rows: tuple[int, int]) -> int:
        result = self.tensor([n + a + b for n, (a, b) in zip(self.shape(x), rows, strict=True)])
        self.graph.op("PAD", [x, self.graph.const(np.array(rows, np.int32))], [result], tflite.PadOptionsT(), version=2)
        return result

    def resize(self, x: int, factor: int, *, linear: bool, half: bool) -> int:
        n, h, w, c = self.shape(x)
        options = tflite.ResizeBilinearOptionsT() if linear else tflite.ResizeNearestNeighborOptionsT()
        options.halfPixelCenters, options.alignCorners = half, False
        result = self.tensor([n, h * factor, w * factor, c])
        name = "RESIZE_BILINEAR" if linear else "RESIZE_NEAREST_NEIGHBOR"
        sizes = self.graph.const(np.array([h * factor, w * factor], np.int32))
        self.graph.op(name, [x, sizes], [result], options, version=3)
        return result

    def transposed(self, x: int, filters: int, kernel: int, stride: int, padding: int = SAME) -> int:
        n, h, w, c = self.shape(x)
        weights, _ = self.weights((filters, kernel, kernel, c), filters, 0)
        sizes = [(m * stride) if padding == SAME else (m - 1) * stride + kernel for m in (h, w)]
        options, result = tflite.TransposeConvOptionsT(), self.tensor([n, *sizes, filters])
        options.padding, options.strideH, options.strideW = padding, stride, stride
        shape = self.graph.const(np.array([n, *sizes, filters], np.int32))
        self.graph.op("TRANSPOSE_CONV", [shape, weights, x], [result], options, version=2)
        return result

    def unary(self, x: int, name: str, options: Any = None, shape: Any = None, version: int = 1) -> int:
        result = self.tensor(shape or self.shape(x))
        self.graph.op(name, [x], [result], options, version=version)
        return result

    def reshape(self, x: int, shape: Any) -> int:
        result = self.tensor(shape)
        sizes = self.graph.const(np.array(shape, np.int32))
        self.graph.op("RESHAPE", [x, sizes], [result], tflite.ReshapeOptionsT())
        return result

    def scores(self, x: int) -> int:
        """Return sums over all of a tensor, so that the result of a model needs all rows."""
        count = int(np.prod(self.shape(x)))
        return self.reshape(x, [1, count])

    def build(self, *outputs: int) -> bytes:
        self.graph.output(*outputs)
        return self.draft.build()

    def window(self, seed: int = 1) -> np.ndarray:
        shape, rng = self.shape(self.x), np.random.default_rng(seed)
        if self.type == FLOAT:
            return rng.standard_normal(shape).astype(np.float32)
        info = np.iinfo(_NUMPY[self.type])
        return rng.integers(info.min, info.max + 1, shape).astype(_NUMPY[self.type])


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return -(-size // stride) if padding == SAME else (size - (kernel - 1) * dilation - 1) // stride + 1
