"""State machines as tables: which state follows from a state and an event; all others are errors of the program.

The tables of h11 (https://h11.readthedocs.io) are the model. docs/tools/lifecycles.py draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


class UnknownTransition(RuntimeError):
    """An event came in a state in which it cannot come: an error of this program, never of what came."""


def advance(table: Mapping[tuple[S, E], S], state: S, event: E) -> S:
    """Return the state that follows; raises UnknownTransition where the table has none."""
    try:
        return table[state, event]
    except KeyError:
        what = f"{type(state).__name__}.{state.name} got {event.name}; expected an event that its table has there"
        raise UnknownTransition(what) from None
