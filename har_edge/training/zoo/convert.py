"""From a Keras model with random weights to a .tflite file."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from har_edge.training.backend import quietly
from har_edge.training.export import convert, tidy
from har_edge.training.zoo.catalog import Architecture
from har_edge.training.zoo.networks import INPUT, build
from har_edge.training.zoo.weights import SAMPLE, make_images, randomize

# Images that ranges of int8 are taken of.
CALIBRATION = 8


def make(network: Architecture, *, int8: bool, size: int, classes: int, seed: int, log: Callable[[str], None]) -> bytes:
    """Return a network as .tflite with random weights, float32 or full-integer int8, its batch open.

    One seed gives the same bytes on one version of TensorFlow. Operators without integer kernel (LOCAL_RESPONSE_
    NORMALIZATION) stay float32 between DEQUANTIZE and QUANTIZE.
    """
    with tempfile.TemporaryDirectory(prefix="har-edge-zoo-") as folder:
        names = _export(network, folder, lower_3d=int8, size=size, classes=classes, seed=seed, log=log)
        gc.collect()  # the Keras model is as large as the file, and converting takes several times that
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if int8:
            calibration = np.random.default_rng([seed, 2])
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
            converter.representative_dataset = lambda: _calibrate(network.shape(size), calibration)
        content = convert(converter)
    return tidy(content, names)


def _export(
    network: Architecture,
    folder: str,
    *,
    lower_3d: bool,
    size: int,
    classes: int,
    seed: int,
    log: Callable[[str], None],
) -> SimpleNamespace:
    """Write a network with random weights as a SavedModel, and return what `tidy` must know of the Keras model."""
    keras.backend.clear_session()
    shape = network.shape(size)
    model = build(network, size, classes, lower_3d=lower_3d)
    log(f"{network.title}: {model.count_params():,} parameters, input {list(shape)}, {classes} classes")
    weights, sample = (np.random.default_rng([seed, stream]) for stream in range(2))
    with quietly():  # grouped convolutions make TensorFlow warn about its own compiler
        randomize(model, np.concatenate(list(make_images(shape, SAMPLE, sample))), weights)
        archive = keras.export.ExportArchive()
        archive.track(model)
        entry = tf.TensorSpec((None, *shape), tf.float32, INPUT)
        archive.add_endpoint("serve", lambda images: model(images, training=False), [entry])
        archive.write_out(folder, verbose=False)
    names = [SimpleNamespace(name=layer.name) for layer in model.layers]
    return SimpleNamespace(layers=names, inputs=names[:1])


def _calibrate(shape: tuple[int, ...], generator: np.random.Generator) -> Iterator[dict[str, Any]]:
    for image in make_images(shape, CALIBRATION, generator):
        yield {INPUT: image}
