"""What a fitted reducer asks of whoever opens it: its files by name, checked and ready to use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from har_edge.codecs.reducer import Code
from har_edge.errors import ConfigError


class TensorCodec(Protocol):
    """A model with one input and one output that runs one window at a time; shapes leave the batch dimension off.

    real = scale * (value - zero) where a dtype is an integer; scale is 0 where it is not.
    """

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of what `run` takes."""

    @property
    def input_dtype(self) -> str:
        """NumPy name of the dtype that `run` takes."""

    @property
    def input_scale(self) -> float:
        """Scale of the input."""

    @property
    def input_zero(self) -> int:
        """Zero point of the input."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what `run` returns."""

    @property
    def output_dtype(self) -> str:
        """NumPy name of the dtype that `run` returns."""

    @property
    def output_scale(self) -> float:
        """Scale of the output."""

    @property
    def output_zero(self) -> int:
        """Zero point of the output."""

    @property
    def operations(self) -> int:
        """Arithmetic operations of one run; a multiply-accumulate counts 2."""

    def run(self, value: Code) -> Code:
        """Run the model on one window, without the batch dimension."""


class ReducerFiles(Protocol):
    """Opens the files of fitted reducers; it checks hashes and sizes, and refuses with ConfigError or ModelError."""

    def arrays(self, name: str) -> Mapping[str, Code]:
        """Return the arrays of an .npz, read with allow_pickle=False."""

    def model(self, name: str) -> TensorCodec:
        """Return a .tflite ready to run."""


class _NoFiles:
    def arrays(self, name: str) -> Mapping[str, Code]:
        raise self._refusal(name)

    def model(self, name: str) -> TensorCodec:
        raise self._refusal(name)

    def _refusal(self, name: str) -> ConfigError:
        return ConfigError(
            f"a reducer needs the file {name!r}, but there are no files here; use it in a pipeline file whose "
            "[task.inputs.SOURCE.files] names it"
        )


NO_FILES: ReducerFiles = _NoFiles()
