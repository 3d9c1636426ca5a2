"""Several methods, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from har_edge.reduction.reducer import Code, Reducer
from har_edge.streams.recording import Samples


class Chain:
    """Feeds the code of each reducer to the next, such as `paa:5+q8`; all codes but the last are float32 [n, m]."""

    def __init__(self, reducers: Sequence[Reducer]) -> None:
        """Join reducers whose shapes fit; `make_reducer` sees to that."""
        self._reducers = tuple(reducers)
        self.spec = "+".join(reducer.spec for reducer in reducers)
        self.code_shape = reducers[-1].code_shape
        self.code_dtype = reducers[-1].code_dtype

    def encode(self, window: Samples) -> Code:
        """Apply every reducer, the first one first."""
        code: Code = window
        for reducer in self._reducers:
            code = reducer.encode(code)
        return code

    def decode(self, code: Code) -> Samples:
        """Undo every reducer, the last one first."""
        for reducer in reversed(self._reducers):
            code = reducer.decode(code)
        return code
