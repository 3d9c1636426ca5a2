"""The child of sandbox.py: take rights away from this process, then load a model and run it as the parent asks.

    python -m har_edge.inference.sandbox_child SHARED_FD MEMORY_BYTES THREADS FRESH DELEGATE

Messages are MessagePack with a length of four bytes before them, on standard input and output; tensors are in the
shared memory of SHARED_FD. The first message from the parent is the model. All comes from an unchecked model here, so
the parent believes nothing that this process says.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import msgspec

LENGTH = struct.Struct("<I")
NOT_IN_FORCE = "not: "  # before what could not be taken away
ALIGNMENT = 64  # of a tensor in the shared memory
# A model that har_edge ships: run before rights go, so that all that the runtime reads of the machine is read then.
TRUSTED = "har-decimate-q8-zlib-restore.tflite"
# Calls that a model has no use for: the network, files, other processes and programs. A thread is made by clone, and
# memory by mmap, so these stay.
# A process that clone forks stays in the process group, and ends with it.
DENIED = (
    "setsid", "setpgid", "socket", "socketpair", "connect", "bind", "listen", "accept", "accept4", "sendto",
    "sendmsg", "sendmmsg", "io_uring_setup", "open", "openat", "openat2", "creat", "execve", "execveat", "fork",
    "vfork", "kill", "tkill", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd",
    "unlink", "unlinkat", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "rmdir", "link", "linkat",
    "symlink", "symlinkat", "truncate", "chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat",
    "mount", "umount2", "pivot_root", "chroot", "setns", "unshare", "bpf", "perf_event_open", "keyctl",
    "add_key", "request_key", "init_module", "finit_module", "userfaultfd", "mknod", "mknodat",
)  # fmt: skip
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO (seccomp.h of libseccomp 2)
_ALL_THREADS = 4  # SCMP_FLTATR_CTL_TSYNC
_NO_NEW_PRIVILEGES, _CLONE_NEWUSER, _CLONE_NEWNET = 38, 0x10000000, 0x40000000


def leave_network() -> bool:
    """Go to a network namespace of its own, with nothing in it; return whether the kernel lets this user.

    Call it before any library makes a thread.
    """
    return bool(ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def restrict(memory_bytes: int, *, alone: bool) -> list[str]:
    """Take rights away from this process for good; return what is in force, in words.

    A text that begins with NOT_IN_FORCE is of what could not be taken away.

    Without root, and without help by a library of the system, the limits hold, and the network is taken away by a
    namespace of its own where the kernel lets users make one; `alone` says whether it was (leave_network).
    """
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_AS, memory_bytes + _mapped_bytes()),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    in_force = [f"memory of {memory_bytes // 10**6} MB", "no file written", "no core dump"]
    privileges = ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
    in_force.append("no new privileges" if privileges else f"{NOT_IN_FORCE}no new privileges")
    filtered = _filter_calls()
    if alone or filtered:
        by = " and ".join(["a namespace"] * alone + ["seccomp"] * filtered)
        in_force.append(f"no network ({by})")
    else:
        in_force.append(f"{NOT_IN_FORCE}no network (install libseccomp2, or let users make namespaces)")
    rest = "no file opened, no other program"
    in_force.append(f"{rest} (seccomp)" if filtered else f"{NOT_IN_FORCE}{rest} (install libseccomp2)")
    return in_force


def _mapped_bytes() -> int:
    """Return the bytes of address space that this process has mapped: most of it are libraries, not memory."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (no class of pathlib is needed for it)
        return int(file.read().split()[0]) * resource.getpagesize()


def _filter_calls() -> bool:
    """Refuse DENIED by seccomp, through libseccomp, which every Debian with systemd has; return whether that worked."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint]
    library.seccomp_load.argtypes = library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    context = library.seccomp_init(_ALLOW)
    if not context or library.seccomp_attr_set(context, _ALL_THREADS, 1) != 0:
        return False
    for name in DENIED:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number != -1:  # this architecture has it, or once had it
            library.seccomp_rule_add(context, _ERRNO | errno.EPERM, number, 0)
    loaded = bool(library.seccomp_load(context) == 0)
    library.seccomp_release(context)
    return loaded


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """Return so many bytes; end this process where the parent has gone."""
    content = file.read(size)
    if len(content) < size:
        sys.exit(0)
    return content


def receive(file: BinaryIO) -> bytes:
    """Return the next message."""
    return read_exactly(file, LENGTH.unpack(read_exactly(file, LENGTH.size))[0])


class Child:
    """Answers the parent: what it has loaded, and the outputs of each run."""

    def __init__(self, shared_fd: int) -> None:
        self._shared_fd, self._size = shared_fd, 0
        self._memory: mmap.mmap | None = None
        self._input, self._output = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what a library prints is no message

    def send(self, *values: Any) -> None:
        """Send a message."""
        content = msgspec.msgpack.encode(values)
        self._output.write(LENGTH.pack(len(content)) + content)
        self._output.flush()

    def serve(self, threads: int, fresh: bool, delegate: str, in_force: list[str]) -> None:
        """Load the model, and run it as often as the parent asks."""
        from har_edge.errors import ModelError
        from har_edge.inference.interpreter import Delegate, Interpreter

        content = receive(self._input)
        try:
            interpreter = Interpreter(content, threads=threads, fresh=fresh, delegate=Delegate(delegate))
        except ModelError as error:
            self.send("refused", str(error))
            return
        ports = [
            [[one.name, one.shape, one.dtype.name, one.scale, one.zero_point] for one in side]
            for side in (interpreter.inputs, interpreter.outputs)
        ]
        self.send("loaded", *ports, interpreter.delegate.value, in_force)
        while True:
            self._answer(interpreter)

    def _answer(self, interpreter: Any) -> None:
        from har_edge.errors import MessageError

        size, tensors = msgspec.msgpack.decode(receive(self._input))
        try:
            outputs = interpreter.run(self._views(size, tensors))
        except MessageError as error:
            self.send("message", str(error))
            return
        self.send("outputs", self._put(outputs), interpreter.delegate.value)

    def _map(self, size: int) -> Any:
        if self._memory is None or size > self._size:
            self._memory, self._size = mmap.mmap(self._shared_fd, size), size
        return self._memory

    def _views(self, size: int, tensors: list[list[Any]]) -> dict[str, Any]:
        import numpy as np

        memory = self._map(size)
        return {
            name: np.frombuffer(memory, dtype, int(np.prod(shape, dtype=np.int64)), offset).reshape(shape)
            for name, dtype, shape, offset in tensors
        }

    def _put(self, outputs: Mapping[str, Any]) -> list[list[Any]]:
        """Write outputs into the shared memory, from its start; ask the parent for more where it is too small."""
        import numpy as np

        offset, placed = 0, []
        for name, array in outputs.items():
            placed.append([name, array.dtype.name, array.shape, offset])
            offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if offset > self._size:
            self.send("room", offset)
            self._map(msgspec.msgpack.decode(receive(self._input)))
        assert self._memory is not None
        for (_, _, _, start), array in zip(placed, outputs.values(), strict=True):
            if array.size:
                np.frombuffer(self._memory, np.uint8, array.nbytes, start)[:] = (
                    np.ascontiguousarray(array).view(np.uint8).reshape(-1)
                )
        return placed


def run_trusted(delegate: str) -> None:
    """Run a model of har_edge once, while files may be opened."""
    import numpy as np

    from har_edge.inference.interpreter import Delegate, Interpreter
    from har_edge.inference.sampling import sample
    from har_edge.resources import find_folder

    interpreter = Interpreter((find_folder("models") / TRUSTED).read_bytes(), delegate=Delegate(delegate))
    interpreter.run(sample(interpreter.inputs, np.random.default_rng(0)))


def main(shared_fd: int, memory_bytes: int, threads: int, fresh: bool, delegate: str) -> None:
    """Take rights away, and serve the parent until it goes."""
    alone = leave_network()
    child = Child(shared_fd)
    run_trusted(delegate)
    child.serve(threads, fresh, delegate, restrict(memory_bytes, alone=alone))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1", sys.argv[5])
