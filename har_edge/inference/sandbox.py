"""Run a model in a process of its own, for models from people whom nobody vouches for.

The runtime checks little of what it loads, and runs it as native code. Here a damaged or hostile model may end, fill
or hang its own process, and no other. That process has no network, writes no file and starts no program, as far as the
system lets it (sandbox_child.py says what is in force). Tensors travel through shared memory, messages through pipes;
nothing of it is pickled, and all that the child says is checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np

from har_edge.errors import MessageError, ModelError
from har_edge.inference.interpreter import Array, Delegate, Port
from har_edge.inference.load_check import MEMORY_PART
from har_edge.inference.sandbox_child import ALIGNMENT, LENGTH, NOT_IN_FORCE, TRUSTED
from har_edge.resources import find_folder

_log = logging.getLogger(__name__)
# Seconds that loading may take, and a run: at least so many, and so many times the longest one before.
LOAD_S, FIRST_RUN_S, LEAST_RUN_S, RUN_FACTOR = 120.0, 120.0, 10.0, 20.0
MAX_FAILURES = 3  # processes that may end one after another before the model is given up
MAX_SHARED_BYTES = 1024**3
_MAX_REPLY = 4 * 1024 * 1024
_VARIABLES = {"PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1"}  # else NumPy makes threads that it needs not here
_CHILD = (sys.executable, "-m", "har_edge.inference.sandbox_child")

_Name = Annotated[str, msgspec.Meta(max_length=2**16)]
_Dtype = Annotated[str, msgspec.Meta(max_length=16)]
_Shape = Annotated[tuple[Annotated[int, msgspec.Meta(ge=-1, le=2**40)], ...], msgspec.Meta(max_length=32)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_SHARED_BYTES)]


class _Refused(msgspec.Struct, array_like=True, tag="refused", frozen=True):
    text: str


class _Loaded(msgspec.Struct, array_like=True, tag="loaded", frozen=True):
    inputs: tuple[tuple[_Name, _Shape, _Dtype, float, int], ...]
    outputs: tuple[tuple[_Name, _Shape, _Dtype, float, int], ...]
    delegate: Delegate
    in_force: tuple[_Name, ...]


class _BadValues(msgspec.Struct, array_like=True, tag="message", frozen=True):
    text: str


class _Room(msgspec.Struct, array_like=True, tag="room", frozen=True):
    size: _Size


class _Outputs(msgspec.Struct, array_like=True, tag="outputs", frozen=True):
    tensors: tuple[tuple[_Name, _Dtype, _Shape, _Size], ...]
    delegate: Delegate


_Reply = _Refused | _Loaded | _BadValues | _Room | _Outputs
_decode = msgspec.msgpack.Decoder(_Reply).decode


class _Ended(Exception):
    """The child ended, said nothing for too long, or what no child says."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """The limits of a sandbox: bytes of memory, and seconds to load and to run (at least, and for the first run)."""

    memory_bytes: int = 0  # 0: three quarters of the device's
    load_s: float = LOAD_S
    first_run_s: float = FIRST_RUN_S
    least_run_s: float = LEAST_RUN_S

    @property
    def memory(self) -> int:
        """The bytes of memory that the process may take."""
        return self.memory_bytes or int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MEMORY_PART)


class _Process:
    """One child with a loaded model, its pipes and its shared memory."""

    def __init__(self, content: bytes, told: tuple[str, ...], limits: SandboxLimits) -> None:
        self._shared_fd = os.memfd_create("har-edge-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # The child cannot make it smaller: the parent would end when it reads what is no longer there.
        fcntl.fcntl(self._shared_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._memory: mmap.mmap | None = None
        self.size = 0
        command = [*_CHILD, str(self._shared_fd), str(limits.memory), *told]
        try:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(self._shared_fd,),
                start_new_session=True,  # Ctrl-C is for the parent, and what the child forks ends with it
                bufsize=0,
                env=_VARIABLES | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            os.close(self._shared_fd)
            raise ModelError(f"no process could be started for a model: {error.strerror}; free some memory") from None
        self._end = weakref.finalize(self, _end, self._popen, self._shared_fd)
        self.send(content, time.monotonic() + limits.load_s)

    def grow(self, size: int) -> None:
        """Have shared memory of at least this size."""
        if size > MAX_SHARED_BYTES:
            raise MessageError(f"tensors of {size} bytes came for a model; expected at most {MAX_SHARED_BYTES}")
        if size > self.size or self._memory is None:
            self.size = max(mmap.PAGESIZE, 2 * self.size, size)
            os.ftruncate(self._shared_fd, self.size)
            self._memory = mmap.mmap(self._shared_fd, self.size)

    @property
    def memory(self) -> mmap.mmap:
        """The shared memory."""
        assert self._memory is not None
        return self._memory

    def send(self, content: bytes, deadline: float) -> None:
        """Send a message; raises _Ended."""
        left = memoryview(LENGTH.pack(len(content)) + content)
        pipe = self._popen.stdin
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
        while left:
            self._wait((), (pipe,), deadline)
            try:
                left = left[os.write(pipe.fileno(), left) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _Ended(self._why()) from None

    def receive(self, deadline: float) -> _Reply:
        """Return the next message; raises _Ended."""
        (size,) = LENGTH.unpack(self._read(LENGTH.size, deadline))
        if size > _MAX_REPLY:
            raise _Ended(f"it sent a message of {size} bytes")
        try:
            return _decode(self._read(size, deadline))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _Ended(f"it sent what is no message ({str(error)[:200]})") from None

    def _read(self, size: int, deadline: float) -> bytes:
        pipe, content = self._popen.stdout, b""
        assert pipe is not None
        while len(content) < size:
            self._wait((pipe,), (), deadline)
            piece = os.read(pipe.fileno(), size - len(content))
            if not piece:
                raise _Ended(self._why())
            content += piece
        return content

    def _wait(self, readers: tuple[BinaryIO | Any, ...], writers: tuple[BinaryIO | Any, ...], deadline: float) -> None:
        while not any(select.select(readers, writers, (), max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise _Ended("it took too long")

    def _why(self) -> str:
        try:
            code = self._popen.wait(1.0)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        return f"{_signal_name(-code)} ended it" if code < 0 else f"it ended with exit code {code}"

    def end(self) -> None:
        """End the process."""
        self._end()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(popen: subprocess.Popen[bytes], shared_fd: int) -> None:
    """End the child and all that it forked: it cannot leave its process group (sandbox_child.py)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()
    for pipe in (popen.stdin, popen.stdout):
        if pipe is not None:
            pipe.close()
    os.close(shared_fd)


class SandboxedInterpreter:
    """A model in a process of its own, with the ports and the `run` of an Interpreter.

    If the process ends during a run, a new one runs the same values once more. Values that end that one too are refused
    with a MessageError, so that one window costs no other. Raises ModelError where the model cannot be loaded, and when
    MAX_FAILURES processes have ended one after another without a run between them.
    """

    def __init__(
        self,
        content: bytes,
        what: str,
        *,
        threads: int = 1,
        fresh: bool = False,
        delegate: Delegate = Delegate.XNNPACK,
        limits: SandboxLimits | None = None,
    ) -> None:
        self._content, self._what, self._limits = content, what, limits or SandboxLimits()
        self._told = str(threads), str(int(fresh)), delegate.value
        self._options = {"threads": threads, "fresh": fresh, "delegate": delegate, "limits": limits}
        self._process: _Process | None = None
        self._failures, self._longest_s = 0, 0.0
        self.model_bytes = len(content)
        try:
            loaded = self._start()
        except _Ended as error:
            raise ModelError(f"{what}: the process that was to load it failed: {error}; use another model") from None
        self.inputs, self.outputs = _ports(loaded.inputs, what), _ports(loaded.outputs, what)
        self.delegate, self.in_force = loaded.delegate, loaded.in_force

    def twin(self) -> SandboxedInterpreter:
        """Return another one of the same model, in a process of its own."""
        return SandboxedInterpreter(self._content, self._what, **self._options)  # type: ignore[arg-type]

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of one run by name, as Interpreter.run does."""
        for _ in range(2):
            try:
                return self._run(values)
            except _Ended as error:
                self._failures += 1
                self.close()
                if self._failures >= MAX_FAILURES:
                    raise ModelError(
                        f"{self._what}: {self._failures} processes that ran it failed one after another, the last one "
                        f"because {error}; compare its hash, or use another model"
                    ) from None
                _log.warning("%s: the process that runs it failed: %s; starting another one", self._what, error)
                reason = str(error)
        raise MessageError(f"the model failed twice with these values: {reason}; check what the sender puts in")

    def close(self) -> None:
        """End the process; the next run starts another one."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def _start(self) -> _Loaded:
        self.close()
        self._process = _Process(self._content, self._told, self._limits)
        self._longest_s = 0.0
        reply = self._process.receive(time.monotonic() + self._limits.load_s)
        if isinstance(reply, _Refused):
            raise ModelError(f"{self._what}: {reply.text[:1000]}")
        if not isinstance(reply, _Loaded):
            raise _Ended("it answered what was not asked")
        return reply

    def _run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        limits, began = self._limits, time.monotonic()
        deadline = began + (
            max(limits.least_run_s, RUN_FACTOR * self._longest_s) if self._longest_s else limits.first_run_s
        )
        placed = self._put(process, values)
        process.send(msgspec.msgpack.encode((process.size, placed)), deadline)
        reply = process.receive(deadline)
        while isinstance(reply, _Room):
            process.grow(reply.size)
            process.send(msgspec.msgpack.encode(process.size), deadline)
            reply = process.receive(deadline)
        if isinstance(reply, _BadValues):
            self._failures = 0
            raise MessageError(reply.text)
        if not isinstance(reply, _Outputs):
            raise _Ended("it answered what was not asked")
        outputs = _take(process, reply)
        if outputs.keys() != {port.name for port in self.outputs}:
            raise _Ended("it gave other outputs than it has")
        self._failures, self.delegate = 0, reply.delegate
        self._longest_s = max(self._longest_s, time.monotonic() - began)
        return outputs

    def _put(self, process: _Process, values: Mapping[str, Array]) -> list[tuple[str, str, tuple[int, ...], int]]:
        offset, placed = 0, []
        for name, value in values.items():
            placed.append((name, value.dtype.name, value.shape, offset))
            offset += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        process.grow(max(1, offset))
        for (_, _, _, start), value in zip(placed, values.values(), strict=True):
            if value.size:
                np.frombuffer(process.memory, value.dtype, value.size, start).reshape(value.shape)[...] = value
        return placed


def describe_sandbox() -> str:
    """Return, in a line to print, what is in force on this machine for a process that runs a slice."""
    content = (find_folder("models") / TRUSTED).read_bytes()
    runner = SandboxedInterpreter(content, TRUSTED)
    runner.close()
    held = [one for one in runner.in_force if not one.startswith(NOT_IN_FORCE)]
    lacks = [one.removeprefix(NOT_IN_FORCE) for one in runner.in_force if one.startswith(NOT_IN_FORCE)]
    return f"slices run in processes of their own: {', '.join(held)}" + (f"; NOT: {', '.join(lacks)}" if lacks else "")


def _take(process: _Process, reply: _Outputs) -> dict[str, Array]:
    """Return copies of outputs in the shared memory; raises _Ended for any that lie elsewhere."""
    outputs = dict[str, Array]()
    for name, code, shape, offset in reply.tensors:
        try:
            dtype = np.dtype(code)
            count = int(np.prod([int(one) for one in shape], dtype=object)) if shape else 1
            if dtype.kind not in "fiubc" or count < 0 or offset + count * dtype.itemsize > process.size:
                raise ValueError("it lies outside of the shared memory")
            values = np.frombuffer(process.memory, dtype, count, offset) if count else np.empty(0, dtype)
            outputs[name] = values.reshape(shape).copy()
        except (TypeError, ValueError) as error:
            raise _Ended(f"it gave an output {name[:64]!r} that is none ({str(error)[:200]})") from None
    return outputs


def _ports(told: tuple[tuple[str, tuple[int, ...], str, float, int], ...], what: str) -> tuple[Port, ...]:
    try:
        return tuple(Port(name, shape, np.dtype(dtype), scale, zero) for name, shape, dtype, scale, zero in told)
    except TypeError as error:
        raise ModelError(f"{what}: a port has a type that is none: {error}; use another model") from None
