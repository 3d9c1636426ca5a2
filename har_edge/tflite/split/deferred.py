"""The last steps of blocks with a parity, which every program runs that takes the result."""

from __future__ import annotations

from collections.abc import Sequence

from har_edge.tflite.split.block import StepDraft


class DeferredSteps:
    """Says which deferred steps a program runs before others: each once, before the first step that needs them.

    Asked again for the same block, it answers the same.
    """

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}
        self._groups: list[list[StepDraft]] = []
        self._at: dict[tuple[int, int], int] = {}

    def defer(self, steps: Sequence[StepDraft]) -> None:
        """Leave steps to those who take what these make."""
        for step in steps:
            self._steps.update({spec.of: len(self._groups) for spec in step.outputs})
        self._groups.append(list(steps))

    def before(self, program: int, order: int, steps: Sequence[StepDraft]) -> list[StepDraft]:
        """Return what a program runs first, for its steps in the block of this number."""
        return self._before(program, order, steps, set())

    def _before(self, program: int, order: int, steps: Sequence[StepDraft], known: set[int]) -> list[StepDraft]:
        found = list[StepDraft]()
        for spec in (spec for step in steps for spec in step.inputs):
            number = self._steps.get(spec.of)
            if number is None or number in known or self._at.setdefault((program, number), order) != order:
                continue
            known.add(number)
            group = self._groups[number]
            found += [*self._before(program, order, group, known), *group]
        return found
