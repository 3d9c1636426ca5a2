"""Find out which operators keep state from one run to the next."""

from __future__ import annotations

from collections.abc import Iterable

from har_edge.tflite.manifest import ModelState
from har_edge.tflite.model import Graph, Model, Operator


def state_of(model: Model, operators: Iterable[int] | None = None) -> ModelState:
    """Return the state of these operators of the main graph and of the graphs they call; by default of all operators.

    A variable that is only read, or filled once before the first run, is a weight and no state.
    """
    main = model.main
    found = {
        kind
        for graph, operator in _reached(model, range(len(main.operators)) if operators is None else operators)
        for kind in _touched(graph, operator)
    }
    return ModelState.RESOURCES if ModelState.RESOURCES in found else ModelState.TENSORS if found else ModelState.NONE


def _reached(model: Model, operators: Iterable[int]) -> Iterable[tuple[Graph, Operator]]:
    todo = [(0, model.main.operators[index]) for index in operators]
    seen: set[int] = set()
    while todo:
        number, operator = todo.pop()
        yield model.graphs[number], operator
        if operator.name != "CALL_ONCE":
            for called in set(operator.calls) - seen:
                seen.add(called)
                todo += [(called, inner) for inner in model.graphs[called].operators]


def _touched(graph: Graph, operator: Operator) -> Iterable[ModelState]:
    if operator.name == "ASSIGN_VARIABLE":
        yield ModelState.RESOURCES
    if any(graph.tensors[i].variable for i in (*operator.inputs, *operator.outputs, *operator.inner)):
        yield ModelState.TENSORS
