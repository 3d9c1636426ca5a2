"""Every reduction method by name, with the function that builds its reducer from a specification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

from har_edge.codecs.chain import Chain
from har_edge.codecs.compressors import Zlib, Zstandard
from har_edge.codecs.decimate import Decimator
from har_edge.codecs.entropy import EntropyCoder
from har_edge.codecs.files import NO_FILES, ReducerFiles
from har_edge.codecs.identity import IdentityReducer
from har_edge.codecs.learned import LearnedEncoder
from har_edge.codecs.paa import PiecewiseAggregate
from har_edge.codecs.pca import PrincipalComponents, read_basis
from har_edge.codecs.quantize import METHOD_OF, AffineQuantizer, RangeQuantizer
from har_edge.codecs.reducer import CodeLayout, Reducer
from har_edge.codecs.send_on_delta import SendOnDelta
from har_edge.codecs.spec import MethodSpec, parse_spec
from har_edge.codecs.stats import WindowStatistics
from har_edge.codecs.swinging_door import SwingingDoor
from har_edge.errors import ConfigError
from har_edge.extras import require


class EncoderInput(Enum):
    """The input that a method can encode: windows, real values, or any code that is not compressed yet."""

    WINDOWS = "float32 [n, m]"
    REALS = "float32 [n] or [n, m]"
    CODES = "what is not compressed yet"


@dataclass(frozen=True, slots=True)
class BuildContext:
    """The input for which a method is built: its shape, its layout (None: bytes of varying length), and the fitted
    files.
    """

    shape: tuple[int, ...]
    layout: CodeLayout | None
    most_bytes: int
    files: ReducerFiles


@dataclass(frozen=True, slots=True)
class ReducerMethod:
    """One form of a method in a specification: its options by name, its input, and the function that builds it."""

    usage: str
    summary: str
    takes: EncoderInput
    build: Callable[[Sequence[str], BuildContext], Reducer]


def _identity(options: Sequence[str], context: BuildContext) -> Reducer:
    return IdentityReducer(*context.shape)


def _paa(options: Sequence[str], context: BuildContext) -> Reducer:
    return PiecewiseAggregate(_whole("paa", "PIECE", options[0]), *context.shape)


def _range(bits: int, options: Sequence[str], context: BuildContext) -> Reducer:
    return RangeQuantizer(bits, context.shape)


def _affine(dtype: str, options: Sequence[str], context: BuildContext) -> Reducer:
    name = METHOD_OF[dtype]
    return AffineQuantizer(dtype, _real(name, "SCALE", options[0]), _whole(name, "ZERO", options[1]), context.shape)


def _decimate(options: Sequence[str], context: BuildContext) -> Reducer:
    return Decimator(_whole("decimate", "FACTOR", options[0]), *context.shape)


def _stats(options: Sequence[str], context: BuildContext) -> Reducer:
    return WindowStatistics(*context.shape)


def _send_on_delta(options: Sequence[str], context: BuildContext) -> Reducer:
    return SendOnDelta(options[0], *context.shape)


def _swinging_door(options: Sequence[str], context: BuildContext) -> Reducer:
    return SwingingDoor(options[0], *context.shape)


def _zlib(options: Sequence[str], context: BuildContext) -> Reducer:
    return EntropyCoder(Zlib(_whole("zlib", "LEVEL", options[0]) if options else 6), context.layout, context.most_bytes)


def _zstd(options: Sequence[str], context: BuildContext) -> Reducer:
    compressor = Zstandard(_whole("zstd", "LEVEL", options[0]) if options else 3)
    return EntropyCoder(compressor, context.layout, context.most_bytes)


def _pca(options: Sequence[str], context: BuildContext) -> Reducer:
    name = options[0]
    length, channels = context.shape
    return PrincipalComponents(name, read_basis(name, context.files.arrays(name), length, channels))


def _learned(name: str, options: Sequence[str], context: BuildContext) -> Reducer:
    encoder, *decoder = (context.files.model(option) for option in options)
    return LearnedEncoder(":".join((name, *options)), encoder, decoder[0] if decoder else None, context.shape)


_W, _R, _C = EncoderInput
_Q8, _Q16 = partial(_range, 8), partial(_range, 16)

METHODS: dict[tuple[str, int], ReducerMethod] = {
    ("none", 0): ReducerMethod("none", "the window itself", _W, _identity),
    ("paa", 1): ReducerMethod("paa:PIECE", "mean of every PIECE consecutive samples", _W, _paa),
    ("decimate", 1): ReducerMethod(
        "decimate:FACTOR", "every FACTOR-th sample behind an anti-alias filter", _W, _decimate
    ),
    ("stats", 0): ReducerMethod("stats", "eleven statistics of each channel; no way back", _W, _stats),
    ("pca", 1): ReducerMethod("pca:FILE.npz", "principal components, fitted; pca:K is a recipe", _W, _pca),
    ("ae", 1): ReducerMethod("ae:ENC.tflite", "dense encoder, trained; ae:K is a recipe", _W, partial(_learned, "ae")),
    ("ae", 2): ReducerMethod("ae:ENC.tflite:DEC.tflite", "the same with its decoder", _W, partial(_learned, "ae")),
    ("cae", 1): ReducerMethod(
        "cae:ENC.tflite", "convolutional encoder; cae:K is a recipe", _W, partial(_learned, "cae")
    ),
    ("cae", 2): ReducerMethod("cae:ENC.tflite:DEC.tflite", "the same with its decoder", _W, partial(_learned, "cae")),
    ("bottleneck", 1): ReducerMethod(
        "bottleneck:ENC.tflite", "first slice of the classifier", _W, partial(_learned, "bottleneck")
    ),
    ("sod", 1): ReducerMethod(
        "sod:DELTA", "samples that moved by DELTA, one for all or each channel (1,0.5,...)", _W, _send_on_delta
    ),
    ("door", 1): ReducerMethod(
        "door:DEVIATION", "lines within DEVIATION of every sample, for all or each channel", _W, _swinging_door
    ),
    ("q8", 0): ReducerMethod("q8", "8 bits a value over the range of each channel in each window", _R, _Q8),
    ("q8", 2): ReducerMethod("q8:SCALE:ZERO", "int8, real = SCALE * (q - ZERO)", _R, partial(_affine, "int8")),
    ("q16", 0): ReducerMethod("q16", "16 bits a value over the range of each channel in each window", _R, _Q16),
    ("q16", 2): ReducerMethod("q16:SCALE:ZERO", "int16, real = SCALE * (q - ZERO)", _R, partial(_affine, "int16")),
    ("u8", 2): ReducerMethod("u8:SCALE:ZERO", "uint8, real = SCALE * (q - ZERO)", _R, partial(_affine, "uint8")),
    ("zlib", 0): ReducerMethod("zlib", "as zlib:6", _C, _zlib),
    ("zlib", 1): ReducerMethod("zlib:LEVEL", "the same code in fewer bytes, level 1 to 9", _C, _zlib),
    ("zstd", 0): ReducerMethod("zstd", "as zstd:3", _C, _zstd),
    ("zstd", 1): ReducerMethod("zstd:LEVEL", "the same code in fewer bytes, level 1 to 22; extra zstd", _C, _zstd),
}


def check_libraries(spec: str) -> None:
    """Raise ConfigError when a method of this text, fitted or not, needs a library that is not installed."""
    for part in parse_spec(spec):
        if part.method == "zstd":
            require(f"reducer {spec!r}", "zstandard", instead=", or use zlib")


def make_reducer(spec: str, length: int, channels: int, files: ReducerFiles = NO_FILES) -> Reducer:
    """Build the reducer for windows [length, channels] from a text such as `none`, `paa:5` or `paa:5+q8`.

    `files` opens the files that fitted methods name. Raises ConfigError for an unknown method, wrong options, a recipe
    that has not been fitted, or methods that cannot follow each other.
    """
    if length < 1 or channels < 1:
        raise ConfigError(f"reducer {spec!r} for windows [{length}, {channels}], expected both to be at least 1")
    context = BuildContext(
        (length, channels), CodeLayout(0, "float32", (length, channels)), 4 * length * channels, files
    )
    reducers: list[Reducer] = []
    for part in parse_spec(spec):
        method = _find(spec, part)
        if reducers:
            context = _next_context(spec, reducers[-1], part, method.takes, files)
        reducers.append(method.build(part.options, context))
    return reducers[0] if len(reducers) == 1 else Chain(reducers)


def _find(spec: str, part: MethodSpec) -> ReducerMethod:
    if part.is_recipe:
        raise ConfigError(
            f"reducer {spec!r}: {part} is a recipe that is yet to be fitted; train with it (har-edge train --help), "
            "and use the pipeline that comes of it, whose reducer names the fitted files"
        )
    method = METHODS.get((part.method, len(part.options)))
    if method is None:
        usages = ", ".join(method.usage for method in METHODS.values())
        raise ConfigError(f"reducer {spec!r}: no method {str(part)!r}, expected {usages}, joined by +")
    return method


def _next_context(
    spec: str, before: Reducer, part: MethodSpec, takes: EncoderInput, files: ReducerFiles
) -> BuildContext:
    """Return the code of one method as the input of the next. Raises ConfigError when that cannot encode it."""
    shape = tuple(size for size in before.code_shape if size is not None)
    fits = {
        EncoderInput.WINDOWS: len(shape) == 2 and before.code_dtype == "float32",
        EncoderInput.REALS: len(shape) in (1, 2) and before.code_dtype == "float32",
        EncoderInput.CODES: not isinstance(before, EntropyCoder),
    }
    if not fits[takes]:
        sizes = ", ".join("any" if size is None else str(size) for size in before.code_shape)
        raise ConfigError(
            f"reducer {spec!r}: {part} cannot follow {before.spec}, whose code is {before.code_dtype} [{sizes}], "
            f"expected {takes.value}; put it first, or leave it out"
        )
    layout = CodeLayout(0, before.code_dtype, shape) if len(shape) == len(before.code_shape) else None
    # Only the quantisers by range write something else before the values.
    return BuildContext(
        shape, before.layout if isinstance(before, RangeQuantizer) else layout, before.most_bytes, files
    )


def _whole(name: str, option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"reducer {name}: {option} is {text!r}, expected a whole number") from None


def _real(name: str, option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"reducer {name}: {option} is {text!r}, expected a number") from None
