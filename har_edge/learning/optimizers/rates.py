"""The learning rate over a whole run, for workers that begin each round with a new optimizer."""

from __future__ import annotations

import math

from har_edge.learning.optimizers.optimizers import make_optimizer

# The text that asks for an optimizer that fits the run (learning/server/recipes.py), and that of one device.
AUTO, ONE_DEVICE = "auto", "momentum:lr=0.05,schedule=cosine"
# Methods whose decay the server applies between two rounds, so that workers of any version take their texts.
_DECAYED_BETWEEN = ("sgd", "momentum")
_OF_SCHEDULE = frozenset({"lr", "schedule", "steps", "floor", "every", "factor", "warmup"})


def with_steps(spec: str, steps: int) -> str:
    """Return the text of an optimizer whose cosine ends with the run, where it does not say when it ends.

    That of one device stands for AUTO.
    """
    spec = ONE_DEVICE if spec == AUTO else spec
    method, _, rest = spec.partition(":")
    options = dict(part.strip().partition("=")[::2] for part in rest.split(",") if part)
    if options.get("schedule") != "cosine" or "steps" in options:
        return spec
    return (
        f"{method}:{','.join(f'{name}={value}' for name, value in (options | {'steps': str(max(1, steps))}).items())}"
    )


def constant_at(spec: str, step: int) -> str:
    """Return the text of an optimizer whose rate stays what that of `spec` is after `step` steps.

    A worker begins each round with a new optimizer, and so must be told its rate.
    """
    method, _, rest = spec.partition(":")
    gone = _OF_SCHEDULE | ({"decay"} if method in _DECAYED_BETWEEN else set())
    options = [part.strip() for part in rest.split(",") if part and part.strip().partition("=")[0] not in gone]
    lr = max(_rate_after(spec, step), 1e-12)  # the cosine ends at 0, which no optimizer takes
    return f"{method}:{','.join([f'lr={lr!r}', *options])}"


def decay_between(spec: str, step: int, steps: float) -> float:
    """Return the part of the weights that `steps` steps of a worker would have taken by their decay.

    The server takes it, with the rate after `step` steps: as much as a velocity that is built up would.
    """
    method, _, rest = spec.partition(":")
    options = dict(part.strip().partition("=")[::2] for part in rest.split(",") if part)
    decay = float(options.get("decay", 0))
    if method not in _DECAYED_BETWEEN or not decay:
        return 0.0
    reach = 1 - float(options.get("beta", 0.9)) if method == "momentum" else 1.0
    return -math.expm1(-_rate_after(spec, step) * decay / reach * steps)


def _rate_after(spec: str, step: int) -> float:
    optimizer = make_optimizer(spec, 1)
    optimizer.load_state(optimizer.state() | {"step": step})
    return optimizer.rate
