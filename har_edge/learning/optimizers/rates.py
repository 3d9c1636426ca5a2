"""The learning rate over a whole run, for workers that begin each round with a new optimizer."""

from __future__ import annotations

from har_edge.learning.optimizers.optimizers import make_optimizer

# The text that asks for an optimizer that fits the run (learning/server/recipes.py), and that of one device.
AUTO, ONE_DEVICE = "auto", "momentum:lr=0.05,schedule=cosine"
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
    optimizer = make_optimizer(spec, 1)
    state = optimizer.state()
    optimizer.load_state(state | {"step": step})
    method, _, rest = spec.partition(":")
    options = [part.strip() for part in rest.split(",") if part and part.strip().partition("=")[0] not in _OF_SCHEDULE]
    lr = max(optimizer.rate, 1e-12)  # the cosine ends at 0, which no optimizer takes
    return f"{method}:{','.join([f'lr={lr!r}', *options])}"
