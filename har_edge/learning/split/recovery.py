"""Go on after a loss: the step that all stages can go back to, and who holds which of them from there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from har_edge.errors import NodeError
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.protocol.split_training import AssignedStage, HeldState, SplitStage, StateSource
from har_edge.protocol.training import TrainingFile
from har_edge.tflite.gradient.stage_spec import StageSpec

# Whether a worker has memory for a stage beside those that it holds already: its name, and the numbers of them all.
Fits = Callable[[str, tuple[int, ...]], bool]


@dataclass(frozen=True, slots=True)
class StageRecovery:
    """The step that all go on from, and the stages with their workers and the sources of their states."""

    step: int
    stages: tuple[AssignedStage, ...]


def plan_recovery(
    stages: Sequence[AssignedStage],
    alive: Mapping[str, Sequence[HeldState]],
    saved: Mapping[int, Sequence[TrainingFile]],
    spares: Sequence[str],
    fits: Fits,
) -> StageRecovery:
    """Return how to go on with the workers that are left.

    The step is the last of which each stage's state is with a worker that is alive, or with the command. A stage that
    has lost its only worker goes to a spare one, else to the one with its copy, else to the one with the fewest stages.

    Args:
        alive: The states that each worker holds which is alive.
        saved: The files of all stages, in order, by step, that the command has.
        spares: Workers without a stage, the one to be preferred first.
        fits: Whether a worker has memory for these stages together.

    Raises NodeError where no worker has memory for a stage.
    """
    holders = [_holders(one.stage, alive) for one in stages]
    common = {step for step in holders[0] if all(step in one for one in holders)} | set(saved)
    if not common:
        raise NodeError("no step is left that all stages can go back to; go on from the checkpoint on the disk")
    step = max(common)
    files = saved.get(step)
    placed = _place(stages, [one.get(step, {}) for one in holders], alive, spares, fits)
    found = []
    for number, (one, workers) in enumerate(zip(stages, placed, strict=True)):
        source = _source(holders[number].get(step, {}), workers, files[number] if files is not None else None)
        slots = one.stage.slots if workers == one.stage.workers else ()
        found.append(structs.replace(one, stage=structs.replace(one.stage, workers=workers, slots=slots), state=source))
    return StageRecovery(step, with_neighbours(found))


def needed_bytes(
    specs: Sequence[StageSpec], stages: Sequence[SplitStage], numbers: Sequence[int], optimizer: str
) -> int:
    """Return the memory that some stages take together, without that of a process, as far as their numbers tell.

    Weights, gradients, a scratch vector and those of the optimizer; what is held of micro-batches; messages.
    """
    vectors = len(make_optimizer(optimizer, 1).state()) - 1
    return sum(
        specs[number].weight_bytes * (3 + vectors)
        + stages[number].in_flight * specs[number].held_bytes
        + 2 * (specs[number].entering_bytes + specs[number].leaving_bytes)
        for number in numbers
    )


def with_neighbours(stages: Sequence[AssignedStage]) -> tuple[AssignedStage, ...]:
    """Return the stages, each with the neighbour that keeps a copy: the first worker of the next that is another."""
    firsts = [one.stage.workers[0] for one in stages]
    found = []
    for number, one in enumerate(stages):
        after = [*firsts[number + 1 :], *firsts[:number]]
        others = [name for name in after if name not in one.stage.workers]
        found.append(structs.replace(one, neighbour=others[0] if others else ""))
    return tuple(found)


def _holders(stage: SplitStage, alive: Mapping[str, Sequence[HeldState]]) -> dict[int, dict[str, HeldState]]:
    """Return who has the state of a stage, by step; states of one step that differ are those of the most workers."""
    found: dict[int, dict[str, HeldState]] = {}
    for name in sorted(alive):
        for one in alive[name]:
            if (one.start, one.stop) == (stage.start, stage.stop):
                found.setdefault(one.step, {})[name] = one
    for step, held in found.items():
        (usual, _), *_ = Counter(one.sha256 for one in held.values()).most_common()
        found[step] = {name: one for name, one in held.items() if one.sha256 == usual}
    return found


def _place(
    stages: Sequence[AssignedStage],
    holders: Sequence[Mapping[str, HeldState]],
    alive: Mapping[str, Sequence[HeldState]],
    spares: Sequence[str],
    fits: Fits,
) -> list[tuple[str, ...]]:
    placed = [tuple(name for name in one.stage.workers if name in alive) for one in stages]
    free = [name for name in spares if name in alive]
    for number, workers in enumerate(placed):
        if workers:
            continue
        load = Counter(name for names in placed for name in names)
        own = {name: tuple(place for place, names in enumerate(placed) if name in names) for name in alive}
        order = [*free, *sorted(holders[number], key=lambda name: (load[name], name))]
        order += sorted(alive, key=lambda name: (load[name], name))
        chosen = next((name for name in order if fits(name, (*own[name], number))), None)
        if chosen is None:
            stage = stages[number].stage
            raise NodeError(
                f"no node that is left has memory for operators {stage.start} to {stage.stop} beside its own stages; "
                "add a node, or begin again with smaller micro-batches"
            )
        placed[number] = (chosen,)
        free = [name for name in free if name != chosen]
    return placed


def _source(held: Mapping[str, HeldState], workers: tuple[str, ...], file: TrainingFile | None) -> StateSource:
    """Return where the workers of a stage get its state from: one that has it, else the command."""
    if not held:
        assert file is not None
        return StateSource(file)
    holder = next((name for name in workers if name in held), sorted(held)[0])
    lacking = tuple(name for name in workers if name not in held)
    return StateSource(TrainingFile(held[holder].sha256, held[holder].size), holder, lacking)
