"""Make a job of a model and samples: the training graph, its description, and the blocks, each a file by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from har_edge.errors import ConfigError, DataError, ModelError
from har_edge.learning.data.blocks import cut_blocks, samples_a_block, write_block
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.data.input_layout import InputLayout, layout_of
from har_edge.learning.updates.vectors import Vector, flatten
from har_edge.protocol.training import MAX_BLOCKS, BlockFile, TrainingFile
from har_edge.runtime.artifact_store import Store
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.spec import TrainingSpec
from har_edge.tflite.gradient.training_graph import write_training_graph
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import Model

# Blocks of a data set, unless they would be larger than others hold: several for each of some tens of workers.
BLOCKS = 64


@dataclass(frozen=True, slots=True)
class TrainableModel:
    """A model with its training graph; `weights` is the vector that it begins with."""

    model: Model
    graph: bytes = field(repr=False)
    spec: TrainingSpec
    weights: Vector = field(repr=False)

    @property
    def layout(self) -> InputLayout:
        """How its inputs stand in a sample."""
        return layout_of(self.spec)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.layout.shape

    @property
    def classes(self) -> int:
        """How many classes the model tells apart; 0 where it learns its own input."""
        return self.spec.y.shape[-1] if self.spec.y is not None and self.spec.loss == Loss.CROSS_ENTROPY.value else 0


def prepare_model(model: Model, batch: int, loss: Loss = Loss.CROSS_ENTROPY) -> TrainableModel:
    """Return a model with its training graph.

    Raises GradientError for what cannot be trained, ModelError for one with several inputs that is to learn its input.
    """
    graph = write_training_graph(model, batch=batch, loss=loss)
    if len(graph.spec.x) != 1 and loss is Loss.MEAN_SQUARED:
        names = ", ".join(one.name for one in graph.spec.x)
        raise ModelError(
            f"{model.name} takes {len(graph.spec.x)} inputs ({names}); a model that learns its own input has one: take "
            "--loss cross-entropy"
        )
    return TrainableModel(model, bytes(graph.data), graph.spec, flatten(read_weights(model), graph.spec.weights))


def fit_to_model(data: Dataset, model: TrainableModel) -> Dataset:
    """Return samples of the shape that a model takes. Raises DataError for another shape or number of classes."""
    if model.classes and len(data.classes) != model.classes:
        raise DataError(
            f"{data.name} has {len(data.classes)} classes, and the model tells {model.classes} apart; choose data with "
            "as many, or another model"
        )
    return data.reshaped(model.shape)


def store_files(store: Store, contents: Iterable[bytes]) -> list[TrainingFile]:
    """Put contents into the store, and return their hashes and sizes."""
    files = []
    for content in contents:
        file = TrainingFile(hashlib.sha256(content).hexdigest(), len(content))
        store.keep_also([file.sha256])
        store.put(file.sha256, content)
        files.append(file)
    return files


def store_blocks(store: Store, data: Dataset, seed: int) -> tuple[BlockFile, ...]:
    """Cut samples into blocks in an order that the seed gives, and put them into the store."""
    count = max(1, min(samples_a_block(data), -(-len(data) // BLOCKS)))
    if -(-len(data) // count) > MAX_BLOCKS:
        raise ConfigError(f"{data.name} would take more than {MAX_BLOCKS} blocks; take fewer samples")
    blocks = []
    for block in cut_blocks(data, seed, count):
        (file,) = store_files(store, [write_block(block)])
        blocks.append(BlockFile(file.sha256, file.size, len(block)))
    return tuple(blocks)


def initialise(weights: Vector, spec: TrainingSpec, seed: int) -> Vector:
    """Return new weights to begin with: biases 0, others uniform by their fans (Glorot and Bengio 2010, equation 16).

    A filter is [out, height, width, in] or [out, in], as the operators of TFLite have it.
    """
    generator, parts, start = np.random.RandomState(seed % 2**32), [], 0
    for weight in spec.weights:
        size = weight.elements
        if len(weight.shape) < 2:
            parts.append(weights[start : start + size] * np.float32(0))
        else:
            receptive = int(np.prod(weight.shape[1:-1])) or 1
            limit = np.sqrt(6 / (receptive * (weight.shape[0] + weight.shape[-1])))
            parts.append(generator.uniform(-limit, limit, size).astype(np.float32))
        start += size
    return np.concatenate(parts)
