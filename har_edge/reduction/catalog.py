"""Every reduction method by name, and the text that asks for it: METHOD[:OPTION...][+METHOD...]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from har_edge.errors import ConfigError
from har_edge.reduction.chain import Chain
from har_edge.reduction.identity import Identity
from har_edge.reduction.paa import PiecewiseAggregate
from har_edge.reduction.quantize import AffineQuantizer, RangeQuantizer
from har_edge.reduction.reducer import Reducer


@dataclass(frozen=True, slots=True)
class Method:
    """One way to ask for a reducer: its options by name, and what builds it from their texts, length and channels."""

    usage: str
    summary: str
    build: Callable[[Sequence[str], int, int], Reducer]


def _identity(options: Sequence[str], length: int, channels: int) -> Reducer:
    return Identity(length, channels)


def _paa(options: Sequence[str], length: int, channels: int) -> Reducer:
    return PiecewiseAggregate(_whole("paa", "PIECE", options[0]), length, channels)


def _range(bits: int, options: Sequence[str], length: int, channels: int) -> Reducer:
    return RangeQuantizer(bits, length, channels)


def _affine(bits: int, options: Sequence[str], length: int, channels: int) -> Reducer:
    name = f"q{bits}"
    return AffineQuantizer(bits, _real(name, "SCALE", options[0]), _whole(name, "ZERO", options[1]), length, channels)


METHODS: dict[tuple[str, int], Method] = {
    ("none", 0): Method("none", "the window itself", _identity),
    ("paa", 1): Method("paa:PIECE", "mean of every PIECE consecutive samples", _paa),
    ("q8", 0): Method("q8", "8 bits a value over the range of each channel in each window", partial(_range, 8)),
    ("q8", 2): Method("q8:SCALE:ZERO", "int8, real = SCALE * (q - ZERO)", partial(_affine, 8)),
    ("q16", 0): Method("q16", "16 bits a value over the range of each channel in each window", partial(_range, 16)),
    ("q16", 2): Method("q16:SCALE:ZERO", "int16, real = SCALE * (q - ZERO)", partial(_affine, 16)),
}


def make_reducer(spec: str, length: int, channels: int) -> Reducer:
    """Build the reducer that a text such as `none`, `paa:5` or `paa:5+q8` asks for, for windows [length, channels].

    Raises ConfigError for an unknown method, wrong options, or methods that cannot follow each other.
    """
    if length < 1 or channels < 1:
        raise ConfigError(f"reducer {spec!r} for windows [{length}, {channels}], expected both to be at least 1")
    reducers: list[Reducer] = []
    for part in spec.split("+"):
        if reducers:
            shape = reducers[-1].code_shape
            if len(shape) != 2 or None in shape or reducers[-1].code_dtype != "float32":
                raise ConfigError(f"reducer {spec!r}: nothing can follow {reducers[-1].spec}, expected it at the end")
            length, channels = (int(size or 0) for size in shape)
        reducers.append(_make_one(part, spec, length, channels))
    return reducers[0] if len(reducers) == 1 else Chain(reducers)


def _make_one(part: str, spec: str, length: int, channels: int) -> Reducer:
    name, *options = part.strip().split(":")
    method = METHODS.get((name, len(options)))
    if method is None:
        usages = ", ".join(method.usage for method in METHODS.values())
        raise ConfigError(f"reducer {spec!r}: no method {part.strip()!r}, expected {usages}, joined by +")
    return method.build(options, length, channels)


def _whole(name: str, option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"reducer {name}: {option} is {text!r}, expected a whole number") from None


def _real(name: str, option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"reducer {name}: {option} is {text!r}, expected a number") from None
