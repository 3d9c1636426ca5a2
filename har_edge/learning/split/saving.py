"""The states that stages send to the command, put together to that of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from har_edge.errors import MessageError
from har_edge.learning.split.state import WholeState, decode_state, hash_of, join_states
from har_edge.learning.vector_parts import VectorAssembly
from har_edge.protocol.split_training import STATE, StateMessage
from har_edge.protocol.training import TrainingFile
from har_edge.tflite.gradient.stage_spec import StageSpec


@dataclass(slots=True)
class _Step:
    """The states of one step, by stage: those that are whole, and those under way."""

    contents: dict[int, bytes] = field(default_factory=dict)
    assemblies: dict[int, VectorAssembly] = field(default_factory=dict)


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

    def add(self, message: StateMessage) -> tuple[WholeState, tuple[TrainingFile, ...]] | None:
        """Take a part of a state; return the whole, and the files of the stages, once all are here.

        Raises MessageError for content that is not what it says, ModelError for states that do not belong together.
        """
        held, number = message.held, message.stage
        if number >= len(self.specs) or message.part.kind != STATE:
            raise MessageError(f"{message.part.kind!r} of stage {number} came; expected a state of a stage of the plan")
        spec, step = self.specs[number], self._steps.setdefault(held.step, _Step())
        if number in step.contents:
            return None
        packed = step.assemblies.setdefault(number, VectorAssembly(held.size)).add(message.part)
        if packed is None:
            return None
        del step.assemblies[number]
        if (held.start, held.stop) != (spec.start, spec.stop) or hash_of(packed.data) != held.sha256:
            raise MessageError(f"the state of stage {number} came with other content than {held.sha256[:12]}")
        step.contents[number] = packed.data
        if len(step.contents) < len(self.specs):
            return None
        self._steps = {key: one for key, one in self._steps.items() if key > held.step}
        whole = join_states({one: decode_state(step.contents[place], one) for place, one in enumerate(self.specs)})
        return whole, tuple(self.put(step.contents[place]) for place in range(len(self.specs)))
