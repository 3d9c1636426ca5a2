"""Lay out a split: which step of which shard takes which regions from whom, and what travels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from har_edge.errors import CutError
from har_edge.tflite.cuts import check_cuts, slice_refusal, tensor_spec, trace_dataflow
from har_edge.tflite.manifest import (
    MAX_FLOWS,
    MAX_STEPS,
    NEWEST_WIRE,
    ShardStep,
    SliceEntry,
    SliceManifest,
    TensorRegion,
    TensorSpec,
    find_flaw,
    is_covered,
    versioned,
)
from har_edge.tflite.metadata import read_labels
from har_edge.tflite.model import Model
from har_edge.tflite.split.block import BlockSplit, StepDraft
from har_edge.tflite.split.coded import ParitySplit
from har_edge.tflite.split.deferred import DeferredSteps
from har_edge.tflite.split.methods import split_block
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan
from har_edge.tflite.split.transfers import Transfer, Transfers
from har_edge.tflite.state import state_of


@dataclass(frozen=True, slots=True)
class ShardDraft:
    """One entry of the manifest to be: the steps of one shard in order, and what it takes and gives.

    `takers` are, for each output, the programs that take it, by index.
    """

    start: int
    stop: int
    steps: tuple[StepDraft, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    takers: tuple[tuple[int, ...], ...] = ()

    @property
    def macs(self) -> int:
        """The multiply-adds of all steps, those that other shards do as well included."""
        return sum(step.macs for step in self.steps)


@dataclass(frozen=True, slots=True)
class SplitLayout:
    """All programs of a model, in the manifest's order, and its manifest without hashes.

    `files` maps the name of each file to a step that writes it; `plans` are the groups of shards.
    """

    programs: tuple[ShardDraft, ...]
    manifest: SliceManifest
    files: dict[str, StepDraft] = field(repr=False)
    plans: tuple[SplitPlan, ...]


def split_model(model: Model, plans: Sequence[SplitPlan]) -> SplitLayout:
    """Return the programs of groups of shards that follow each other; nothing is written.

    A plan of one shard with one WHOLE block is an ordinary slice. Raises CutError for plans that do not cover the
    model, for blocks that their method cannot take, and where no shard would have a result of the model whole.
    """
    return _Layout(model, plans).lay_out()


def ordinary(start: int, stop: int) -> SplitPlan:
    """Return the plan of a slice that is not split."""
    return SplitPlan(1, (Block(start, stop, SplitMethod.WHOLE, (0, 1)),), border_first=False)


@dataclass(slots=True)
class _Group:
    """One plan, the number of its first program, and its blocks."""

    plan: SplitPlan
    first: int
    blocks: list[BlockSplit]


class _Layout:
    def __init__(self, model: Model, plans: Sequence[SplitPlan]) -> None:
        self.model, self.flow = model, trace_dataflow(model)
        graph = model.main
        self._check(plans)
        self.groups = list[_Group]()
        count = 0
        for plan in plans:
            self.groups.append(_Group(plan, count, [split_block(model, self.flow, block) for block in plan.blocks]))
            count += plan.shards
        self.count = count
        self._planned = {tensor.name: tensor.shape for tensor in graph.tensors}
        self._plain = all(_is_ordinary(plan) for plan in plans)
        sources = (tensor_spec(graph.tensors[i]) for i in graph.inputs if i not in self.flow.maker)
        self.transfers = Transfers(count, {spec.name: self._one(spec) for spec in sources})
        self.deferred = DeferredSteps()
        self.steps: list[list[StepDraft]] = [[] for _ in range(count)]

    def lay_out(self) -> SplitLayout:
        order = 0
        for group in self.groups:
            for split in group.blocks:
                self._connect(group, split, order)
                order += 1
        order = 0
        for group in self.groups:
            for split in group.blocks:
                for shard in range(group.plan.shards):
                    program = group.first + shard
                    urgent = self.transfers.urgent(program, order) if group.plan.border_first else []
                    steps = self._steps(split, shard, program, order, urgent) + self._answer(split, shard)
                    self.steps[program] += [self._summed(step) for step in steps]
                order += 1
        results = self._results()
        programs = []
        for group in self.groups:
            for shard in range(group.plan.shards):
                programs.append(self._program(group, group.first + shard, results))
        return self._finish(programs)

    def _check(self, plans: Sequence[SplitPlan]) -> None:
        graph, at = self.model.main, 0
        for plan in plans:
            if plan.start != at:
                raise CutError(f"a split of operators [{plan.start}, {plan.stop}) came; expected some from {at} on")
            at = plan.stop
            if _is_ordinary(plan):
                continue
            if state_of(self.model, tuple(range(plan.start, plan.stop))).value != "none":
                raise CutError(f"operators [{plan.start}, {plan.stop}) keep state; expected a slice that is not split")
        if at != len(graph.operators):
            raise CutError(f"splits of {at} operators came; expected all {len(graph.operators)} of the model")
        blocks = [block for plan in plans for block in plan.blocks]
        check_cuts(graph, self.flow, [block.start for block in blocks[1:]])
        for block in blocks if len(blocks) > 1 else ():
            reason = slice_refusal(graph, self.flow, block.start, block.stop)
            if reason:
                raise CutError(f"cannot make a block of operators [{block.start}, {block.stop}): {reason}")

    def _steps(
        self, split: BlockSplit, shard: int, program: int, order: int, urgent: Sequence[TensorRegion] = ()
    ) -> list[StepDraft]:
        steps = [self._fixed(step) for step in split.steps(shard, urgent)]
        return self.deferred.before(program, order, steps) + steps

    def _answer(self, split: BlockSplit, shard: int) -> list[StepDraft]:
        """Return what the parity shard of a block runs that makes a result of the model: nobody else takes it."""
        if not isinstance(split, ParitySplit) or shard != split.parity:
            return []
        results = {self.model.main.tensors[index].name for index in self.model.main.outputs}
        steps = [self._fixed(step) for step in split.finish_steps()]
        return steps if any(spec.of in results for step in steps for spec in step.outputs) else []

    def _connect(self, group: _Group, split: BlockSplit, order: int) -> None:
        """Say who takes what of whom for a block."""
        shards = range(group.plan.shards)
        self._link(group, split, [self._steps(split, shard, group.first + shard, order) for shard in shards], order)
        if isinstance(split, ParitySplit):
            self._link(group, split, [self._answer(split, shard) for shard in shards], order)
            self.deferred.defer([self._fixed(step) for step in split.finish_steps()])

    def _link(self, group: _Group, split: BlockSplit, steps: Sequence[Sequence[StepDraft]], order: int) -> None:
        """Say who takes what of whom for the steps of all shards; those of the same number run side by side."""
        for turn in range(max(map(len, steps))):
            now = [(group.first + k, own[turn]) for k, own in enumerate(steps) if turn < len(own)]
            for program, step in now:
                for spec in step.inputs:
                    if not self.transfers.take(program, spec, order):
                        raise CutError(
                            f"operators [{split.block.start}, {split.block.stop}) need {_region_text(spec)}, which no "
                            "shard makes so; split the block before along the same axis, or not at all"
                        )
            for program, step in now:
                for spec in step.outputs:
                    self.transfers.make(program, spec, order)

    def _fixed(self, step: StepDraft) -> StepDraft:
        """Return a step for one window at a time: files of shards have the batch for which the model is planned."""
        return StepDraft(
            tuple(self._one(spec) for spec in step.inputs),
            tuple(self._one(spec) for spec in step.outputs),
            step.macs,
            step.key,
            step.write,
        )

    def _one(self, spec: TensorSpec) -> TensorSpec:
        if spec.shape[:1] != (-1,) or self._plain:
            return spec
        return msgspec.structs.replace(spec, shape=(self._planned.get(spec.of, (1,))[0], *spec.shape[1:]))

    def _summed(self, step: StepDraft) -> StepDraft:
        inputs = tuple(self.transfers.summed(spec) for spec in step.inputs)
        return StepDraft(inputs, step.outputs, step.macs, step.key, step.write)

    def _results(self) -> dict[int, list[TensorSpec]]:
        """Return the results of the model by the program that gives each."""
        graph, found = self.model.main, dict[int, list[TensorSpec]]()
        for index in graph.outputs:
            name = graph.tensors[index].name
            makers = [
                (program, spec)
                for program, steps in enumerate(self.steps)
                for step in steps
                for spec in step.outputs
                if spec.of == name and spec.region is None
            ]
            if not makers:
                raise CutError(
                    f"the shards would have parts of the result {name}, and none has it whole; let one shard compute "
                    "the last operators whole"
                )
            program, spec = makers[-1]
            found.setdefault(program, []).append(spec)
        return found

    def _program(self, group: _Group, program: int, results: dict[int, list[TensorSpec]]) -> ShardDraft:
        steps = self.steps[program]
        if not steps:
            raise CutError(f"shard {program - group.first} has no share of any block; expected one for each shard")
        if len(steps) > MAX_STEPS:
            raise CutError(f"a shard would run {len(steps)} steps, expected at most {MAX_STEPS}; fuse more operators")
        sent = self.transfers.sent(program)
        for spec in results.get(program, ()):
            if all(one.spec.name != spec.of for one in sent):
                sent.append(Transfer(msgspec.structs.replace(spec, name=spec.of), ()))
        outputs, flows = list[TensorSpec](), dict[tuple[int, tuple[int, ...]], int]()
        for moment, one in sorted(((_moment(one.spec, steps), one) for one in sent), key=lambda each: each[0]):
            flow = flows.setdefault((moment, one.takers), len(flows)) if one.takers else 0
            outputs.append(msgspec.structs.replace(one.spec, flow=flow))
        if len(flows) > MAX_FLOWS:
            raise CutError(f"a shard would send {len(flows)} messages a window, expected at most {MAX_FLOWS}")
        takers = {one.spec.name: one.takers for one in sent}
        return ShardDraft(
            group.plan.start,
            group.plan.stop,
            tuple(steps),
            tuple(self.transfers.taken(program)),
            tuple(outputs),
            tuple(takers[spec.name] for spec in outputs),
        )

    def _finish(self, programs: list[ShardDraft]) -> SplitLayout:
        ids = {tensor.name: tensor.index for tensor in self.model.main.tensors}
        for program in programs:
            for spec in (*program.inputs, *program.outputs):
                ids.setdefault(spec.name, len(ids))
        files, names = dict[str, StepDraft](), dict[Hashable, str]()
        for step in (step for program in programs for step in program.steps):
            if step.key not in names:
                names[step.key] = f"slice-{len(names)}.tflite"
                files[names[step.key]] = step
        groups = [group for group in self.groups for _ in range(group.plan.shards)]
        entries = [
            self._entry(group.plan, program, names, ids) for group, program in zip(groups, programs, strict=True)
        ]
        manifest = versioned(
            SliceManifest(
                0, self.model.name, self.model.sha256, tuple(entries), NEWEST_WIRE, labels=read_labels(self.model)
            )
        )
        flaw = find_flaw(manifest)
        if flaw:
            raise CutError(f"the split {flaw}; choose other blocks or shares")
        return SplitLayout(tuple(programs), manifest, files, tuple(group.plan for group in self.groups))

    def _entry(
        self, plan: SplitPlan, program: ShardDraft, names: dict[Hashable, str], ids: dict[str, int]
    ) -> SliceEntry:
        def numbered(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
            return tuple(msgspec.structs.replace(spec, id=ids[spec.name]) for spec in specs)

        steps = tuple(ShardStep(names[one.key], "", one.inputs, one.outputs) for one in program.steps)
        pieces = any(spec.region or spec.flow for spec in (*program.inputs, *program.outputs))
        plain = _is_ordinary(plan) and not pieces
        return SliceEntry(
            file=steps[0].file,
            sha256="",
            start=program.start,
            stop=program.stop,
            inputs=numbered(program.inputs),
            outputs=numbered(program.outputs),
            state=state_of(self.model, tuple(range(program.start, program.stop))),
            steps=() if plain else steps,
        )


def _is_ordinary(plan: SplitPlan) -> bool:
    return plan.shards == 1 and len(plan.blocks) == 1 and plan.blocks[0].method is SplitMethod.WHOLE


def _moment(spec: TensorSpec, steps: Sequence[StepDraft]) -> int:
    """Return the step after which a region is there."""
    made = list[TensorSpec]()
    for number, step in enumerate(steps):
        new = [one for one in step.outputs if one.of == spec.of]
        made += new
        if new and is_covered(spec, made):
            return number
    raise CutError(f"a shard would never make {_region_text(spec)}; choose other blocks or shares")


def _region_text(spec: TensorSpec) -> str:
    region = spec.region
    if region is None:
        return f"tensor {spec.name}"
    return f"elements {region.start} to {region.stop - 1} of {region.of} along axis {region.axis}"
