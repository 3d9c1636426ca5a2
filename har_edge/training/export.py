"""A trained network to .tflite: float32 and full int8, few operators, names that a person can read."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.tools import flatbuffer_utils

from har_edge.data.recording import Samples
from har_edge.training.backend import quietly
from har_edge.training.fit import Fitted
from har_edge.training.flatbuffer import pin_range, put_scaling_before
from har_edge.training.network import fold_network
from har_edge.training.scaling import DEVIATIONS, Scaling

# Calibration windows for int8: enough for the range of every activation, few enough to take a second.
CALIBRATION_WINDOWS = 500


def export_float(fitted: Fitted) -> bytes:
    """Return the network as a float32 .tflite: physical units in, batch size open."""
    network = fold_network(fitted.network, fitted.input_specs, fitted.layout, fitted.scaling, clip=True)
    return convert_float(network)


def export_int8(fitted: Fitted, calibration: Mapping[str, Samples]) -> bytes:
    """Return the network as a full int8 .tflite, output included, calibrated on what entered it in training.

    Inputs with a range are int8 and span it, whatever was seen; those without take float32, and are scaled and
    quantised by operators of their own.
    """
    network = fold_network(fitted.network, fitted.input_specs, fitted.layout, fitted.scaling, clip=False)
    return convert_int8(network, fitted.scaling, calibration)


def convert_float(network: Any) -> bytes:
    """Return a Keras model as a float32 .tflite."""
    return tidy(convert(tf.lite.TFLiteConverter.from_keras_model(network)), network)


def convert_int8(
    network: Any, scaling: Scaling, calibration: Mapping[str, Samples], *, first: Sequence[str] = ()
) -> bytes:
    """Return a Keras model as a full int8 .tflite; `calibration` holds [n, ...] by input, `first` is as in `tidy`.

    Post-training quantisation as in Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", CVPR 2018, section 2.
    """
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    converter.representative_dataset = lambda: _representative(scaling, calibration)
    content = flatbuffer_utils.convert_bytearray_to_object(bytearray(convert(converter)))
    ports = {f"serving_default_{name}:0".encode(): name for name in calibration}
    for index in list(content.subgraphs[0].inputs):
        name = ports[content.subgraphs[0].tensors[index].name]
        span = scaling.ranges[name]
        if span is None:
            put_scaling_before(content, index, scaling.mean[name], scaling.spread[name])
        else:
            pin_range(content.subgraphs[0].tensors[index], span)
    return tidy(bytes(flatbuffer_utils.convert_object_to_bytearray(content)), network, first)


def _representative(scaling: Scaling, calibration: Mapping[str, Samples]) -> Iterator[Mapping[str, Samples]]:
    count = len(next(iter(calibration.values())))
    for number, at in enumerate(np.linspace(0, count - 1, CALIBRATION_WINDOWS).astype(int)):
        window = {}
        for name, values in calibration.items():
            span = scaling.ranges[name]
            held = values[at : at + 1]
            held = scaling.apply({name: held})[name] if span is None else scaling.clip(name, held)
            if number < 2:
                # One value of the first two windows each pins the range of every input.
                low, high = (-DEVIATIONS, DEVIATIONS) if span is None else (span.low, span.high)
                held.reshape(-1)[0] = high if number else low
            window[name] = held
        yield window


def convert(converter: Any) -> bytes:
    """Run a converter without its messages."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quietly():
        warnings.simplefilter("ignore")
        return bytes(converter.convert())


def tidy(model: bytes, network: Any, first: Sequence[str] = ()) -> bytes:
    """Return the model with operators in the order of the inputs and tensors named after the layers.

    The converter puts the first operators of all branches before all others, so that every cut would have to carry
    raw windows; here each branch is complete before the next begins, in an order as legal as before. Tensors named in
    `first` are made before anything that is done with them.
    """
    content = flatbuffer_utils.convert_bytearray_to_object(bytearray(model))
    graph = content.subgraphs[0]
    layers = [layer.name for layer in network.layers]
    taken: set[bytes] = set()
    _name_ports(graph, network)
    graph.operators = _order(graph, graph.outputs)
    for operator in graph.operators:
        output = graph.tensors[operator.outputs[0]]
        for index in operator.outputs:
            if index not in graph.outputs:
                graph.tensors[index].name = _free(_layer_of(graph.tensors[index].name, layers), taken)
        for at, tensor in enumerate(operator.inputs):
            if tensor >= 0 and content.buffers[graph.tensors[tensor].buffer].data is not None:
                graph.tensors[tensor].name = output.name + f"/constant_{at}".encode()
    milestones = [index for name in first for index, t in enumerate(graph.tensors) if t.name == name.encode()]
    graph.operators = _order(graph, [*milestones, *graph.outputs])
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content))


def _name_ports(graph: Any, network: Any) -> None:
    order = [tensor.name.encode() for tensor in network.inputs]
    for index in graph.inputs:
        tensor = graph.tensors[index]
        tensor.name = re.sub(rb"^serving_default_(.*):0$", rb"\1", tensor.name)
    graph.inputs = sorted(graph.inputs, key=lambda index: order.index(graph.tensors[index].name))
    graph.tensors[graph.outputs[0]].name = network.layers[-1].name.encode()


def _order(graph: Any, wanted: Sequence[int]) -> list[Any]:
    """Return the operators depth first from the tensors wanted, the inputs of each in the order it takes them."""
    makers = {output: operator for operator in graph.operators for output in operator.outputs}
    ordered: list[Any] = []

    def visit(tensor: int) -> None:
        operator = makers.get(tensor)
        if operator is None or any(operator is known for known in ordered):
            return
        for taken in operator.inputs:
            visit(taken)
        ordered.append(operator)

    for tensor in wanted:
        visit(tensor)
    return ordered


def _layer_of(name: bytes, layers: Sequence[str]) -> bytes:
    """Return the last layer whose name is part of a path such as `functional_1/arm_first_1/Relu;.../convolution`."""
    parts = [re.sub(r"_\d+$", "", part) for part in re.split(r"[/;]", name.decode())]
    found = [part for part in parts if part in layers]
    return found[-1].encode() if found else name


def _free(name: bytes, taken: set[bytes]) -> bytes:
    """Return the name, or with a number where one layer became several operators."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = name + f"_{number}".encode()
    taken.add(free)
    return free
