"""Operators that work element by element: the two inputs of some are broadcast."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as tflite

from tests.tflite.gradient.cases import Case, Same, W, X, options

_FUSED = tflite.ActivationFunctionType
_PAIRS = [
    (X((2, 3)), X((2, 3))),
    (X((2, 3)), X((3,))),
    (X((2, 3)), X((2, 1))),
    (X((2, 1)), X((2, 3))),
    (X((2, 3)), W(())),
    (X((2, 1, 3, 1)), X((2, 4, 1, 2))),
    (X((4,)), X((2, 3, 4))),
    (X((2, 2, 3, 2, 2)), X((2, 1, 3, 1, 2))),
    (X((2, 3, 4)), W((4,))),
    (X((2, 3, 4)), W((3, 1))),
    (W((1, 4)), X((2, 3, 4))),
    (X((2, 3)), Same(0)),
]
_DIFFERENT = [pair for pair in _PAIRS if not isinstance(pair[1], Same)]
_DIVISIONS = [
    (X((2, 3)), X((2, 3), "positive")),
    (X((2, 3)), W((3,), "positive")),
    (X((2, 1)), X((2, 3), "positive")),
    (X((2, 3, 4, 2)), X((2, 1, 4, 1), "positive")),
    (X((3,)), X((2, 3), "positive")),
    (W((4, 1)), X((2, 4, 3), "positive")),
    (X((2, 3, 2, 1, 2)), X((2, 1, 2, 4, 1), "positive")),
]
_SHAPES = [(2, 3), (6,), (2, 3, 4), (2, 2, 3, 2), (2, 1, 2, 3, 2)]

_CHOICE = np.array([[True, False, True], [False, False, True]])

BINARY = [
    *(Case(name, pair, options(kind)) for name, kind in (("ADD", "Add"), ("MUL", "Mul")) for pair in _PAIRS),
    *(Case("SUB", pair, options("Sub")) for pair in _DIFFERENT),
    *(Case("DIV", pair, options("Div")) for pair in _DIVISIONS),
    *(Case(name, pair, options("MaximumMinimum")) for name in ("MAXIMUM", "MINIMUM") for pair in _DIFFERENT),
    *(Case("SQUARED_DIFFERENCE", pair, options("SquaredDifference")) for pair in _PAIRS[:7]),
    Case("ADD_N", (X((2, 3)), X((2, 3)), Same(0), W((2, 3))), options("AddN")),
    *(
        Case("SELECT_V2", (_CHOICE, *pair), options("SelectV2"))
        for pair in ((X((2, 3)), X((2, 3))), (X((2, 1)), W((3,))), (X((2, 2, 3)), X((2, 1, 1))))
    ),
    Case("POW", (X((2, 3), "positive"), W(())), options("Pow")),
    Case("POW", (X((2, 3), "positive"), X((2, 3), "small")), options("Pow")),
    Case("POW", (X((2, 3), "positive"), W((3,), "small")), options("Pow")),
    Case("POW", (W((3,), "positive"), X((2, 3), "small")), options("Pow")),
]
FUSED = [
    Case(name, pair, options(kind, fusedActivationFunction=fused))
    for name, kind in (("ADD", "Add"), ("SUB", "Sub"))
    for pair in ((X((2, 12), "coarse"), X((2, 12), "positive")), (X((2, 3, 5), "coarse"), W((5,))))
    for fused in (_FUSED.RELU, _FUSED.RELU6, _FUSED.RELU_N1_TO_1)
]
UNARY = [
    Case(name, (X(shape, domain),), options(kind) if kind else None)
    for name, kind, domain in (
        ("RELU", "", "any"),
        ("RELU6", "", "any"),
        ("RELU_N1_TO_1", "", "any"),
        ("RELU_0_TO_1", "", "any"),
        ("ELU", "", "any"),
        ("LOGISTIC", "", "any"),
        ("TANH", "", "any"),
        ("HARD_SWISH", "HardSwish", "any"),
        ("SQUARE", "Square", "any"),
        ("SQRT", "", "positive"),
        ("RSQRT", "", "positive"),
        ("EXP", "Exp", "any"),
        ("LOG", "", "positive"),
        ("ABS", "Abs", "any"),
        ("NEG", "Neg", "any"),
        ("SIN", "", "any"),
        ("COS", "Cos", "any"),
    )
    for shape in (_SHAPES if name.startswith("RELU") else _SHAPES[::2])
]
PARAMETRIC = [
    *(Case("LEAKY_RELU", (X(shape),), options("LeakyRelu", alpha=alpha)) for shape in _SHAPES for alpha in (0.2, 0.01)),
    Case("LEAKY_RELU", (X((2, 7)),), options("LeakyRelu", alpha=0.0)),
    Case("LEAKY_RELU", (X((2, 7)),), options("LeakyRelu", alpha=1.5)),
    Case("PRELU", (X((2, 3, 4, 5)), W((1, 1, 5)))),
    Case("PRELU", (X((2, 3, 4, 5)), W((3, 4, 5)))),
    Case("PRELU", (X((2, 6)), W((6,)))),
    Case("PRELU", (X((2, 4, 6)), W((1, 6)))),
    Case("GELU", (X((2, 7)),), options("Gelu", approximate=False)),
    Case("GELU", (X((2, 3, 5)),), options("Gelu", approximate=True)),
]
NORMALISED = [
    *(
        Case("SOFTMAX", (X(shape, "small"),), options("Softmax", beta=beta))
        for shape in ((2, 5), (2, 3, 4), (2, 2, 3, 4))
        for beta in (1.0, 0.5)
    ),
    *(Case("LOG_SOFTMAX", (X(shape, "small"),), options("LogSoftmax")) for shape in ((2, 5), (2, 3, 4), (2, 2, 3, 4))),
    *(Case("L2_NORMALIZATION", (X(shape),), options("L2Norm")) for shape in ((2, 5), (2, 3, 4), (2, 2, 3, 4))),
]
# The steps of central differences would cross the corners of these.
FUSED_PRODUCTS = [
    Case(name, (X((2, 12)), X((2, 12), "positive")), options(kind, fusedActivationFunction=fused))
    for name, kind in (("MUL", "Mul"), ("DIV", "Div"))
    for fused in (_FUSED.RELU, _FUSED.RELU6, _FUSED.RELU_N1_TO_1)
]
ELEMENTWISE = [*BINARY, *FUSED, *UNARY, *PARAMETRIC, *NORMALISED]
