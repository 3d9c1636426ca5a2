"""The tensors that each stage takes from sensors and earlier stages, and sends to later ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from har_edge.config.task import Task
from har_edge.errors import ConfigError
from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorSpec


@dataclass(frozen=True, slots=True)
class Wiring:
    """The inputs and outputs of one stage, by tensor name.

    `sources` maps each source to the input it enters, which may be a region of what comes. `earlier` maps the index of
    an earlier stage to the tensors it sends; shards of the same operators, the `peers`, send to each other, too.
    `sends` are the tensors that other stages need, and `takers` those stages. `answers` says that this stage gives the
    result.

    `passes` are outputs of the model that earlier stages made, and that this one takes along into the result; they are
    among `earlier` and `takes`, and enter no slice.

    A stage sends one message for a window, or several that leave as soon as they are made: `flows` are the tensors of
    each, `takes` those that this stage wants, by the level of the topic (`flow_level`) that brings them.
    """

    index: int
    entry: SliceEntry
    sources: Mapping[str, str]
    earlier: Mapping[int, tuple[str, ...]]
    sends: tuple[str, ...]
    answers: bool
    takers: tuple[int, ...] = ()
    takes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    flows: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    passes: tuple[TensorSpec, ...] = ()
    peers: frozenset[int] = frozenset()

    @property
    def peer_parts(self) -> frozenset[str]:
        """The tensors that come from shards of the same operators."""
        return frozenset(name for stage in self.peers for name in self.earlier.get(stage, ()))

    @property
    def may_take_turns(self) -> bool:
        """Whether one message brings all that a window needs: parts of a window would go to different replicas."""
        return len(self.levels) + bool(self.sources) <= 1

    @property
    def levels(self) -> Mapping[str, tuple[str, ...]]:
        """The tensors that each topic of activations brings, by the level that names its flow."""
        return self.takes or {flow_level(stage, 0): names for stage, names in sorted(self.earlier.items())}

    @property
    def messages(self) -> Mapping[int, tuple[str, ...]]:
        """The tensors of each message that the stage sends for a window, by flow."""
        return self.flows or ({0: self.sends} if self.sends else {})


def flow_level(stage: int, flow: int) -> str:
    """Return the level of a topic that names a flow of a stage."""
    return f"{stage}-{flow}" if flow else str(stage)


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
    sources, earlier, takes = {}, dict[int, list[str]](), dict[str, list[str]]()
    for tensor in entries[index].inputs:
        makers = [
            (k, made.flow)
            for k, entry in enumerate(entries)
            if k < index or (k > index and entry.steps)
            for made in entry.outputs
            if made.name == tensor.name
        ]
        if tensor.name in by_tensor or (tensor.of in by_tensor and not makers):
            sources[by_tensor[tensor.of]] = tensor.name
            continue
        if not makers:
            raise ConfigError(
                f"input {tensor.name!r} of slice {index} comes from no source and no earlier slice; "
                f"name its source in [task.inputs]; known: {', '.join(sorted(by_tensor))}"
            )
        maker, flow = makers[-1]
        earlier.setdefault(maker, []).append(tensor.name)
        takes.setdefault(flow_level(maker, flow), []).append(tensor.name)
    last = find_answering(manifest, task)
    passes = _passes(manifest, task) if index == last else ()
    for maker, tensor in passes:
        earlier.setdefault(maker, []).append(tensor.name)
        takes.setdefault(flow_level(maker, tensor.flow), []).append(tensor.name)
    made = {tensor.name for tensor in entries[index].outputs}
    others = [k for k in range(len(entries)) if k > index or (k < index and entries[index].steps)]
    needed = {k: {tensor.name for tensor in entries[k].inputs} & made for k in others}
    if last in needed and task.gathers:
        needed[last] |= {tensor.name for maker, tensor in _passes(manifest, task) if maker == index}
    takers = tuple(k for k, names in needed.items() if names)
    wanted, flows = set[str]().union(*needed.values()), dict[int, list[str]]()
    for tensor in entries[index].outputs:
        if tensor.name in wanted:
            flows.setdefault(tensor.flow, []).append(tensor.name)
    sends = tuple(tensor.name for tensor in entries[index].outputs if tensor.name in wanted)
    return Wiring(
        index,
        entries[index],
        sources,
        {stage: tuple(names) for stage, names in earlier.items()},
        sends,
        index == last,
        takers,
        {level: tuple(names) for level, names in takes.items()},
        {flow: tuple(names) for flow, names in sorted(flows.items())},
        tuple(tensor for _, tensor in passes),
        frozenset(k for k, entry in enumerate(entries) if k != index and _is_peer(entry, entries[index])),
    )


def _is_peer(entry: SliceEntry, other: SliceEntry) -> bool:
    return bool(entry.steps and other.steps) and (entry.start, entry.stop) == (other.start, other.stop)


def find_answering(manifest: SliceManifest, task: Task) -> int | None:
    """Return the stage that gives the result: the last one that makes an output which results are made of."""
    makers = [k for k, entry in enumerate(manifest.slices) if any(made.name in task.results for made in entry.outputs)]
    return makers[-1] if makers else None


def _passes(manifest: SliceManifest, task: Task) -> list[tuple[int, TensorSpec]]:
    """Return the outputs that reach the answering stage from earlier ones without entering it, each with its stage."""
    last = find_answering(manifest, task)
    if last is None or not task.gathers:
        return []
    there = {spec.name for spec in (*manifest.slices[last].inputs, *manifest.slices[last].outputs)}
    made = {spec.name: (k, spec) for k, entry in enumerate(manifest.slices[:last]) for spec in entry.outputs}
    return [made[name] for name in task.results if name in made and name not in there]


def is_batched(spec: TensorSpec) -> bool:
    """Return whether the first dimension of a tensor is a batch of any size."""
    return spec.batched and spec.shape[:1] == (-1,)
