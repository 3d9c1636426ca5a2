"""Features of pictures: maps of values that are alike for all normal pictures at each position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import ModelError
from har_edge.tflite.feature_copy import FeatureCopy, input_scaling
from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.metadata import read_normalizations
from har_edge.tflite.model import Model
from har_edge.tflite.schema import tflite

# A layer of features is at most so much smaller than the picture, by default: beyond, a defect has no place.
_COARSEST = 16
# Networks for larger pictures see little in smaller ones.
_LEAST_SIDE = 112
# The picture itself has at most so many values as a feature: its covariance grows with their square.
_MOST_VALUES = 1024


class Features(Protocol):
    """Writes features into a file."""

    @property
    def origin(self) -> str:
        """The network behind them, by name and hash; "" for one that was trained here."""

    def write(self, builder: GraphBuilder, x: int) -> list[int]:
        """Write the features of `x`, float32 [n, height, width, channels] from 0 to 1, and return the maps.

        A map is float32 [n, h, w, c].
        """


@dataclass(frozen=True, slots=True)
class NetworkFeatures:
    """Layers of a network that was trained for something else, such as ImageNet, quantised or float.

    `layers` names tensors of the model. Pictures are enlarged `zoom` times first, for small ones.
    `scaling` has factor and offset that make the value of a byte, where the network does not say them.
    """

    model: Model = field(repr=False)
    layers: tuple[str, ...]
    zoom: int = 1
    scaling: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def origin(self) -> str:
        """The name of the network, its hash, and the layers: of a name of fused ones, the first."""
        return f"{self.model.name} {self.model.sha256[:16]}: {', '.join(one.split(';')[0] for one in self.layers)}"

    def write(self, builder: GraphBuilder, x: int) -> list[int]:
        """Write the network up to its layers; grey pictures become RGB. ModelError where they do not fit."""
        height, width, channels = builder.shape(x)[1:]
        if self.zoom > 1:
            x = resize(builder, x, height * self.zoom, width * self.zoom)
        wanted = self.model.main.tensors[self.model.main.inputs[0]].shape[-1]
        if channels == 1 and wanted == 3:
            x = builder.concat([x, x, x], 3)
        elif channels != wanted:
            raise ModelError(f"{self.model.name} takes {wanted} channels; pictures with {channels} came")
        factor, offset = self.scaling or input_scaling(self.model, read_normalizations(self.model))
        x = builder.times(x, builder.constant(255 * np.array(factor, np.float32)))
        x = builder.plus(x, builder.constant(np.array(offset, np.float32)))
        return FeatureCopy(builder, self.model).write(x, self.layers)


@dataclass(frozen=True, slots=True)
class ReconstructionFeatures:
    """The difference between a picture and what an autoencoder makes of it; with `code`, a tensor's values too."""

    model: Model = field(repr=False)
    code: str = ""

    @property
    def origin(self) -> str:
        """Nothing: the autoencoder was trained for this alone."""
        return ""

    def write(self, builder: GraphBuilder, x: int) -> list[int]:
        """Write the autoencoder and the difference."""
        main = self.model.main
        wanted = [main.tensors[main.outputs[0]].name, *([self.code] if self.code else [])]
        output, *codes = FeatureCopy(builder, self.model).write(x, wanted)
        return [builder.minus(x, output), *codes]


@dataclass(frozen=True, slots=True)
class PictureFeatures:
    """The picture itself as one map [n, 1, 1, values], made smaller to 1024 values at most."""

    @property
    def origin(self) -> str:
        """Nothing: no network is behind it."""
        return ""

    def write(self, builder: GraphBuilder, x: int) -> list[int]:
        """Write means over squares of pixels, all in one row."""
        n, height, width, channels = builder.shape(x)
        step = 1
        while -(-height // step) * -(-width // step) * channels > _MOST_VALUES:
            step += 1
        if step > 1:
            options = tflite.Pool2DOptionsT()
            options.filterHeight = options.filterWidth = options.strideH = options.strideW = step
            options.padding = tflite.Padding.SAME
            x = builder.add("AVERAGE_POOL_2D", [x], (n, -(-height // step), -(-width // step), channels), options)
        values = int(np.prod(builder.shape(x)[1:]))
        row = tflite.ReshapeOptionsT()
        row.newShape = np.array([-1, 1, 1, values], np.int32)
        return [builder.add("RESHAPE", [x, builder.ints([-1, 1, 1, values])], (n, 1, 1, values), row)]


@dataclass(frozen=True, slots=True)
class JoinedFeatures:
    """The maps of several features, one behind the other."""

    parts: tuple[Features, ...]

    @property
    def origin(self) -> str:
        """The networks behind them."""
        return "; ".join(one.origin for one in self.parts if one.origin)

    def write(self, builder: GraphBuilder, x: int) -> list[int]:
        """Write all of them."""
        return [one for part in self.parts for one in part.write(builder, x)]


@dataclass(frozen=True, slots=True)
class NormalizedFeatures:
    """Features less a mean and times a factor, one of each for a channel, float32 [c] for each map."""

    features: Features
    means: tuple[NDArray[np.float32], ...] = field(repr=False)
    factors: tuple[NDArray[np.float32], ...] = field(repr=False)

    @property
    def origin(self) -> str:
        """The network behind the features."""
        return self.features.origin

    def write(self, builder: GraphBuilder, x: int) -> list[int]:
        """Write the features, and normalise them."""
        return [
            builder.times(builder.minus(one, builder.constant(mean)), builder.constant(factor))
            for one, mean, factor in zip(self.features.write(builder, x), self.means, self.factors, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class DifferenceFeatures:
    """The difference between the features of a teacher and those of a student that learned them on normal pictures."""

    teacher: Features
    student: Model = field(repr=False)
    outputs: tuple[str, ...]

    @property
    def origin(self) -> str:
        """The network of the teacher."""
        return self.teacher.origin

    def write(self, builder: GraphBuilder, x: int) -> list[int]:
        """Write teacher, student and the differences."""
        learned = FeatureCopy(builder, self.student).write(x, self.outputs)
        taught = self.teacher.write(builder, x)
        return [builder.minus(one, other) for one, other in zip(learned, taught, strict=True)]


def resize(builder: GraphBuilder, x: int, height: int, width: int) -> int:
    """Return maps [n, h, w, c] in another size, bilinearly between the centres of pixels."""
    n, own_height, own_width, channels = builder.shape(x)
    if (own_height, own_width) == (height, width):
        return x
    options = tflite.ResizeBilinearOptionsT()
    options.alignCorners, options.halfPixelCenters = False, True
    inputs = [x, builder.ints([height, width])]
    return builder.add("RESIZE_BILINEAR", inputs, (n, height, width, channels), options, version=3)


def pick_layers(model: Model, count: int = 3, coarsest: int = _COARSEST) -> tuple[str, ...]:
    """Return the last layer of each resolution of a network, the `count` finest of those behind the first.

    Resolutions are those of the file's own input; one coarser than a sixteenth of it (1 / `coarsest`) does not count.
    Raises ModelError for a network without such layers.
    """
    main = model.main
    height = main.tensors[main.inputs[0]].shape[1] if len(main.tensors[main.inputs[0]].shape) == 4 else 0
    last: dict[int, str] = {}
    lowest = height
    for operator in main.operators:
        tensor = main.tensors[operator.outputs[0]]
        if len(tensor.shape) != 4 or operator.name not in ("CONV_2D", "ADD", "CONCATENATION", "RELU", "RELU6"):
            continue
        if tensor.shape[1] > lowest:
            break  # maps grow again: what follows draws
        lowest = tensor.shape[1]
        if lowest < height and lowest * coarsest >= height:
            last[lowest] = tensor.name
    if not last:
        raise ModelError(
            f"{model.name} has no convolutions whose maps are smaller than its pictures and not below 1/{coarsest}; "
            "name tensors with --layers, or take a convolutional network"
        )
    finest: Sequence[int] = sorted(last, reverse=True)
    chosen = finest[1 : count + 1] if len(finest) > count else finest[-count:]
    return tuple(last[size] for size in chosen)


def pick_zoom(shape: Sequence[int]) -> int:
    """Return how many times pictures [height, width, channels] are enlarged for a network: to 112 pixels at least.

    It is a power of two, so that the maps are halves of the picture, which a student makes.
    """
    zoom = 1
    while zoom * min(shape[0], shape[1]) < _LEAST_SIDE:
        zoom *= 2
    return zoom
