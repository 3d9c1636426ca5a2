"""Decide whether a stateful slice may serve windows that come in any order, from many streams, some of them twice."""

from __future__ import annotations

from har_edge.config.task import StateRule, Task
from har_edge.errors import ConfigError
from har_edge.tflite.manifest import ModelState


def starts_fresh(state: ModelState, task: Task, what: str) -> bool:
    """Return whether the state of `what` must be zeroed before every run; False where it has none.

    Raises ConfigError when its results would depend on the windows before: a stage serves several streams with one
    state, and a window that comes again would count twice.
    """
    if state is ModelState.NONE:
        return False
    if task.state is StateRule.REFUSE:
        raise ConfigError(
            f"{what} keeps state from one run to the next (an LSTM's, say), so streams would mix and a window that "
            'comes twice would count twice; if each window carries all the model needs, say state = "reset" under '
            "[task] in the pipeline file: its state is then zero at the start of every window; else convert the model "
            "so that it takes its state as an input"
        )
    if state is ModelState.RESOURCES:
        raise ConfigError(
            f'{what} assigns variables that no runtime can set back, so state = "reset" cannot hold; expected state '
            "in variable tensors; convert the model without resource variables"
        )
    return True
