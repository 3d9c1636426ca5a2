"""Open the files of fitted reducers. Their hashes are checked before anything reads them; models run through LiteRT."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from har_edge.errors import ConfigError, ModelError
from har_edge.files import read_member, read_regular
from har_edge.inference.load_check import default_check

if TYPE_CHECKING:
    from har_edge.inference.interpreter import Port

Array = npt.NDArray[Any]
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_ARRAYS_BYTES = 4 * MAX_FILE_BYTES
_BROKEN = (ValueError, KeyError, EOFError, OSError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error)


class FolderFiles:
    """Opens the files of a folder by their known hashes; nothing is loaded before its hash is right.

    Raises ConfigError for a file without a known hash. Raises ModelError for a file that is missing, malformed, has
    another hash, is larger than MAX_FILE_BYTES, or holds arrays of more than MAX_ARRAYS_BYTES.
    """

    def __init__(self, folder: Path, hashes: Mapping[str, str], delegate: str | None = None) -> None:
        self._folder, self._hashes, self._delegate = folder, hashes, delegate

    def arrays(self, name: str) -> Mapping[str, Array]:
        """Return the arrays of an .npz."""
        content = self.read(name)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                entries = archive.infolist()
                size = sum(entry.file_size for entry in entries)
                if size > MAX_ARRAYS_BYTES:
                    raise ModelError(
                        f"{self._folder / name}: arrays of {size} bytes, expected at most {MAX_ARRAYS_BYTES}"
                    )
                files = {entry.filename: read_member(archive, entry, MAX_ARRAYS_BYTES) for entry in entries}
            return {
                key.removesuffix(".npy"): np.asarray(np.load(io.BytesIO(array), allow_pickle=False))
                for key, array in files.items()
            }
        except _BROKEN as error:
            raise ModelError(f"{self._folder / name}: no arrays as .npz: {error}; fit the reducer again") from error

    def model(self, name: str) -> TfliteCodec:
        """Return a .tflite with one input and one output, ready to run; the first one loads LiteRT."""
        return TfliteCodec(self.read(name), str(self._folder / name), self._delegate)

    def read(self, name: str) -> bytes:
        """Return the bytes of a file after a check of their hash."""
        expected, path = self._hashes.get(name), self._folder / name
        if expected is None:
            known = ", ".join(sorted(self._hashes)) or "none"
            raise ConfigError(
                f"a reducer names the file {name!r}, whose hash is not known here; expected one of: {known}; put it "
                "beside the model or the pipeline file, and its SHA-256 under [task.inputs.SOURCE.files]"
            )
        content = _read(path)
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise ModelError(
                f"{path} has sha256 {found}, expected {expected}; the file was changed or belongs to another "
                "pipeline: copy the whole folder that `har-edge slice` made"
            )
        return content


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a fitted file. Raises ModelError when it cannot be read or is too large."""
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        content = read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror}; a fitted reducer's files lie beside the model, and in the folder "
            "that `har-edge slice` made: copy that whole"
        ) from error
    return content


class TfliteCodec:
    """A TensorCodec over one .tflite: shapes and values without the batch dimension."""

    def __init__(self, content: bytes, what: str, delegate: str | None = None) -> None:
        """Load the model. Raises ModelError unless it has one input and one output with a batch of 1."""
        from har_edge.inference.interpreter import Delegate, Interpreter

        chosen = Delegate(delegate or Delegate.XNNPACK)
        default_check()(content, what, chosen.value)
        self._content, self._what = content, what
        self._interpreter = Interpreter(content, delegate=chosen)
        inputs, outputs = self._interpreter.inputs, self._interpreter.outputs
        if len(inputs) != 1 or len(outputs) != 1:
            raise ModelError(
                f"{what}: {len(inputs)} inputs and {len(outputs)} outputs; an encoder or decoder has one of each"
            )
        self._input, self._output = inputs[0], outputs[0]
        self.input_shape, self.output_shape = self._shape(self._input), self._shape(self._output)

    @property
    def input_dtype(self) -> str:
        return str(self._input.dtype)

    @property
    def input_scale(self) -> float:
        return self._input.scale

    @property
    def input_zero(self) -> int:
        return self._input.zero_point

    @property
    def output_dtype(self) -> str:
        return str(self._output.dtype)

    @property
    def output_scale(self) -> float:
        return self._output.scale

    @property
    def output_zero(self) -> int:
        return self._output.zero_point

    @cached_property
    def operations(self) -> int:
        """Arithmetic operations of one run; counted on demand, since reading the graph needs the TFLite schema."""
        from har_edge.tflite.model import read_model
        from har_edge.tflite.operations import count_operations

        return count_operations(read_model(self._content))

    def run(self, value: Array) -> Array:
        """Run the model on one window. Raises MessageError for another shape or dtype."""
        result: Array = self._interpreter.run({self._input.name: value[None]})[self._output.name][0]
        return result

    def _shape(self, port: Port) -> tuple[int, ...]:
        if not port.shape or port.shape[0] not in (-1, 1) or math.prod(port.shape[1:]) < 1 or -1 in port.shape[1:]:
            raise ModelError(
                f"{self._what}: {port.name} is {list(port.shape)}; expected a batch of 1 or -1, then fixed sizes"
            )
        return port.shape[1:]
