"""Run one TFLite model; the only file that imports an interpreter (ai_edge_litert, else tflite_runtime)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import MessageError, ModelError
from har_edge.files import MAX_MODEL_BYTES, open_regular, read_regular
from har_edge.inference.wheels import missing, read_platform

try:
    from ai_edge_litert.interpreter import Interpreter as _Runtime
    from ai_edge_litert.interpreter import OpResolverType as _Kernels
except ImportError:  # 32-bit Raspberry Pi OS has wheels of tflite_runtime only
    try:
        from tflite_runtime.interpreter import Interpreter as _Runtime
        from tflite_runtime.interpreter import OpResolverType as _Kernels
    except ImportError as error:
        raise ModelError(missing(read_platform(), str(error))) from error

Array = NDArray[Any]
_PACKAGE = sys.modules[_Runtime.__module__.partition(".")[0]]
# The runtime with its version, without spaces; its package says the version, and costs no search for it.
RUNTIME = f"{_PACKAGE.__name__}-{getattr(_PACKAGE, '__version__', 'unknown')}"
_BANNER = b"INFO: Created TensorFlow Lite XNNPACK delegate"


class Delegate(str, Enum):
    """The code that computes a model: XNNPACK for operators that the runtime hands to it (its default), or NONE without
    it.
    """

    XNNPACK = "xnnpack"
    NONE = "none"


_KERNELS = {Delegate.XNNPACK: _Kernels.AUTO, Delegate.NONE: _Kernels.BUILTIN_WITHOUT_DEFAULT_DELEGATES}


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a model.

    `shape` holds -1 where a dimension is dynamic. `scale` and `zero_point` are those of a per-tensor quantised port
    (real = scale * (q - zero_point)); a port without quantisation has scale 0.0.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float
    zero_point: int

    def real(self, values: Array) -> NDArray[np.float64]:
        """Return the real values of quantised values of this port, and other values unchanged."""
        real = values.astype(np.float64)
        return (real - self.zero_point) * self.scale if self.scale > 0 else real


class Interpreter:
    """Holds one loaded model and runs it; not safe for use from two threads at once.

    `model` is the flatbuffer or a path, whose file the runtime maps. `inputs` and `outputs` are in the model's order. A
    tensor that is listed twice is one port, and two tensors of one name get `name#tensor_index`. With `fresh`,
    recurrent state (variable tensors) is zero at the start of every run. With `delegate` NONE, no operator goes to
    XNNPACK. That is slower, but float slices need it on tflite-runtime 2.14 to give the bits of the whole model.

    Raises ModelError when `model` is no TFLite flatbuffer, when the runtime lacks one of its operators, or when a port
    has a type that no message can carry (string, resource, variant).
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def __init__(
        self,
        model: bytes | Path,
        *,
        threads: int = 1,
        fresh: bool = False,
        delegate: Delegate = Delegate.XNNPACK,
    ) -> None:
        self._fresh, self._again = fresh, partial(Interpreter, model, threads=threads, fresh=fresh, delegate=delegate)
        what = str(model) if isinstance(model, Path) else f"these {len(model)} bytes"
        self._runtime = _create(model, what, threads, delegate)
        self.model_bytes = model.stat().st_size if isinstance(model, Path) else len(model)
        try:
            feeds, fetches = self._runtime.get_input_details(), self._runtime.get_output_details()
        except UnicodeDecodeError as error:
            raise ModelError(
                f"{what}: a tensor has a name that is not UTF-8 ({error.object!r}), which this runtime cannot read; "
                "write it anew, as one slice or several, with `har-edge slice MODEL --stages N --out DIR`"
            ) from error
        except ValueError as error:  # it knows types that NumPy does not, such as bfloat16
            raise ModelError(
                f"{what}: an input or output has a type that this runtime cannot describe: {_one_line(error)}; cut the "
                "model so that this tensor stays inside one slice"
            ) from error
        named_feeds, named_fetches = _ports(feeds), _ports(fetches)
        self.inputs = tuple(port for port, _ in named_feeds)
        self.outputs = tuple(port for port, _ in named_fetches)
        self._indices = {port.name: index for port, index in named_feeds}
        self._fetches = tuple((port.name, index) for port, index in named_fetches)
        # Inputs that the runtime holds memory for: name, index, dtype, shape. None: none, or a resize failed half-way.
        self._fit: tuple[tuple[str, int, np.dtype[Any], tuple[int, ...]], ...] | None = None
        if self._allocate(what):
            sizes = {int(detail["index"]): tuple(int(n) for n in detail["shape"]) for detail in feeds}
            self._fit = tuple((port.name, index, port.dtype, sizes[index]) for port, index in named_feeds)

    @property
    def delegate(self) -> Delegate:
        """XNNPACK if the runtime has handed any operator to it, for the sizes that it holds memory for now."""
        # Neither runtime has a public way to ask, and what `_get_ops_details` adds fails where NumPy lacks a type.
        inner = self._runtime._interpreter
        names = {inner.NodeName(index) for index in range(inner.NumNodes())}
        return Delegate.XNNPACK if "DELEGATE" in names else Delegate.NONE

    def twin(self) -> Interpreter:
        """Return another interpreter of the same model, whose bytes both share; it packs the weights once more."""
        return self._again()

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of one run by name; the arrays are copies and belong to the caller.

        A dynamic dimension (-1 in the port's shape) takes any size. A new size makes the runtime allocate anew, and
        zeroes recurrent state. Raises MessageError for a missing or unknown name, a wrong dtype or shape, and values
        that an operator refuses.
        """
        self._put(values)
        self._invoke()
        return {name: self._fetch(index) for name, index in self._fetches}

    def time(self, values: Mapping[str, Array], clock: Callable[[], float]) -> tuple[float, dict[str, Array]]:
        """Run like `run`; return also the seconds of the computation alone, without the copies."""
        self._put(values)
        before = clock()
        self._invoke()
        seconds = clock() - before
        return seconds, {name: self._fetch(index) for name, index in self._fetches}

    def _put(self, values: Mapping[str, Array]) -> None:
        if self._fit is None or len(values) != len(self._fit):
            self._refit(values)
        for name, _, dtype, shape in self._fit or ():
            value = values.get(name)
            if type(value) is not np.ndarray or value.dtype != dtype or value.shape != shape:
                self._refit(values)
                break
        if self._fresh:
            self._runtime.reset_all_variables()
        try:
            for name, index, _, _ in self._fit or ():
                self._runtime.set_tensor(index, values[name])
        except (RuntimeError, ValueError) as error:
            raise _refused(error) from error

    def _invoke(self) -> None:
        try:
            self._runtime.invoke()
        except (RuntimeError, ValueError) as error:
            raise _refused(error) from error

    def reset_state(self) -> None:
        """Set recurrent state (variable tensors) back to zero."""
        self._runtime.reset_all_variables()

    def _allocate(self, what: str) -> bool:
        """Allocate for the sizes in the file; return False when these are placeholders that cannot run."""
        try:
            with _without_banner():
                self._runtime.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            if any(-1 in port.shape for port in self.inputs) and "custom op" not in str(error):
                return False  # converters write 1 for each size they do not know; the first run brings the true ones
            raise _cannot_load(what, error) from error
        return True

    def _fetch(self, index: int) -> Array:
        try:
            value: Array = self._runtime.get_tensor(index)
        except ValueError:  # the runtime keeps no memory for a tensor without elements
            detail = next(d for d in self._runtime.get_output_details() if d["index"] == index)
            if 0 not in detail["shape"]:
                raise
            return np.empty(detail["shape"], detail["dtype"])
        # A tensor without dimensions comes as a NumPy scalar.
        return value if type(value) is np.ndarray else np.array(value)

    def _refit(self, values: Mapping[str, Array]) -> None:
        """Raise MessageError for wrong `values`, or allocate for their sizes."""
        unknown = sorted(set(values) - set(self._indices))
        if unknown:
            raise MessageError(
                f"unknown input {', '.join(unknown)}; the model takes {', '.join(self._indices) or 'none'}"
            )
        missing = [port.name for port in self.inputs if port.name not in values]
        if missing:
            raise MessageError(f"missing input {', '.join(missing)}; the model takes {', '.join(self._indices)}")
        for port in self.inputs:
            _check(port, values[port.name])
        if self._fit is not None and all(values[name].shape == shape for name, _, _, shape in self._fit):
            return  # an array of another class, all else right: allocating anew would lose recurrent state
        self._fit = None
        try:
            for port in self.inputs:
                self._runtime.resize_tensor_input(self._indices[port.name], values[port.name].shape)
            self._runtime.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            sizes = ", ".join(f"{port.name} {list(values[port.name].shape)}" for port in self.inputs)
            raise MessageError(f"the model cannot take inputs of these sizes: {sizes}: {_one_line(error)}") from error
        self._fit = tuple(
            (port.name, self._indices[port.name], port.dtype, values[port.name].shape) for port in self.inputs
        )


def load_slice(
    path: Path,
    sha256: str,
    *,
    threads: int = 1,
    fresh: bool = False,
    check: Callable[[bytes, str, str], None] = lambda content, what, delegate: None,
    delegate: Delegate = Delegate.XNNPACK,
) -> Interpreter:
    """Load a slice with a known hash; no byte reaches the runtime before the hash is right.

    `check` gets the content and the delegate before the runtime does, and may raise. Raises ModelError when the file is
    missing, or its SHA-256 is not `sha256`.
    """
    content = read_slice(path, sha256)
    check(content, f"slice {path}", delegate.value)
    return Interpreter(content, threads=threads, fresh=fresh, delegate=delegate)


def read_slice(path: Path, sha256: str) -> bytes:
    """Return the content of a slice. Raises ModelError when the file is missing, or its SHA-256 is not `sha256`."""
    try:
        content = read_regular(path, MAX_MODEL_BYTES)
    except OSError as error:
        raise ModelError(
            f"cannot read slice {path}: {error.strerror}; give the path of a file made by 'slice'"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256.lower():
        raise ModelError(
            f"slice {path} has sha256 {found}, but {sha256} was expected; the file was changed or belongs to another "
            "model: cut the model again and copy every slice"
        )
    return content


def _create(model: bytes | Path, what: str, threads: int, delegate: Delegate) -> Any:
    try:
        head = model[:8] if isinstance(model, bytes) else _head(model)
    except OSError as error:
        raise ModelError(f"cannot read model {what}: {error.strerror}; give the path of a .tflite file") from error
    if head[4:8] != b"TFL3":
        raise ModelError(
            f"{what}: no TFLite model: bytes 4 to 8 are {head[4:8]!r}, expected b'TFL3'; give a .tflite file"
        )
    try:
        content = {"model_path": str(model)} if isinstance(model, Path) else {"model_content": model}
        return _Runtime(**content, num_threads=threads, experimental_op_resolver_type=_KERNELS[delegate])
    except (RuntimeError, ValueError) as error:
        raise _cannot_load(what, error) from error


def _refused(error: Exception) -> MessageError:
    return MessageError(f"the model refuses these values: {_one_line(error)}; check what the sender puts in")


def _cannot_load(what: str, error: Exception) -> ModelError:
    return ModelError(
        f"{what}: the runtime cannot load this model: {_one_line(error)}; if an operator is missing, use a newer "
        "runtime, or cut the model so that this operator is in a slice of its own"
    )


@contextlib.contextmanager
def _without_banner() -> Iterator[None]:
    """Keep the runtime's banner off standard error, since no setting of the runtime does; pass all other output on."""
    try:
        sys.stderr.flush()
        terminal = os.dup(2)
    except (OSError, ValueError, AttributeError):  # there is no standard error to keep clean
        yield
        return
    with os.fdopen(os.memfd_create("har-edge-banner"), "w+b") as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            said.seek(0)
            rest = b"".join(line for line in said if not line.startswith(_BANNER))
            if rest:
                os.write(2, rest)


def _head(path: Path) -> bytes:
    with open_regular(path, MAX_MODEL_BYTES) as file:
        return file.read(8)


def _ports(details: list[dict[str, Any]]) -> list[tuple[Port, int]]:
    """Return each tensor once, under a name of its own."""
    ports: dict[int, Port] = {}
    taken: set[str] = set()
    for detail in details:
        index = int(detail["index"])
        if index in ports:
            continue
        name = str(detail["name"])
        if not name or name in taken:
            name = f"{name or 'tensor'}#{index}"
        taken.add(name)
        ports[index] = _port(name, detail)
    return [(port, index) for index, port in ports.items()]


def _port(name: str, detail: dict[str, Any]) -> Port:
    dtype = np.dtype(detail["dtype"])
    if dtype.kind not in "fiubc":
        raise ModelError(
            f"tensor {name} has type {dtype}; only numbers and booleans can be sent between devices: "
            "cut the model so that this tensor stays inside one slice"
        )
    signature = detail.get("shape_signature", detail["shape"])
    # A model written without signatures reports an empty one.
    shape = signature if len(signature) == len(detail["shape"]) else detail["shape"]
    quantization = detail["quantization_parameters"]
    per_tensor = len(quantization["scales"]) == 1
    return Port(
        name=name,
        shape=tuple(int(n) for n in shape),
        dtype=dtype,
        scale=float(quantization["scales"][0]) if per_tensor else 0.0,
        zero_point=int(quantization["zero_points"][0]) if per_tensor else 0,
    )


def _check(port: Port, value: Array) -> None:
    if not isinstance(value, np.ndarray):
        raise MessageError(f"input {port.name} is a {type(value).__name__}, expected an array")
    if value.dtype != port.dtype:
        raise MessageError(f"input {port.name} has dtype {value.dtype}, expected {port.dtype}")
    fits = value.ndim == len(port.shape) and all(
        wanted in (-1, got) for wanted, got in zip(port.shape, value.shape, strict=True)
    )
    if not fits:
        raise MessageError(
            f"input {port.name} has shape {list(value.shape)}, expected {list(port.shape)} (-1 takes any size)"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
