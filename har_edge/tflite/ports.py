"""Check whether a pipeline can run a model at all, by its inputs and outputs."""

from __future__ import annotations

from har_edge.errors import ModelError
from har_edge.tflite.manifest import QUANTISED, REAL
from har_edge.tflite.model import Model, Tensor


def check_ports(model: Model) -> Model:
    """Return the model. Raises ModelError when windows cannot enter one of its inputs, or it has no output to send.

    Every input that is read takes the windows of a source, which are real numbers. `read_model` leaves out outputs
    whose type messages cannot carry (see `Graph`), so at least one other output must exist.
    """
    graph = model.main
    read = {index for operator in graph.operators for index in operator.inputs} | {*graph.outputs}
    for index in graph.inputs:
        problem = _closed(graph.tensors[index]) if index in read else ""
        if problem:
            raise ModelError(
                f"{model.name}: input {graph.tensors[index].name!r} is {problem}, so the windows of sensors cannot "
                "enter it; expected float32, float16 or float64, or int8, int16 or uint8 with one scale for the "
                "tensor; convert the model with such inputs"
            )
    if not graph.outputs:
        kinds = ", ".join(f"{graph.tensors[i].name!r} ({graph.tensors[i].type_name})" for i in graph.unsent) or "none"
        raise ModelError(
            f"{model.name}: messages can carry none of its outputs: {kinds}; expected one of numbers or booleans; "
            "convert the model with its scores as an output"
        )
    return model


def _closed(tensor: Tensor) -> str:
    """Return the type of an input that real values cannot enter, an empty text for one that they can."""
    if tensor.dtype in REAL:
        return ""
    if tensor.dtype not in QUANTISED:
        return f"of type {tensor.type_name}"
    scale = None if tensor.raw.quantization is None else tensor.raw.quantization.scale
    scales = [] if scale is None else [float(one) for one in scale]
    if len(scales) == 1 and scales[0] > 0:
        return ""
    return f"{tensor.dtype} " + (f"with {len(scales)} scales" if len(scales) > 1 else "without a scale")
