"""The states that stages send to the command, put together to that of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from har_edge.errors import MessageError, NodeError
from har_edge.learning.split.state import WholeState, decode_state, hash_of, join_states
from har_edge.learning.updates.vector_parts import VectorAssembly
from har_edge.protocol.split_training import STATE, StateMessage
from har_edge.protocol.training import TrainingFile
from har_edge.tflite.gradient.stage_spec import StageSpec

# States of so many steps are put together at a time, and contents of one stage: what a forger begins goes first.
_MOST_OPEN = 4
# The vectors of an optimizer beside the weights (learning/split/state.py), and what names them takes.
_MOST_VECTORS, _HEAD_BYTES = 8, 4096


@dataclass(frozen=True, slots=True)
class SavedState:
    """The state of the whole model and the files of its stages; or the reason that these could not be kept."""

    whole: WholeState
    files: tuple[TrainingFile, ...] = ()
    problem: str = ""


@dataclass(slots=True)
class _Step:
    """The states of one step, by stage: those that are whole, and those under way."""

    contents: dict[int, bytes] = field(default_factory=dict)
    assemblies: dict[tuple[int, str], VectorAssembly] = field(default_factory=dict)


@dataclass(slots=True)
class StateCollection:
    """Collects the states of all stages by step. `put` keeps a content on the disk."""

    put: Callable[[bytes], TrainingFile]
    specs: Sequence[StageSpec] = ()
    _steps: dict[int, _Step] = field(default_factory=dict)

    def begin(self, specs: Sequence[StageSpec]) -> None:
        """Forget what is under way, and collect for these stages."""
        self.specs = specs
        self._steps.clear()

    def add(self, message: StateMessage) -> SavedState | None:
        """Take a part of a state; return the whole once all stages are here.

        Raises MessageError for content that is not what it says, ModelError for states that do not belong together.
        """
        held, number = message.held, message.stage
        if number >= len(self.specs) or message.part.kind != STATE:
            raise MessageError(f"{message.part.kind!r} of stage {number} came; expected a state of a stage of the plan")
        spec = self.specs[number]
        most = spec.weight_bytes * (1 + _MOST_VECTORS) + _HEAD_BYTES
        if held.size > most:
            raise MessageError(f"a state of {held.size} bytes came for stage {number}; expected at most {most}")
        step = self._step(held.step)
        if number in step.contents:
            return None
        content = self._content(step, message)
        if content is None:
            return None
        if (held.start, held.stop) != (spec.start, spec.stop) or hash_of(content) != held.sha256:
            raise MessageError(f"the state of stage {number} came with other content than {held.sha256[:12]}")
        step.contents[number] = content
        if len(step.contents) < len(self.specs):
            return None
        self._steps = {key: one for key, one in self._steps.items() if key > held.step}
        whole = join_states({one: decode_state(step.contents[place], one) for place, one in enumerate(self.specs)})
        try:
            return SavedState(whole, tuple(self.put(step.contents[place]) for place in range(len(self.specs))))
        except NodeError as error:  # a full disk ends no training
            return SavedState(whole, problem=str(error))

    def _step(self, number: int) -> _Step:
        """Return what has come of a step; the step that was begun first makes room for another."""
        if number not in self._steps and len(self._steps) >= _MOST_OPEN:
            del self._steps[next(iter(self._steps))]
        return self._steps.setdefault(number, _Step())

    @staticmethod
    def _content(step: _Step, message: StateMessage) -> bytes | None:
        """Take a part of a content, apart from others of its stage; return it once it is whole."""
        key = (message.stage, message.held.sha256)
        same = [one for one in step.assemblies if one[0] == message.stage]
        if key not in step.assemblies and len(same) >= _MOST_OPEN:
            del step.assemblies[same[0]]
        packed = step.assemblies.setdefault(key, VectorAssembly(message.held.size)).add(message.part)
        if packed is None:
            return None
        del step.assemblies[key]
        return packed.data
