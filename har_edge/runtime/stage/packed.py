"""Pack the tensors that a stage sends as its manifest says, and unpack those that it takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import numpy as np

from har_edge.errors import ConfigError, MessageError
from har_edge.protocol.compression import is_available, missing_reason
from har_edge.protocol.packing import pack, unpack
from har_edge.runtime.counters import Counters
from har_edge.runtime.stage.setup import Array
from har_edge.tflite.manifest import SliceEntry, TensorSpec
from har_edge.tflite.packing import Rounding, TensorPacking, parse_packing

_log = logging.getLogger(__name__)


def check_packings(entry: SliceEntry) -> None:
    """Raise ConfigError where a slice takes or sends tensors in a way that this machine cannot pack."""
    if not is_available():
        for spec in (*entry.inputs, *entry.outputs):
            if spec.packing and parse_packing(spec.packing).zstd:
                raise ConfigError(f"tensor {spec.name[:64]!r} travels as {spec.packing}: {missing_reason()}")


class TensorPacker:
    """Rounds tensors on their way out; `compressed` are the names of those that travel compressed.

    Values beyond the range are sent as the nearest in it, counted as `clipped`, and a tensor's first are logged.
    """

    def __init__(self, specs: Iterable[TensorSpec], counters: Counters) -> None:
        packings = {spec.name: parse_packing(spec.packing) for spec in specs if spec.packing}
        self.compressed = frozenset(name for name, packing in packings.items() if packing.zstd)
        self._packings = {name: one for name, one in packings.items() if one.rounding is not Rounding.NONE}
        self._counters, self._told = counters, set[str]()

    def pack(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the tensors as they travel; raises MessageError for a value that none of theirs stands for."""
        if not self._packings:
            return tensors
        return {name: self._round(name, array) if name in self._packings else array for name, array in tensors.items()}

    def _round(self, name: str, array: Array) -> Array:
        packing = self._packings[name]
        try:
            rounded, clipped = pack(array, packing)
        except MessageError as error:
            raise MessageError(f"tensor {name[:64]!r}: {error}") from None
        self._counters.clipped += clipped
        if clipped and name not in self._told:
            self._told.add(name)
            _log.warning(
                "%d of %d values of tensor %s lie beyond what %s carries, and travel as the nearest that it does: "
                "answers may be wrong; calibrate with more data (har-edge slice --pack), or let it travel as it is",
                clipped,
                array.size,
                name[:64],
                packing.text,
            )
        return rounded


class TensorUnpacker:
    """Brings tensors that came back to the types that a slice takes."""

    def __init__(self, specs: Iterable[TensorSpec]) -> None:
        packings = ((spec, parse_packing(spec.packing)) for spec in specs if spec.packing)
        self._packings: dict[str, tuple[TensorPacking, np.dtype[np.generic]]] = {
            spec.name: (packing, np.dtype(spec.dtype))
            for spec, packing in packings
            if packing.rounding is not Rounding.NONE
        }

    def unpack(self, tensors: dict[str, Array]) -> dict[str, Array]:
        """Return the tensors as the slice takes them.

        Raises MessageError for one that came in another type than its packing's.
        """
        if not self._packings:
            return tensors
        return {name: self._restore(name, array) for name, array in tensors.items()}

    def _restore(self, name: str, array: Array) -> Array:
        if name not in self._packings:
            return array
        packing, dtype = self._packings[name]
        try:
            return unpack(array, packing, dtype)
        except MessageError as error:
            raise MessageError(f"input {name[:64]!r}: {error}") from None
