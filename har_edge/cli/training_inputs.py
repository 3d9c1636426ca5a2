"""The model and the samples of a training on devices, by name or path; options are checked before these are read."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.console import say
from har_edge.cli.training_privacy import check_secure
from har_edge.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from har_edge.config.catalog import FoundModel
    from har_edge.data.pictures import PictureShape
    from har_edge.learning.data.dataset_files import LabelledData
    from har_edge.learning.preparation import TrainableModel
    from har_edge.training.zoo.catalog import Architecture

# The model that is made here, rather than read: LeNet-5 for the pictures of --data, with new weights.
LENET = "lenet5"


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """A model with its training graph, and its samples, as the model takes them.

    `found` is the file of the model, None for a network that was made here. `description` says what recordings are,
    None for other samples.
    """

    trainable: TrainableModel
    data: LabelledData
    found: FoundModel | None = None
    description: str | Path | None = None


def check_options(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that cannot be, before anything is read."""
    import math

    from har_edge.learning.model_entry import check_folder
    from har_edge.learning.optimizers.optimizers import make_optimizer
    from har_edge.learning.optimizers.rates import with_steps
    from har_edge.learning.privacy import PrivacyAccountant, check_noise
    from har_edge.learning.quantization.int8_model import require_quantizer
    from har_edge.learning.server.modes import parse_mode
    from har_edge.learning.server.recipes import check_server_optimizer
    from har_edge.learning.updates.compression import make_compressor

    if args.model is None or args.data is None:
        raise ConfigError(
            "--on-devices needs --model (a float .tflite file, a shipped model, or a network such as lenet5) and "
            "--data PATH (samples to train and test with)"
        )
    make_optimizer(with_steps(args.optimizer, 1), 1)
    check_server_optimizer(args.server_optimizer, parse_mode(args.mode)[0])
    if args.compress != "auto":
        make_compressor(args.compress, 1)
    if args.noise and args.mode.startswith("stale"):
        raise ConfigError(
            "--noise with --mode stale: each update stands alone, so no sum hides it; choose sync or local"
        )
    if args.noise:
        PrivacyAccountant(args.delta)  # whether the library is here
    if args.secure:
        check_secure(args)
    check_noise(args.clip or 0.0, args.noise / math.sqrt(args.workers), args.compress)
    if args.int8:
        require_quantizer()
    if args.int8 and args.noise:
        raise ConfigError(
            "--int8 with --noise: the ranges of tensors have no noise, and would tell of samples; leave one out"
        )
    if args.deploy == "int8" and not args.int8:
        raise ConfigError("--deploy int8 came without --int8; expected both, or --deploy alone for the float32 model")
    check_folder(args.out)


def open_inputs(args: argparse.Namespace) -> TrainingInputs:
    """Find or make the model, read the samples, and bring both together.

    Raises ModelError for a model that there is not or that cannot be trained, DataError for samples that do not fit it.
    """
    from har_edge.learning.preparation import fit_to_model, prepare_model
    from har_edge.protocol.text import listed
    from har_edge.tflite.gradient.losses import Loss
    from har_edge.tflite.model import read_model

    loss = Loss(args.loss)
    if not Path(args.model).is_file() and (network := _network(args.model)) is not None:
        content, data = _make_network(args, network)
        made = TrainingInputs(prepare_model(read_model(content), args.batch, loss), data)
    else:
        found = _find(args.model)
        trainable = prepare_model(read_model(found.path), args.batch, loss)
        made = _read_for(args, found, trainable)
    train, test = (fit_to_model(part, made.trainable) for part in (made.data.train, made.data.test))
    if seen := _seen_before(args, made):
        say(f"note: {args.model} has learned from {listed(seen)} before: accuracy on them says little")
    return replace(made, data=replace(made.data, train=train, test=test))


def _seen_before(args: argparse.Namespace, inputs: TrainingInputs) -> list[str]:
    """Return the persons of the test that the model was trained on before."""
    groups, entry = inputs.data.test.groups, inputs.found.entry if inputs.found is not None else None
    if groups is None or entry is None or args.from_scratch:
        return []
    return sorted(set(groups.tolist()) & set(entry.trained_on))


def _network(name: str) -> str | Architecture | None:
    """Return a network that is made here: LENET, or one of the zoo, which TensorFlow makes; None for another name."""
    if name == LENET:
        return LENET
    from har_edge.training.zoo.catalog import ZOO

    return ZOO.get(name)


def _find(name: str) -> FoundModel:
    """Return a shipped model, or a file. Raises ModelError for neither, and for a quantised one with its master."""
    from har_edge.config.catalog import find_model, load_catalog
    from har_edge.learning.personal.model import check_trainable
    from har_edge.training.zoo.catalog import ZOO

    shipped = [entry.name for entry in load_catalog().models]
    if name not in shipped and not Path(name).is_file():
        raise ModelError(
            f"no model {name!r}: expected the path of a .tflite file, a shipped model ({', '.join(shipped)}), {LENET}, "
            f"or a network of the zoo ({', '.join(one for one in ZOO if one != LENET)})"
        )
    found = find_model(name)
    if found.entry is not None:
        check_trainable(found)
    return found


def _make_network(args: argparse.Namespace, network: str | Architecture) -> tuple[bytes, LabelledData]:
    """Make a network for the pictures and the classes of the samples."""
    from har_edge.data.pictures import PictureShape
    from har_edge.learning.lenet import SIDE, write_lenet5

    if isinstance(network, str):
        data = read_samples(args, PictureShape(SIDE, SIDE, 1))
        return bytes(write_lenet5(len(data.train.classes), shape=data.train.shape)), data
    if network.frames is not None:
        raise ConfigError(f"{network.name} takes clips, which are no samples of a training yet; take another network")
    from har_edge.training.backend import require_tensorflow

    require_tensorflow(f"making {network.name}, a network of the zoo,", also=())
    data = read_samples(args, PictureShape(network.size, network.size, network.channels))
    shape = data.train.shape
    if len(shape) != 3 or shape != network.shape(shape[0]) or shape[0] < network.smallest:
        raise ConfigError(
            f"{network.name} takes pictures [side, side, {network.channels}] of {network.smallest} pixels or more; "
            f"samples of {list(shape)} came: bring a folder of pictures, or take {LENET}"
        )
    from har_edge.training.zoo.convert import make

    return make(network, int8=False, size=shape[0], classes=len(data.train.classes), seed=args.seed, log=say), data


def _read_for(args: argparse.Namespace, found: FoundModel, trainable: TrainableModel) -> TrainingInputs:
    """Read the samples for a file; recordings as its task says, where a manifest lists it."""
    from har_edge.learning.data.dataset_files import DataFormat, all_for_test, description_of, find_format, hold_back
    from har_edge.learning.data.datasets import rename_classes
    from har_edge.learning.data.model_samples import check_own_windows, read_model_windows

    entry, kind = found.entry, find_format(args.data)
    if entry is not None and entry.task.image is None and kind is DataFormat.RECORDINGS:
        if args.own_data:
            check_own_windows(entry.task, entry.name)
        windows = read_model_windows(args.data, found.path, entry.task, trainable.layout)
        data = all_for_test(windows) if args.own_data else hold_back(windows, args.seed)
        return TrainingInputs(trainable, data, found)
    data = load_samples(args, trainable)
    if entry is not None and not args.from_scratch and (entry.real or entry.trained_on) and trainable.classes:
        # Its classes count, in its order; a network with random weights takes the names of the data.
        train, test = (rename_classes(part, entry.task.labels) for part in (data.train, data.test))
        data = replace(data, train=train, test=test)
    return TrainingInputs(trainable, data, found, description_of(args.data) if kind is DataFormat.RECORDINGS else None)


def load_samples(args: argparse.Namespace, trainable: TrainableModel) -> LabelledData:
    """Return the samples below --data, with those to test with."""
    from har_edge.learning.data.own_samples import picture_shape

    return read_samples(args, picture_shape(trainable.shape))


def read_samples(args: argparse.Namespace, shape: PictureShape | None) -> LabelledData:
    """Return the samples below --data; `shape` is the size that pictures of a folder are brought to."""
    from har_edge.learning.data.dataset_files import ReadOptions, read_data, read_test_data

    read = read_test_data if args.own_data else read_data
    return read(args.data, ReadOptions(shape=shape, seed=args.seed))


def find_model_file(name: str | Path) -> Path | bytes:
    """Return the file of a model by name or path; LeNet-5 for MNIST's pictures by its name, where no file has that."""
    if str(name) == LENET and not Path(name).is_file():
        from har_edge.learning.lenet import write_lenet5

        return bytes(write_lenet5())
    return _find(str(name)).path
