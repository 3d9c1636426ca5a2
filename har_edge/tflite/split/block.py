"""The steps that the shards of one block run, whatever its method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import msgspec

from har_edge.tflite.cuts import Dataflow, tensor_spec
from har_edge.tflite.manifest import TensorRegion, TensorSpec
from har_edge.tflite.model import Model, Tensor
from har_edge.tflite.slices import make_slice, write_slice
from har_edge.tflite.split.arithmetic import count_macs
from har_edge.tflite.split.plan import Block


@dataclass(frozen=True, slots=True)
class StepDraft:
    """One run of a file: what it takes and makes, its multiply-adds, and how to write the file.

    `inputs` and `outputs` stand in the file's order, and their names are those of the file; their regions say what they
    are. Steps with an equal `key` have the same file, whoever runs them.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    macs: int
    key: Hashable
    write: Callable[[], memoryview] = field(repr=False, compare=False)


class BlockSplit(ABC):
    """How the shards share one block of operators. A method is one subclass, made from a model, its dataflow and a
    block.

    The constructor raises CutError for a block or shares that the method cannot take.
    """

    def __init__(self, model: Model, flow: Dataflow, block: Block) -> None:
        self.model, self.flow, self.block = model, flow, block

    @abstractmethod
    def steps(self, shard: int, urgent: Sequence[TensorRegion] = ()) -> list[StepDraft]:
        """Return the steps of a shard in the order in which they run, none for a shard without a share.

        `urgent` are the regions that other shards wait for; a method that can make them first does so.
        """


class WholeSplit(BlockSplit):
    """A block that one shard computes as it is."""

    def steps(self, shard: int, urgent: Sequence[TensorRegion] = ()) -> list[StepDraft]:
        low, high = self.block.share(shard)
        if low == high:
            return []
        made = make_slice(self.model, self.flow, self.block.start, self.block.stop)
        own = (i for i in made.part.operators if i not in self.flow.folded)
        macs = count_macs(self.model.main, own)
        key = ("whole", self.block.start, self.block.stop)
        return [StepDraft(made.inputs, made.outputs, macs, key, lambda: write_slice(self.model, made))]


def whole(tensor: Tensor) -> TensorSpec:
    """Return all of a tensor."""
    return tensor_spec(tensor)


def piece(tensor: Tensor, axis: int, start: int, stop: int, name: str = "") -> TensorSpec:
    """Return elements [start, stop) of a tensor along an axis; all of them are the whole tensor.

    `name` is that of the file's own tensor, by default the model's.
    """
    spec = tensor_spec(tensor)
    if name:
        spec = msgspec.structs.replace(spec, name=name)
    if (start, stop) == (0, tensor.shape[axis]) and spec.name == tensor.name:
        return spec
    shape = (*spec.shape[:axis], stop - start, *spec.shape[axis + 1 :])
    return msgspec.structs.replace(spec, shape=shape, region=TensorRegion(tensor.name, axis, start, stop))


def summand(tensor: Tensor, axis: int, start: int, stop: int, number: int, count: int, dtype: str = "") -> TensorSpec:
    """Return one of `count` arrays whose sum is a region of a tensor; `dtype` is the type in which they are added."""
    spec = tensor_spec(tensor)
    shape = (*spec.shape[:axis], stop - start, *spec.shape[axis + 1 :])
    region = TensorRegion(tensor.name, axis, start, stop, number, count)
    return msgspec.structs.replace(spec, shape=shape, dtype=dtype or spec.dtype, region=region)
