"""Several reduction methods, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from har_edge.codecs.reducer import Code, Reducer
from har_edge.data.recording import Samples


class Chain:
    """Gives the code of each reducer to the next, such as `paa:5+q8`.

    Its features are those of the last method that is more than a coding: `paa:5+q8` gives the means, within the
    quantiser's error. A chain of codings alone, such as `q8+zlib`, gives the features of the first.
    """

    def __init__(self, reducers: Sequence[Reducer]) -> None:
        """Join reducers whose shapes fit; `make_reducer` makes sure that they do."""
        self._reducers = tuple(reducers)
        self._reduced = max((at for at, reducer in enumerate(reducers) if not reducer.is_coding), default=0)
        self.spec = "+".join(reducer.spec for reducer in reducers)
        self.code_shape = reducers[-1].code_shape
        self.code_dtype = reducers[-1].code_dtype
        self.most_bytes = reducers[-1].most_bytes
        self.code_scale = reducers[-1].code_scale
        self.code_zero = reducers[-1].code_zero
        self.feature_shape = reducers[self._reduced].feature_shape
        self.restores = all(reducer.restores for reducer in reducers)
        self.is_coding = all(reducer.is_coding for reducer in reducers)

    @property
    def first(self) -> Reducer:
        """The reducer that windows enter."""
        return self._reducers[0]

    @property
    def operations(self) -> int:
        """Arithmetic operations of all reducers."""
        return sum(reducer.operations for reducer in self._reducers)

    def encode(self, window: Samples) -> Code:
        """Apply every reducer, the first one first."""
        code: Code = window
        for reducer in self._reducers:
            code = reducer.encode(code)
        return code

    def features(self, code: Code) -> Samples:
        """Undo the codings at the end; return the features of the method before them."""
        for reducer in reversed(self._reducers[self._reduced + 1 :]):
            code = reducer.decode(code)
        return self._reducers[self._reduced].features(code)

    def decode(self, code: Code) -> Samples:
        """Undo every reducer, the last one first."""
        for reducer in reversed(self._reducers):
            code = reducer.decode(code)
        return code
