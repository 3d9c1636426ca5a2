"""One operator with its inputs, as a row of a table; the tables are in the modules beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as tflite
from numpy.typing import NDArray

from har_edge.inference.interpreter import Interpreter
from tests.tflite.models import Draft

Array = NDArray[Any]
# Distances of drawn values, and their distance from every kink of an operator (0, 1, 3, 6 and their negatives): more
# than the steps of the central differences, so that no step crosses a kink or changes which of two values is larger.
_GRID, _OFFSET, _APART = 0.25, 0.11, 0.4
_DISTINCT = 64  # values that are different in one tensor


@dataclass(frozen=True)
class X:
    """An input of the model: values away from kinks, or in `domain`."""

    shape: tuple[int, ...]
    domain: str = "any"


@dataclass(frozen=True)
class W(X):
    """A float constant of the model: it is trained."""


@dataclass(frozen=True)
class Same:
    """Input number `index` once more."""

    index: int


@dataclass(frozen=True)
class Case:
    """One operator: `inputs` are X, W, Same or integers (a constant that is not trained)."""

    operator: str
    inputs: tuple[Any, ...]
    options: Any = None
    outputs: int = 1
    used: tuple[int, ...] | None = None  # outputs of the operator that are outputs of the model; None: all
    version: int = 1
    note: str = ""
    values: tuple[Array | None, ...] = field(default=(), compare=False)  # instead of drawn ones

    def __str__(self) -> str:
        shapes = [f"{type(i).__name__}{list(i.shape)}" if isinstance(i, X) else _brief(i) for i in self.inputs]
        held = vars(self.options) if self.options else {}
        chosen = [f"{name}={_brief(value)}" for name, value in held.items() if value and name != "potScaleInt16"]
        return " ".join([self.operator, *shapes, *chosen, self.note]).strip()

    @property
    def batch(self) -> int:
        """The first dimension of the first input of the model."""
        return next(i.shape[0] for i in self.inputs if type(i) is X)

    def draw(self, seed: int = 0) -> dict[str, Array]:
        """Return values of the inputs and weights by name."""
        rng = np.random.default_rng(seed)
        found = {}
        for number, one in enumerate(self.inputs):
            if isinstance(one, X):
                given = self.values[number] if number < len(self.values) else None
                found[f"in{number}"] = draw(one.shape, rng, number, one.domain) if given is None else given
        return found

    def build(self, *, weights: dict[str, Array] | None, shapes: Sequence[Sequence[int]] | None = None) -> bytes:
        """Return the model; without `weights` its constants are inputs, as the central differences need them."""
        draft = Draft()
        graph = draft.graph()
        numbers: list[int] = []
        for number, one in enumerate(self.inputs):
            name = f"in{number}"
            if isinstance(one, Same):
                numbers.append(numbers[one.index])
            elif one is None:
                numbers.append(-1)
            elif isinstance(one, W) and weights is not None:
                numbers.append(graph.const(weights[name], name=name))
            elif isinstance(one, X):
                numbers.append(graph.input(one.shape, name))
            else:
                numbers.append(graph.const(one if isinstance(one, np.ndarray) else np.asarray(one, np.int32)))
        shapes = shapes or self.shapes()
        results = [graph.tensor(shape, f"out{number}") for number, shape in enumerate(shapes)]
        graph.op(self.operator, numbers, results, self.options, version=self.version)
        graph.output(*(results if self.used is None else [results[i] for i in self.used]))
        return draft.build()

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of all outputs as LiteRT works them out."""
        everything = Case(self.operator, self.inputs, self.options, self.outputs, version=self.version)
        runtime = Interpreter(everything.build(weights=None, shapes=[()] * self.outputs))
        return [value.shape for value in runtime.run(self.draw()).values()]


def draw(shape: Sequence[int], rng: np.random.Generator, number: int = 0, domain: str = "any") -> Array:
    """Return float32 values that lie apart from each other and from the kinks of every operator."""
    count = int(np.prod(shape))
    steps = rng.permutation(count) if count <= _DISTINCT else rng.integers(0, _DISTINCT, count)
    values = (steps - min(count, _DISTINCT) // 2) * _GRID + _OFFSET + (number % 2) * _GRID * _APART
    if domain == "positive":
        values = np.abs(values) + 0.5
    elif domain == "small":
        values = values / 4
    elif domain == "coarse":  # sums of two of them are no whole numbers either
        values = rng.integers(-7, 14, count) * 0.5 + _OFFSET
    return np.asarray(values, np.float32).reshape(shape)


def options(kind: str, **values: Any) -> Any:
    """Return an options object of the schema, such as `options("Add", fusedActivationFunction=1)`."""
    made = getattr(tflite, f"{kind}OptionsT")()
    for name, value in values.items():
        assert hasattr(made, name), (kind, name)
        setattr(made, name, value)
    return made


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return str(value).replace(" ", "")
