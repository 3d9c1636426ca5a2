"""The TFLite schema. No other file of the room imports it."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from har_edge.errors import ModelError

try:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as tflite
except ImportError as error:
    raise ModelError(
        "cutting a model needs the TFLite schema of ai_edge_litert, which this machine does not have; "
        "cut it on a 64-bit machine and copy the slices here"
    ) from error

__all__ = ["flatbuffers", "tflite"]

FILE_IDENTIFIER = b"TFL3"
VERSION = 3

# TensorType -> NumPy dtype, for every type that messages can carry (har_edge/protocol/wire.py). No kernel of the
# runtime takes COMPLEX128.
DTYPES: dict[int, str] = {
    tflite.TensorType.FLOAT16: "float16",
    tflite.TensorType.FLOAT32: "float32",
    tflite.TensorType.FLOAT64: "float64",
    tflite.TensorType.INT8: "int8",
    tflite.TensorType.INT16: "int16",
    tflite.TensorType.INT32: "int32",
    tflite.TensorType.INT64: "int64",
    tflite.TensorType.UINT8: "uint8",
    tflite.TensorType.UINT16: "uint16",
    tflite.TensorType.UINT32: "uint32",
    tflite.TensorType.UINT64: "uint64",
    tflite.TensorType.BOOL: "bool",
    tflite.TensorType.COMPLEX64: "complex64",
}


def _names(enum: type) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if not name.startswith("_")}


TYPE_NAMES = _names(tflite.TensorType)
OPERATOR_NAMES = _names(tflite.BuiltinOperator)
CUSTOM: int = tflite.BuiltinOperator.CUSTOM

# Operators whose results do not follow from their inputs alone.
RANDOM = frozenset({"RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL", "STABLEHLO_RNG_BIT_GENERATOR"})
# Operators that open a resource which other operators may share by its name.
HANDLES = frozenset({"VAR_HANDLE", "HASHTABLE"})

# Metadata that stays true of a part. Everything else describes the whole (its inputs and outputs, its operator or
# tensor indices, its memory plan) and would be false in a slice.
PARTIAL_METADATA = re.compile(r"min_runtime_version|CONVERSION_METADATA|reduced_precision_support.*")

_PARSING_ERRORS = (
    AttributeError,
    LookupError,
    MemoryError,
    OverflowError,
    TypeError,
    UnicodeError,
    ValueError,
    struct.error,
)


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turn every error that a broken flatbuffer causes in the parser into a ModelError."""
    try:
        yield
    except _PARSING_ERRORS as error:
        raise ModelError(
            f"{what}: broken or truncated TFLite file ({type(error).__name__}: {error}); get a fresh copy of the file"
        ) from error


def refuse_unknown_fields(table: Any, known: Any, what: str) -> None:
    """Raise ModelError when a table carries fields that the installed schema does not know.

    A slice would lose such fields. `known` is the object made from the table. After its two sizes, a vtable has one
    16-bit entry for each field. Field ids have no gaps, so an entry below the last known field that has no accessor is
    deprecated. No runtime reads a deprecated field, so a slice may lose it.
    """
    start = table.Pos - struct.unpack_from("<i", table.Bytes, table.Pos)[0]
    (size,) = struct.unpack_from("<H", table.Bytes, start)
    entries = struct.unpack_from(f"<{max(0, size // 2 - 2)}H", table.Bytes, start + 4)
    if any(entries[_count_fields(type(known).__name__.removesuffix("T")) :]):
        raise ModelError(
            f"{what} has fields that the installed TFLite schema does not know, and cutting would lose them; "
            "install a newer ai-edge-litert"
        )


class _Slots:
    """Replaces a flatbuffer builder, and records the vtable entry of each field."""

    def __init__(self) -> None:
        self.last = -1

    def __getattr__(self, name: str) -> Callable[..., None]:
        def prepend(slot: int, *value: object) -> None:
            self.last = max(self.last, slot)

        return prepend


@cache
def _count_fields(table: str) -> int:
    """Return the number of vtable entries that the installed schema has for a table, with deprecated ones.

    The generated code has no list of fields, but one function for each field, which writes it.
    """
    slots = _Slots()
    for name, write in vars(tflite).items():
        if name.startswith(f"{table}Add"):
            write(slots, 0)
    return slots.last + 1


def text(value: bytes | str | None) -> str:
    """Return a name as text that every format can carry; the runtime ends a name at a NUL."""
    if value is None:
        return ""
    name = value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
    return name.replace("\0", "\\x00")
