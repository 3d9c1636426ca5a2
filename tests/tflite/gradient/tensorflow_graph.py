"""Run a .tflite graph with TensorFlow's operators, so that TensorFlow differentiates it: the oracle of the rules.

It reads the same file as the rules do, so weights need no matching by name. Tests that use it compare its forward pass
with LiteRT's first: a wrong translation here shows there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from har_edge.tflite.gradient.weights import list_weights
from har_edge.tflite.model import Model, Operator, Tensor
from har_edge.tflite.schema import tflite

Values = list[Any]
Operation = Callable[[Values, Any], Any]

_ACTIVATIONS: dict[int, Callable[[Any], Any]] = {
    tflite.ActivationFunctionType.NONE: lambda x: x,
    tflite.ActivationFunctionType.RELU: tf.nn.relu,
    tflite.ActivationFunctionType.RELU_N1_TO_1: lambda x: tf.minimum(tf.maximum(x, -1.0), 1.0),
    tflite.ActivationFunctionType.RELU6: tf.nn.relu6,
    tflite.ActivationFunctionType.TANH: tf.tanh,
}


class TensorFlowGraph:
    """Holds the float constants as variables of `dtype`; `run` gives every tensor.

    Converters store equal constants once. A weight that `find_weights` takes apart has a variable for each place.
    """

    def __init__(self, model: Model, dtype: str = "float32") -> None:
        self.model, self.constants, self.dtype = model, dict[int, Any](), dtype
        self.variables: dict[str, Any] = {}
        for tensor in model.main.tensors:
            if tensor.constant:
                value = _values(model, tensor)
                if tensor.dtype == "float32":
                    value = self.variables[tensor.name] = tf.Variable(tf.cast(value, dtype))
                self.constants[tensor.index] = value
        self.places: dict[tuple[int, int], Any] = {}
        for weight in list_weights(model):
            tensor = model.main.tensors[weight.tensor]
            if weight.name != tensor.name:
                self.variables[weight.name] = tf.Variable(tf.cast(_values(model, tensor), dtype))
                self.places.update(dict.fromkeys(weight.uses, self.variables[weight.name]))

    def run(self, inputs: Mapping[str, Any]) -> dict[int, Any]:
        """Return the values of all tensors by index; `inputs` are by name."""
        main = self.model.main
        values = {**self.constants, **{i: inputs[main.tensors[i].name] for i in main.inputs}}
        for operator in main.operators:
            for index, value in zip(operator.outputs, self._step(operator, values), strict=True):
                values[index] = value
        return values

    def _step(self, operator: Operator, values: Mapping[int, Any]) -> Sequence[Any]:
        options = operator.raw.builtinOptions
        fed = [
            None if index < 0 else self.places.get((operator.index, position), values[int(index)])
            for position, index in enumerate(operator.raw.inputs)
        ]
        found = OPERATIONS[operator.name](fed, options)
        results = list(found) if isinstance(found, (list, tuple)) else [found]
        activation = getattr(options, "fusedActivationFunction", 0)
        return [_ACTIVATIONS[activation](result) for result in results] if activation else results

    def differentiate(
        self, inputs: Mapping[str, NDArray[Any]], score: Callable[[Mapping[int, Any]], Any]
    ) -> tuple[float, dict[int, Any], dict[str, NDArray[Any]]]:
        """Return a score of the tensors, all tensors, and the gradients of inputs and float constants by name."""
        fed = {name: tf.constant(value) for name, value in inputs.items()}
        fed = {name: tf.cast(one, self.dtype) if one.dtype == tf.float32 else one for name, one in fed.items()}
        sources = {**self.variables, **{name: one for name, one in fed.items() if one.dtype == self.dtype}}
        with tf.GradientTape() as tape:
            tape.watch(list(fed.values()))
            values = self.run(fed)
            total = score(values)
        found = tape.gradient(total, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return float(total), values, {name: np.asarray(tf.convert_to_tensor(one)) for name, one in found.items()}

    def gradients(
        self, inputs: Mapping[str, NDArray[Any]], upstream: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Return the outputs by name, and the gradients of sum(output * upstream) by the name of input or constant."""
        names = {index: self.model.main.tensors[index].name for index in self.model.main.outputs}

        def score(values: Mapping[int, Any]) -> Any:
            return tf.add_n(
                [tf.reduce_sum(values[i] * upstream[name]) for i, name in names.items() if name in upstream]
            )

        _, values, found = self.differentiate(inputs, score)
        return {name: np.asarray(values[index]) for index, name in names.items()}, found


def _values(model: Model, tensor: Tensor) -> Any:
    data = model.buffers[tensor.raw.buffer]
    assert data is not None
    assert tensor.dtype is not None
    return tf.constant(data.view(tensor.dtype).reshape(tensor.shape))


def _padding(options: Any) -> str:
    return "SAME" if options.padding == tflite.Padding.SAME else "VALID"


def _convolution(fed: Values, options: Any) -> Any:
    x, weights, *bias = fed
    kernel = tf.transpose(weights, [1, 2, 3, 0])
    strides, dilations = [options.strideH, options.strideW], [options.dilationHFactor, options.dilationWFactor]
    y = tf.nn.convolution(x, kernel, strides, _padding(options), dilations=dilations)
    return y + bias[0] if bias and bias[0] is not None else y


def _volume(fed: Values, options: Any) -> Any:
    x, weights, *bias = fed
    y = tf.nn.conv3d(x, weights, [1, options.strideD, options.strideH, options.strideW, 1], _padding(options))
    return y + bias[0] if bias and bias[0] is not None else y


def _local_response(fed: Values, options: Any) -> Any:
    return tf.nn.local_response_normalization(fed[0], options.radius, options.bias, options.alpha, options.beta)


def _depthwise(fed: Values, options: Any) -> Any:
    x, weights, *bias = fed
    _, height, width, channels = weights.shape
    kernel = tf.reshape(weights, [height, width, x.shape[-1], channels // x.shape[-1]])
    dilations = [options.dilationHFactor, options.dilationWFactor]
    strides = [1, options.strideH, options.strideW, 1]
    y = tf.nn.depthwise_conv2d(x, kernel, strides, _padding(options), dilations=dilations)
    return y + bias[0] if bias and bias[0] is not None else y


def _transposed(fed: Values, options: Any) -> Any:
    shape, weights, x, *bias = fed
    kernel = tf.transpose(weights, [1, 2, 0, 3])
    y = tf.nn.conv2d_transpose(x, kernel, shape, [1, options.strideH, options.strideW, 1], _padding(options))
    return y + bias[0] if bias and bias[0] is not None else y


def _dense(fed: Values, options: Any) -> Any:
    x, weights, *bias = fed
    y = tf.matmul(tf.reshape(x, [-1, weights.shape[1]]), weights, transpose_b=True)
    if options.keepNumDims:
        y = tf.reshape(y, [*x.shape[:-1], weights.shape[0]])
    return y + bias[0] if bias and bias[0] is not None else y


def _pool(kind: Any) -> Operation:
    def run(fed: Values, options: Any) -> Any:
        size, strides = [options.filterHeight, options.filterWidth], [options.strideH, options.strideW]
        return kind(fed[0], size, strides, _padding(options))

    return run


def _strided_slice(fed: Values, options: Any) -> Any:
    return tf.strided_slice(
        *fed,
        begin_mask=options.beginMask,
        end_mask=options.endMask,
        ellipsis_mask=options.ellipsisMask,
        new_axis_mask=options.newAxisMask,
        shrink_axis_mask=options.shrinkAxisMask,
    )


def _resize(kind: str) -> Operation:
    def run(fed: Values, options: Any) -> Any:
        function = getattr(tf.raw_ops, kind)
        return function(
            images=fed[0], size=fed[1], align_corners=options.alignCorners, half_pixel_centers=options.halfPixelCenters
        )

    return run


def _reduction(function: Any) -> Operation:
    return lambda fed, options: function(fed[0], axis=tf.reshape(fed[1], [-1]), keepdims=options.keepDims)


def _split(fed: Values, options: Any) -> Any:
    return tf.split(fed[1], options.numSplits, axis=int(fed[0].numpy().reshape(())))


def _split_v(fed: Values, options: Any) -> Any:
    return tf.split(fed[0], fed[1].numpy().tolist(), axis=int(fed[2].numpy().reshape(())))


def _squeeze(fed: Values, options: Any) -> Any:
    return tf.squeeze(fed[0], None if options.squeezeDims is None else [int(i) for i in options.squeezeDims])


def _mirror(fed: Values, options: Any) -> Any:
    mode = "REFLECT" if options.mode == tflite.MirrorPadMode.REFLECT else "SYMMETRIC"
    return tf.pad(fed[0], fed[1], mode=mode)


def _reshape(fed: Values, options: Any) -> Any:
    return tf.reshape(fed[0], fed[1] if len(fed) > 1 and fed[1] is not None else [int(n) for n in options.newShape])


def _prelu(fed: Values, options: Any) -> Any:
    return tf.nn.relu(fed[0]) - fed[1] * tf.nn.relu(-fed[0])


def _block(function: Any) -> Operation:
    return lambda fed, options: function(fed[0], options.blockSize)


def _batch_matmul(fed: Values, options: Any) -> Any:
    return tf.matmul(fed[0], fed[1], transpose_a=bool(options.adjX), transpose_b=bool(options.adjY))


def _one(function: Any) -> Operation:
    return lambda fed, options: function(*fed)


_ELEMENTWISE: dict[str, Any] = {
    "ADD": tf.add,
    "ADD_N": lambda *x: tf.add_n(list(x)),
    "SUB": tf.subtract,
    "MUL": tf.multiply,
    "DIV": tf.divide,
    "POW": tf.pow,
    "MAXIMUM": tf.maximum,
    "MINIMUM": tf.minimum,
    "SQUARED_DIFFERENCE": tf.math.squared_difference,
    "RELU": tf.nn.relu,
    "RELU6": tf.nn.relu6,
    "RELU_N1_TO_1": lambda x: tf.minimum(tf.maximum(x, -1.0), 1.0),
    "RELU_0_TO_1": lambda x: tf.minimum(tf.maximum(x, 0.0), 1.0),
    "ELU": tf.nn.elu,
    "LOGISTIC": tf.sigmoid,
    "TANH": tf.tanh,
    "HARD_SWISH": lambda x: x * tf.nn.relu6(x + 3.0) / 6.0,
    "LOG_SOFTMAX": tf.nn.log_softmax,
    "SQUARE": tf.square,
    "SQRT": tf.sqrt,
    "RSQRT": tf.math.rsqrt,
    "EXP": tf.exp,
    "LOG": tf.math.log,
    "ABS": tf.abs,
    "NEG": tf.negative,
    "SIN": tf.sin,
    "COS": tf.cos,
    "PAD": tf.pad,
    "PADV2": lambda x, paddings, value: tf.pad(x, paddings, constant_values=tf.reshape(value, [])),
    "TRANSPOSE": tf.transpose,
    "SLICE": tf.slice,
    "TILE": tf.tile,
    "BROADCAST_TO": tf.broadcast_to,
    "EXPAND_DIMS": lambda x, axis: tf.expand_dims(x, int(axis.numpy().reshape(()))),
    "SPACE_TO_BATCH_ND": tf.space_to_batch_nd if hasattr(tf, "space_to_batch_nd") else tf.space_to_batch,
    "BATCH_TO_SPACE_ND": lambda x, block, crops: tf.raw_ops.BatchToSpaceND(input=x, block_shape=block, crops=crops),
    "REVERSE_V2": tf.reverse,
    "SELECT": tf.where,
    "SELECT_V2": tf.where,
}

OPERATIONS: dict[str, Operation] = {
    **{name: _one(function) for name, function in _ELEMENTWISE.items()},
    "CONV_2D": _convolution,
    "CONV_3D": _volume,
    "LOCAL_RESPONSE_NORMALIZATION": _local_response,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _dense,
    "BATCH_MATMUL": _batch_matmul,
    "MAX_POOL_2D": _pool(tf.nn.max_pool2d),
    "AVERAGE_POOL_2D": _pool(tf.nn.avg_pool2d),
    "L2_NORMALIZATION": lambda fed, options: fed[0] / tf.sqrt(tf.maximum(tf.reduce_sum(fed[0] ** 2, -1, True), 1e-12)),
    "LEAKY_RELU": lambda fed, options: tf.nn.leaky_relu(fed[0], options.alpha),
    "PRELU": _prelu,
    "GELU": lambda fed, options: tf.nn.gelu(fed[0], bool(options.approximate)),
    "SOFTMAX": lambda fed, options: tf.nn.softmax(fed[0] * options.beta),
    "MEAN": _reduction(tf.reduce_mean),
    "SUM": _reduction(tf.reduce_sum),
    "REDUCE_MAX": _reduction(tf.reduce_max),
    "REDUCE_MIN": _reduction(tf.reduce_min),
    "REDUCE_PROD": _reduction(tf.reduce_prod),
    "MIRROR_PAD": _mirror,
    "CONCATENATION": lambda fed, options: tf.concat(fed, options.axis),
    "RESHAPE": _reshape,
    "SQUEEZE": _squeeze,
    "STRIDED_SLICE": _strided_slice,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "PACK": lambda fed, options: tf.stack(fed, options.axis),
    "UNPACK": lambda fed, options: tf.unstack(fed[0], options.num, options.axis),
    "GATHER": lambda fed, options: tf.gather(fed[0], fed[1], axis=options.axis, batch_dims=options.batchDims),
    "RESIZE_NEAREST_NEIGHBOR": _resize("ResizeNearestNeighbor"),
    "RESIZE_BILINEAR": _resize("ResizeBilinear"),
    "SPACE_TO_DEPTH": _block(tf.nn.space_to_depth),
    "DEPTH_TO_SPACE": _block(tf.nn.depth_to_space),
    "CUMSUM": lambda fed, options: tf.cumsum(
        fed[0], int(fed[1].numpy().reshape(())), exclusive=options.exclusive, reverse=options.reverse
    ),
    "TOPK_V2": lambda fed, options: tuple(tf.math.top_k(fed[0], int(fed[1].numpy().reshape(())))),
    "CAST": lambda fed, options: tf.cast(fed[0], tf.float32),
    "SHAPE": lambda fed, options: tf.shape(fed[0]),
    "DEQUANTIZE": lambda fed, options: tf.cast(fed[0], tf.float32),
}
