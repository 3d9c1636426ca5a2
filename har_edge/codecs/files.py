"""The interfaces through which a fitted reducer gets its files, checked and ready to use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from har_edge.codecs.reducer import Code
from har_edge.errors import ConfigError


class TensorCodec(Protocol):
    """A model with one input and one output that runs one window at a time, in shapes without the batch dimension.

    Integers stand for real = scale * (value - zero); the scale is 0 for other dtypes.
    """

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input of `run`."""

    @property
    def input_dtype(self) -> str:
        """NumPy name of the input's dtype."""

    @property
    def input_scale(self) -> float:
        """Scale of the input."""

    @property
    def input_zero(self) -> int:
        """Zero point of the input."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output of `run`."""

    @property
    def output_dtype(self) -> str:
        """NumPy name of the output's dtype."""

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
    """Opens the files of fitted reducers and checks hashes and sizes. Raises ConfigError or ModelError for others."""

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
