"""The networks of the zoo: what each takes, its parameters, and the paper that they are checked against."""

from __future__ import annotations

from dataclasses import dataclass

from har_edge.errors import ConfigError

# C3D takes clips of 16 frames (Tran et al. 2015).
FRAMES = 16


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network: its input at the size of its paper, its parameters with its paper's classes, and where they stand.

    `parameters` counts the weights of the Keras network, batch normalisation included (gamma, beta, mean, variance),
    before anything is folded. `smallest` is the smallest side of an input that leaves every layer at least one value.
    """

    name: str
    title: str
    size: int
    smallest: int
    channels: int
    classes: int
    parameters: int
    source: str
    frames: int | None = None

    def shape(self, size: int) -> tuple[int, ...]:
        """Return the shape of one input, without the batch: [height, width, channels], frames first in a clip."""
        image = (size, size, self.channels)
        return image if self.frames is None else (self.frames, *image)


ZOO = {
    network.name: network
    for network in (
        Architecture(
            "lenet5",
            "LeNet-5",
            32,
            16,
            1,
            10,
            61_706,
            "LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 1998, section II.B; all "
            "maps of C3 see all of S2, pooling has no weights, dense output: the paper's own has about 60,000",
        ),
        Architecture(
            "alexnet",
            "AlexNet",
            227,
            67,
            3,
            1000,
            60_965_224,
            "Krizhevsky et al., ImageNet classification with deep convolutional neural networks, NIPS 2012, section 4: "
            "60 million",
        ),
        Architecture(
            "vgg16",
            "VGG16",
            224,
            32,
            3,
            1000,
            138_357_544,
            "Simonyan and Zisserman, Very deep convolutional networks, ICLR 2015, table 2, column D: 138 million",
        ),
        Architecture(
            "resnet50",
            "ResNet50",
            224,
            32,
            3,
            1000,
            25_636_712,
            "He et al., Deep residual learning, CVPR 2016, table 1; the count is that of Keras: 25.6 million",
        ),
        Architecture(
            "xception",
            "Xception",
            299,
            71,
            3,
            1000,
            22_910_480,
            "Chollet, Xception, CVPR 2017, table 3: 22,855,952; Keras also counts 54,528 statistics of batch "
            "normalisation",
        ),
        Architecture(
            "mobilenetv2",
            "MobileNetV2",
            224,
            32,
            3,
            1000,
            3_538_984,
            "Sandler et al., MobileNetV2, CVPR 2018, table 4: 3.4 million; Keras also counts batch normalisation",
        ),
        Architecture(
            "c3d",
            "C3D",
            112,
            16,
            3,
            487,
            79_991_015,
            "Tran et al., Learning spatiotemporal features with 3D convolutional networks, ICCV 2015, section 3.3 and "
            "figure 3; pool5 rounds up (8192 values), as in the authors' release; with the 101 classes "
            "of UCF101 78,409,573",
            frames=FRAMES,
        ),
    )
}


def find_network(name: str) -> Architecture:
    """Return a network by its name. Raises ConfigError for an unknown one."""
    try:
        return ZOO[name.lower()]
    except KeyError:
        raise ConfigError(f"no network {name!r} in the zoo; expected one of {', '.join(ZOO)}") from None
