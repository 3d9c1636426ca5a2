"""The operators of a .tflite file that is written anew, and the codes that they refer to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from har_edge.tflite.schema import tflite


class OperatorTable:
    """Collects operators in the order in which they run; each kind and version has one code."""

    def __init__(self) -> None:
        self.operators: list[Any] = []
        self.codes: list[Any] = []
        self._numbers: dict[tuple[int, bytes, int], int] = {}

    def add(self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: Any, version: int) -> None:
        """Add an operator by its name in the schema; `options` is an object of the schema, or None."""
        raw = tflite.OperatorT()
        raw.opcodeIndex = self.code(getattr(tflite.BuiltinOperator, name), b"", version)
        raw.inputs, raw.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        raw.debugMetadataIndex = -1
        if options is not None:
            raw.builtinOptionsType = getattr(tflite.BuiltinOptions, type(options).__name__[:-1])
            raw.builtinOptions = options
        self.operators.append(raw)

    def code(self, builtin: int, custom: bytes, version: int) -> int:
        """Return the number of a kind of operator."""
        key = (builtin, custom, version)
        if key not in self._numbers:
            raw = tflite.OperatorCodeT()
            raw.deprecatedBuiltinCode, raw.builtinCode = min(builtin, 127), builtin
            raw.customCode, raw.version = custom or None, version
            self._numbers[key] = len(self.codes)
            self.codes.append(raw)
        return self._numbers[key]
