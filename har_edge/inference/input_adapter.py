"""Bring the codes of a sensor into a model, restored to windows or as they are, as the input of the model requires."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from har_edge.codecs.packing import unpack
from har_edge.codecs.quantize import METHOD_OF, AffineQuantizer
from har_edge.codecs.reducer import Reducer
from har_edge.errors import ConfigError, DataError, MessageError
from har_edge.tflite.manifest import REAL

if TYPE_CHECKING:
    from har_edge.config.task import ImageInput
    from har_edge.inference.interpreter import Port
    from har_edge.inference.saturation import Saturation

Array = npt.NDArray[Any]


class InputForm(Enum):
    """The form that an input takes: windows restored from codes, or the features of the codes."""

    RESTORE = "restore"
    CODES = "codes"


class WindowLayout(Enum):
    """The order of a window's values in an input: sample after sample, or channel after channel."""

    SAMPLES = "samples"
    CHANNELS = "channels"


class InputAdapter(Protocol):
    """Turns the codes of `count` windows of one source, packed as in a message, into the model's input.

    Raises MessageError for codes that the reducer did not make.
    """

    def __call__(self, codes: Array, count: int = 1, /) -> Array: ...


def choose_input_form(
    source: str, reducer: Reducer, name: str, shape: tuple[int, ...], length: int, channels: int
) -> InputForm:
    """Return the form in which codes of windows [length, channels] enter the input `name`.

    Args:
        shape: The input's shape without the batch dimension.

    An input [length, channels], or of the same values in other dimensions (see `find_layout`), takes restored windows.
    An input with the shape of the reducer's features takes these. Raises ConfigError for any other input, with the
    source, the reducer and both shapes.
    """
    if find_layout(shape, length, channels) is not None and reducer.restores:
        return InputForm.RESTORE
    if shape == reducer.feature_shape:
        return InputForm.CODES
    restored = "can" if reducer.restores else "cannot"
    raise ConfigError(
        f"source {source!r} gives windows [{length}, {channels}], of which reducer {reducer.spec!r} makes features "
        f"{list(reducer.feature_shape)} and {restored} restore them, but the input {name!r} of the model takes "
        f"{list(shape)}; use the window, channels, reducer and model that belong together"
    )


def window_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one window within an input, without the batch dimension if it has one."""
    return shape[1:] if _has_batch(shape) else shape


def find_layout(shape: tuple[int, ...], length: int, channels: int) -> WindowLayout | None:
    """Return the order of a window [length, channels] in an input of this shape, None where it does not fit.

    Dimensions of 1 do not matter. SAMPLES stands for [length, channels], a flat vector, or the pixels of an image row
    by row, of a clip frame by frame; CHANNELS for [channels, length].
    """
    sizes = tuple(n for n in shape if n != 1)
    plain = tuple(n for n in (length, channels) if n != 1)
    if sizes in (plain, (length * channels,)):
        return WindowLayout.SAMPLES
    if sizes == plain[::-1]:
        return WindowLayout.CHANNELS
    image = len(shape) in (3, 4) and shape[-1] == channels and math.prod(shape[:-1]) == length and min(shape) > 0
    return WindowLayout.SAMPLES if image else None


def make_input_adapter(
    source: str, reducer: Reducer, port: Port, length: int, channels: int, watch: Saturation | None = None
) -> InputAdapter:
    """Return the adapter from codes of one source, of windows [length, channels], to the input tensor [count, ...].

    Codes that equal the input pass unchanged: reducer `none` for a float32 model, the model's own quantisation, an
    encoder whose output has the input's scale and zero point. Other codes are restored, or turned into features, then
    quantised where the model takes integers and rounded where it takes float16. Windows get the input's shape. An input
    without a batch takes one window. `watch` counts the real values that the adapter quantises.

    Raises ConfigError when the codes cannot enter; see `choose_input_form`.
    """
    shape, batched = window_shape(port.shape), _has_batch(port.shape)
    form = choose_input_form(source, reducer, port.name, shape, length, channels)
    turned = form is InputForm.RESTORE and find_layout(shape, length, channels) is WindowLayout.CHANNELS
    own = _own_quantizer(port, shape)
    same = reducer.spec == own.spec if own else reducer.spec == "none" and port.dtype == np.float32
    passes = batched and not turned and (same or (form is InputForm.CODES and _is_input(reducer, port, shape)))
    value = reducer.decode if form is InputForm.RESTORE else reducer.features

    def adapt(codes: Array, count: int = 1, /) -> Array:
        try:
            pieces = unpack(reducer, codes, count)
            if passes:
                return codes if codes.shape[1:] == shape else codes.reshape(count, *shape)
            values = [value(piece) for piece in pieces]
            values = [(one.T if turned else one).reshape(shape) for one in values]
            if watch is not None and own is not None:
                for one in values:
                    watch.note(one)
            entered = [_cast(one, port.dtype) if own is None else own.encode(one) for one in values]
            return np.stack(entered) if batched or count > 1 else entered[0]
        except (
            MessageError,
            DataError,
        ) as error:  # the code came over the network, so its sender can act on the error, not this node
            raise MessageError(
                f"the code of source {source!r} is not what {reducer.spec!r} makes of {count} windows: {error}; give "
                "sensor and stage the same reducer"
            ) from None

    return adapt


def check_picture_input(image: ImageInput, name: str, shape: tuple[int, ...]) -> None:
    """Raise ConfigError for an input that does not take such pictures: [height, width, channels], grey [height, width].

    Args:
        shape: The input's shape without the batch dimension.
    """
    wanted = (image.height, image.width, image.channels)
    if shape != wanted and (image.channels, shape) != (1, wanted[:2]):
        raise ConfigError(
            f"the task says pictures of {image.shape}, but the input {name!r} of the model takes {list(shape)}; "
            f"expected {list(wanted)}: use the task that belongs to this model"
        )


def make_picture_adapter(
    source: str, reducer: Reducer, port: Port, image: ImageInput, watch: Saturation | None = None
) -> InputAdapter:
    """Return the adapter from pictures of one source, pixels as samples, to the input tensor [count, ...].

    The bytes enter a quantised input as they are (int8: less 128), where the task names no mean and deviation. Else the
    values are (byte - mean) / std, quantised as the input is.

    Raises ConfigError for an input of another shape or type, and for a float input without mean and deviation.
    """
    shape, batched, dtype = window_shape(port.shape), _has_batch(port.shape), port.dtype.name
    check_picture_input(image, port.name, shape)
    if not image.mean and dtype not in ("uint8", "int8"):
        raise ConfigError(
            f"input {port.name!r} of the model is {dtype}, and nothing says how bytes become its values; expected mean "
            "and std under [task.image]: cut the model again with --normalize MEAN,STD (docs/how-to/images.md)"
        )
    own = _own_quantizer(port, shape) if image.mean else None
    mean, std = np.array(image.mean, np.float32), np.array(image.std, np.float32)
    exact = reducer.code_dtype == "uint8" and reducer.code_scale == 1.0 and reducer.code_zero == 0

    def enter(code: Array) -> Array:
        pixels = code if exact else reducer.decode(code)
        if not image.mean:
            whole = pixels if exact else np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
            return (whole if dtype == "uint8" else (whole ^ np.uint8(128)).view(np.int8)).reshape(shape)
        real = ((pixels.astype(np.float32) - mean) / std).reshape(shape)
        if own is None:
            return _cast(real, port.dtype)
        if watch is not None:
            watch.note(real)
        return own.encode(real)

    def adapt(codes: Array, count: int = 1, /) -> Array:
        try:
            entered = [enter(code) for code in unpack(reducer, codes, count)]
        except (MessageError, DataError) as error:
            raise MessageError(
                f"the code of source {source!r} is not what {reducer.spec!r} makes of {count} pictures: {error}; give "
                "sensor and stage the same task"
            ) from None
        return np.stack(entered) if batched or count > 1 else entered[0]

    return adapt


def _cast(window: Array, dtype: np.dtype[Any]) -> Array:
    """Return real values in the type of an input; values beyond float16 saturate, as in quantised inputs."""
    if dtype != np.float16:
        return window.astype(dtype, copy=False)
    largest = float(np.finfo(np.float16).max)
    return np.clip(window, -largest, largest).astype(dtype)


def _has_batch(shape: tuple[int, ...]) -> bool:
    return shape[:1] in ((-1,), (1,))


def _is_input(reducer: Reducer, port: Port, shape: tuple[int, ...]) -> bool:
    """Return whether an integer code equals the input, level for level."""
    return (
        (reducer.code_dtype, reducer.code_shape) == (port.dtype.name, shape)
        and reducer.code_scale > 0
        and np.float32(reducer.code_scale) == np.float32(port.scale)
        and reducer.code_zero == port.zero_point
    )


def _own_quantizer(port: Port, shape: tuple[int, ...]) -> AffineQuantizer | None:
    """Return the quantiser that makes this input from real values, None for a float input, which takes them as they
    are.
    """
    if port.dtype.name in REAL:
        return None
    if port.dtype.name not in METHOD_OF or port.scale <= 0:
        raise ConfigError(
            f"input {port.name!r} of the model is {port.dtype}; windows and codes can enter {', '.join(REAL)}, or "
            "int8, int16 and uint8 with one scale for the tensor; convert the model with such inputs"
        )
    return AffineQuantizer(port.dtype.name, port.scale, port.zero_point, shape)
