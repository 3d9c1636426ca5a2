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

from har_edge.streams.recording import Samples, Source
from har_edge.training.dataset import Batch
from har_edge.training.fit import Fitted
from har_edge.training.network import fold_network

# Calibration windows for int8: enough for the range of every activation, few enough to take a second.
CALIBRATION_WINDOWS = 500


def export_float(fitted: Fitted, sources: Sequence[Source]) -> bytes:
    """Return the network as a float32 .tflite: raw physical units in, batch size open."""
    network = fold_network(fitted.network, sources, fitted.layout, fitted.scaling, clip=True)
    return tidy(_convert(tf.lite.TFLiteConverter.from_keras_model(network)), network, sources)


def export_int8(fitted: Fitted, sources: Sequence[Source], calibration: Batch) -> bytes:
    """Return the network as a full int8 .tflite, inputs and output included, calibrated on training windows.

    Post-training quantisation as in Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", CVPR 2018, section 2. Every input's range is full scale, whatever the windows.
    """
    network = fold_network(fitted.network, sources, fitted.layout, fitted.scaling, clip=False)
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    converter.representative_dataset = lambda: _representative(fitted, calibration)
    return tidy(_convert(converter), network, sources)


def _representative(fitted: Fitted, calibration: Batch) -> Iterator[Mapping[str, Samples]]:
    limit = fitted.scaling.full_scale
    for number, at in enumerate(np.linspace(0, len(calibration) - 1, CALIBRATION_WINDOWS).astype(int)):
        window = {source: fitted.scaling.clip(values[at : at + 1]) for source, values in calibration.samples.items()}
        if number == 0:
            # Two values of one window pin the range of every input to full scale.
            for values in window.values():
                values[0, 0, :2] = (-limit, limit)
        yield window


def _convert(converter: Any) -> bytes:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return bytes(converter.convert())


def tidy(model: bytes, network: Any, sources: Sequence[Source]) -> bytes:
    """Return the model with operators in the order of the sources and tensors named after the layers.

    The converter puts the first operators of all branches before all others, so that every cut would have to carry
    raw windows; here each branch is complete before the next begins, in an order as legal as before.
    """
    content = flatbuffer_utils.convert_bytearray_to_object(bytearray(model))
    graph = content.subgraphs[0]
    layers = [layer.name for layer in network.layers]
    taken: set[bytes] = set()
    _name_ports(graph, sources)
    graph.operators = _order(graph)
    for operator in graph.operators:
        output = graph.tensors[operator.outputs[0]]
        if operator.outputs[0] not in graph.outputs:
            output.name = _free(_layer_of(output.name, layers), taken)
        for at, tensor in enumerate(operator.inputs):
            if tensor >= 0 and content.buffers[graph.tensors[tensor].buffer].data is not None:
                graph.tensors[tensor].name = output.name + f"/constant_{at}".encode()
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content))


def _name_ports(graph: Any, sources: Sequence[Source]) -> None:
    for source in sources:
        name = f"serving_default_{source.name}:0".encode()
        tensor = next(graph.tensors[index] for index in graph.inputs if graph.tensors[index].name == name)
        tensor.name = source.name.encode()
    order = [source.name.encode() for source in sources]
    graph.inputs = sorted(graph.inputs, key=lambda index: order.index(graph.tensors[index].name))
    graph.tensors[graph.outputs[0]].name = b"activity"


def _order(graph: Any) -> list[Any]:
    """Return the operators depth first from the output, the inputs of each in the order it takes them."""
    makers = {output: operator for operator in graph.operators for output in operator.outputs}
    ordered: list[Any] = []

    def visit(tensor: int) -> None:
        operator = makers.get(tensor)
        if operator is None or any(operator is known for known in ordered):
            return
        for wanted in operator.inputs:
            visit(wanted)
        ordered.append(operator)

    for output in graph.outputs:
        visit(output)
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
