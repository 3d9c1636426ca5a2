"""Optimizers in NumPy: SGD, momentum, Adam and AdamW, on one flat float32 vector, in place.

A text asks for one, METHOD[:OPTION=VALUE,...]: `sgd:lr=0.05`, `momentum:lr=0.05,beta=0.9,nesterov=1`,
`adam:lr=0.001,schedule=cosine,steps=2000,warmup=100`. Formulas and defaults are those of Keras 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from har_edge.errors import ConfigError, ModelError
from har_edge.learning.optimizers.schedules import KINDS, NEEDED, RateSchedule
from har_edge.learning.updates.vectors import Vector

State: TypeAlias = dict[str, Vector | int]


class Optimizer(Protocol):
    """Changes weights by the gradient of the mean loss."""

    spec: str

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""

    def step(self, weights: Vector, gradient: Vector) -> None:
        """Change `weights` in place; leave `gradient` as it is."""

    def state(self) -> State:
        """Return copies of what a restarted run needs: `step`, the number of steps done, and vectors by name."""

    def load_state(self, state: Mapping[str, Vector | int]) -> None:
        """Go on from such a state, to the same numbers.

        Raises ModelError for a state of another optimizer or another network, or one with values that are not finite.
        """


class _VectorOptimizer(ABC):
    """The steps done, the vectors of the optimizer's state, and the checks of both."""

    vectors: tuple[str, ...] = ()

    def __init__(self, spec: str, size: int, schedule: RateSchedule) -> None:
        self.spec = spec
        self._schedule = schedule
        self._size = size
        self._steps = 0
        self._state = {name: np.zeros(size, np.float32) for name in self.vectors}
        self._scratch = np.empty(size, np.float32)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self._schedule.rate(self._steps)

    def step(self, weights: Vector, gradient: Vector) -> None:
        """Change `weights` in place. Raises ModelError for a vector of another size or type."""
        for name, vector in (("weights", weights), ("gradient", gradient)):
            _check(f"{self.spec}: {name}", vector, self._size)
        self._update(weights, gradient, self.rate)
        self._steps += 1

    @abstractmethod
    def _update(self, weights: Vector, gradient: Vector, rate: float) -> None:
        """Change `weights` in place by one step of this rate."""

    def state(self) -> State:
        """Return copies of the number of steps and of the vectors."""
        return {"step": self._steps, **{name: vector.copy() for name, vector in self._state.items()}}

    def load_state(self, state: Mapping[str, Vector | int]) -> None:
        """Go on from a state. Raises ModelError, and keeps the old state, for one that does not fit."""
        expected = {"step", *self.vectors}
        if set(state) != expected:
            raise ModelError(
                f"optimizer {self.spec}: a state of {sorted(state)}, expected {sorted(expected)}; "
                "go on with the optimizer that the checkpoint was made with"
            )
        steps = state["step"]
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ModelError(f"optimizer {self.spec}: step is {steps!r}, expected a whole number from 0")
        for name in self.vectors:
            vector = state[name]
            _check(f"optimizer {self.spec}: {name}", vector, self._size)
            if not np.isfinite(vector).all() or (name == "variance" and np.min(vector, initial=0) < 0):
                legal = "finite values" + (" from 0" if name == "variance" else "")
                raise ModelError(f"optimizer {self.spec}: {name} has other values than {legal}; the state is damaged")
        self._steps = steps
        for name in self.vectors:
            self._state[name][:] = state[name]


class Sgd(_VectorOptimizer):
    """Stochastic gradient descent; `decay` times the weights is added to the gradient (L2 regularisation)."""

    def __init__(self, spec: str, size: int, schedule: RateSchedule, decay: float = 0.0) -> None:
        """Build without any step done."""
        super().__init__(spec, size, schedule)
        self._decay = decay

    def _update(self, weights: Vector, gradient: Vector, rate: float) -> None:
        change = np.multiply(gradient, np.float32(rate), out=self._scratch)
        if self._decay:
            change += np.float32(rate * self._decay) * weights
        weights -= change


class Momentum(_VectorOptimizer):
    """SGD with momentum, Polyak's or Nesterov's (Sutskever et al. 2013); `decay` as in SGD."""

    vectors = ("velocity",)

    def __init__(
        self, spec: str, size: int, schedule: RateSchedule, beta: float, nesterov: float, decay: float = 0.0
    ) -> None:
        """Build at rest, with a velocity of zeros."""
        super().__init__(spec, size, schedule)
        self._beta, self._nesterov, self._decay = np.float32(beta), bool(nesterov), decay

    def _update(self, weights: Vector, gradient: Vector, rate: float) -> None:
        velocity, change = self._state["velocity"], self._scratch
        np.multiply(gradient, np.float32(rate), out=change)
        if self._decay:
            change += np.float32(rate * self._decay) * weights
        velocity *= self._beta
        velocity -= change
        if self._nesterov:
            weights -= change
            weights += np.multiply(velocity, self._beta, out=change)
        else:
            weights += velocity


class Adam(_VectorOptimizer):
    """Adam (Kingma and Ba 2015, in the order of the end of section 2), with decoupled weight decay as AdamW.

    AdamW is of Loshchilov and Hutter 2019: the decay shrinks the weights by rate times decay, before the step.
    """

    vectors = ("mean", "variance")

    def __init__(
        self,
        spec: str,
        size: int,
        schedule: RateSchedule,
        beta1: float,
        beta2: float,
        epsilon: float,
        decay: float = 0.0,
    ) -> None:
        """Build with both moments at zero."""
        super().__init__(spec, size, schedule)
        self._beta1, self._beta2, self._epsilon, self._decay = beta1, beta2, np.float32(epsilon), decay

    def _update(self, weights: Vector, gradient: Vector, rate: float) -> None:
        mean, variance, change = self._state["mean"], self._state["variance"], self._scratch
        count = self._steps + 1
        if self._decay:
            weights -= np.multiply(weights, np.float32(rate * self._decay), out=change)
        np.subtract(gradient, mean, out=change)
        mean += np.multiply(change, np.float32(1 - self._beta1), out=change)
        np.square(gradient, out=change)
        change -= variance
        variance += np.multiply(change, np.float32(1 - self._beta2), out=change)
        np.sqrt(variance, out=change)
        change += self._epsilon
        np.divide(mean, change, out=change)
        corrected = rate * math.sqrt(1 - self._beta2**count) / (1 - self._beta1**count)
        weights -= np.multiply(change, np.float32(corrected), out=change)


class Sum(_VectorOptimizer):
    """Adds up: the vectors that come are sums over samples, and the weights hold their total."""

    def _update(self, weights: Vector, gradient: Vector, rate: float) -> None:
        del rate
        weights += gradient


@dataclass(frozen=True, slots=True)
class _Option:
    """A number that a method or a schedule takes: `low` <= it <= `high`, unless `above`: then `low` < it."""

    default: float | None
    low: float
    high: float
    above: bool = False
    whole: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"above {self.low:g}" if self.above else f"of at least {self.low:g}"
        return f"{kind} {low} and at most {self.high:g}"


# The largest that is below 1 as a float32, too: with 1 itself nothing would ever be forgotten.
_BELOW_ONE = 0.9999999
_COMMON = {
    "lr": _Option(None, 0, 1000, above=True),
    "steps": _Option(0, 1, 1e9, whole=True),
    "floor": _Option(0.0, 0, 1),
    "every": _Option(0, 1, 1e9, whole=True),
    "factor": _Option(0.1, 0, 1, above=True),
    "warmup": _Option(0, 0, 1e9, whole=True),
}
_ADAM = {
    "beta1": _Option(0.9, 0, _BELOW_ONE),
    "beta2": _Option(0.999, 0, _BELOW_ONE),
    "epsilon": _Option(1e-7, 1e-20, 1),
}
_L2 = {"decay": _Option(0.0, 0, 1)}
_MOMENTUM = {**_L2, "beta": _Option(0.9, 0, _BELOW_ONE), "nesterov": _Option(0, 0, 1, whole=True)}
_METHODS: dict[str, tuple[Callable[..., _VectorOptimizer], dict[str, _Option]]] = {
    "sgd": (Sgd, _L2),
    "momentum": (Momentum, _MOMENTUM),
    "adam": (Adam, _ADAM),
    "adamw": (Adam, {**_ADAM, "decay": _Option(0.004, 0, 1)}),
}
METHODS = tuple(_METHODS)
# The text of the optimizer that adds up sums, which nobody divides by the number of samples.
SUM = "sum"
# Which options belong to which schedule.
_SCHEDULE_OPTIONS = {"constant": (), "step": ("every", "factor"), "cosine": ("steps", "floor")}


def make_optimizer(spec: str, size: int) -> Optimizer:
    """Build the optimizer of a text for vectors of `size` values. Raises ConfigError that says what is legal.

    >>> weights = np.ones(2, np.float32)
    >>> make_optimizer("sgd:lr=0.5", 2).step(weights, np.array([1, -1], np.float32))
    >>> weights
    array([0.5, 1.5], dtype=float32)
    """
    if spec == SUM:
        return Sum(spec, size, RateSchedule("constant", 1.0))
    method, _, rest = spec.partition(":")
    if method not in _METHODS:
        raise ConfigError(f"optimizer {spec!r}: method {method!r}, expected one of {', '.join(METHODS)}")
    build, own = _METHODS[method]
    texts = _split(spec, rest, ("schedule", *_COMMON, *own))
    kind = texts.pop("schedule", "constant")
    if kind not in KINDS:
        raise ConfigError(f"optimizer {spec!r}: schedule {kind!r}, expected one of {', '.join(KINDS)}")
    _check_schedule(spec, kind, texts)
    numbers = {name: _number(spec, name, option, texts.get(name)) for name, option in {**_COMMON, **own}.items()}
    common: dict[str, Any] = {name: numbers.pop(name) for name in _COMMON}
    schedule = RateSchedule(kind, common.pop("lr"), **common)
    return build(spec, size, schedule, **numbers)


def _split(spec: str, rest: str, legal: tuple[str, ...]) -> dict[str, str]:
    """Return the texts of the options by name."""
    texts: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        name, equals, value = part.strip().partition("=")
        if not equals or name not in legal or name in texts:
            problem = "is given twice" if name in texts else "is no option"
            raise ConfigError(
                f"optimizer {spec!r}: {part.strip()!r} {problem}, expected OPTION=VALUE of {', '.join(legal)}"
            )
        texts[name] = value
    return texts


def _check_schedule(spec: str, kind: str, texts: Mapping[str, str]) -> None:
    needed = NEEDED[kind]
    if needed is not None and needed not in texts:
        raise ConfigError(f"optimizer {spec!r}: schedule={kind} needs {needed}=, a number of steps")
    for other, names in _SCHEDULE_OPTIONS.items():
        stray = [name for name in names if name in texts and other != kind]
        if stray:
            raise ConfigError(f"optimizer {spec!r}: {stray[0]}= is of schedule={other}, not of schedule={kind}")


def _number(spec: str, name: str, option: _Option, text: str | None) -> float | int:
    if text is None:
        if option.default is None:
            raise ConfigError(f"optimizer {spec!r}: {name}= is missing, expected {option}, such as {name}=0.01")
        return option.default
    try:
        value = int(text) if option.whole else float(text)
    except ValueError:
        value = math.nan
    if not option.low <= value <= option.high or (option.above and value == option.low):
        raise ConfigError(f"optimizer {spec!r}: {name}={text}, expected {option}")
    return value


def _check(name: str, vector: Any, size: int) -> None:
    if not isinstance(vector, np.ndarray) or vector.shape != (size,) or vector.dtype != np.float32:
        came = f"{vector.dtype} {list(vector.shape)}" if isinstance(vector, np.ndarray) else repr(vector)
        raise ModelError(f"{name} is {came}, expected float32 [{size}]; both must be of the same model")
