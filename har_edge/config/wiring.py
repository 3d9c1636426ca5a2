"""The tensors that each stage takes from sensors and earlier stages, and sends to later ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from har_edge.config.task import Task
from har_edge.errors import ConfigError
from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorSpec


@dataclass(frozen=True, slots=True)
class Wiring:
    """The inputs and outputs of one stage, by tensor name.

    `sources` maps each source to the input it enters. `earlier` maps the index of an earlier stage to the tensors it
    sends. `sends` are the tensors that later stages need, and `takers` those stages. `answers` says that this stage
    gives the result.
    """

    index: int
    entry: SliceEntry
    sources: Mapping[str, str]
    earlier: Mapping[int, tuple[str, ...]]
    sends: tuple[str, ...]
    answers: bool
    takers: tuple[int, ...] = ()


def find_wiring(manifest: SliceManifest, task: Task, index: int) -> Wiring:
    """Return the inputs and outputs of the stage with slice `index`.

    Raises ConfigError when there is no such slice, or nothing feeds it.
    """
    entries = manifest.slices
    if not 0 <= index < len(entries):
        raise ConfigError(f"stage {index} came; expected 0 to {len(entries) - 1}, for {len(entries)} slices")
    if not entries[index].inputs:
        raise ConfigError(f"slice {index} takes nothing, so no message could start it; cut the model elsewhere")
    by_tensor = {enters.tensor: source for source, enters in task.inputs.items()}
    sources, earlier = {}, dict[int, list[str]]()
    for tensor in entries[index].inputs:
        if tensor.name in by_tensor:
            sources[by_tensor[tensor.name]] = tensor.name
            continue
        makers = [k for k in range(index) if any(made.name == tensor.name for made in entries[k].outputs)]
        if not makers:
            raise ConfigError(
                f"input {tensor.name!r} of slice {index} comes from no source and no earlier slice; "
                f"name its source in [task.inputs]; known: {', '.join(sorted(by_tensor))}"
            )
        earlier.setdefault(makers[-1], []).append(tensor.name)
    made = {tensor.name for tensor in entries[index].outputs}
    needed = {k: {tensor.name for tensor in entries[k].inputs} & made for k in range(index + 1, len(entries))}
    takers = tuple(k for k, names in needed.items() if names)
    sends = tuple(tensor.name for tensor in entries[index].outputs if tensor.name in set().union(*needed.values()))
    answers = any(tensor.name == task.output for tensor in entries[index].outputs)
    frozen = {stage: tuple(names) for stage, names in earlier.items()}
    return Wiring(index, entries[index], sources, frozen, sends, answers, takers)


def is_batched(spec: TensorSpec) -> bool:
    """Return whether the first dimension of a tensor is a batch of any size."""
    return spec.batched and spec.shape[:1] == (-1,)
