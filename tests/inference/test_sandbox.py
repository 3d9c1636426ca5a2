"""A model in a process of its own: the same bits, no rights, and its end ends nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from har_edge.errors import MessageError, ModelError
from har_edge.inference import sandbox
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.sandbox import SandboxedInterpreter, SandboxLimits, describe_sandbox
from har_edge.resources import find_folder

MODEL = (find_folder("models") / "har-float.tflite").read_bytes()


@pytest.fixture(scope="module")
def boxed() -> Iterator[SandboxedInterpreter]:
    runner = SandboxedInterpreter(MODEL, "this model")
    yield runner
    runner.close()


def values(seed: int = 0, model: bytes = MODEL) -> dict[str, np.ndarray]:
    return dict(sample(Interpreter(model).inputs, np.random.default_rng(seed)))


def test_it_gives_the_bits_of_the_model_in_this_process(boxed: SandboxedInterpreter) -> None:
    here = Interpreter(MODEL)
    assert (boxed.inputs, boxed.outputs, boxed.delegate) == (here.inputs, here.outputs, here.delegate)
    for seed in range(3):
        expected, got = here.run(values(seed)), boxed.run(values(seed))
        assert got.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)
            assert got[name].dtype == array.dtype and got[name].base is None


def test_values_that_the_model_refuses_are_the_senders_fault(boxed: SandboxedInterpreter) -> None:
    with pytest.raises(MessageError, match="missing input"):
        boxed.run({})
    wrong = {name: array.astype(np.float64) for name, array in values().items()}
    with pytest.raises(MessageError, match="has dtype float64, expected float32"):
        boxed.run(wrong)
    assert boxed.run(values())


def test_a_process_that_ends_is_replaced_and_the_same_values_run_again(boxed: SandboxedInterpreter) -> None:
    expected = boxed.run(values())
    for number in (signal.SIGSEGV, signal.SIGKILL):
        assert boxed._process is not None
        os.kill(boxed._process._popen.pid, number)
        for name, array in boxed.run(values()).items():
            np.testing.assert_array_equal(array, expected[name])


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"this: .*no TFLite model"):
        SandboxedInterpreter(b"x" * 1000, "this")


def test_what_is_in_force_is_told() -> None:
    line = describe_sandbox()
    assert (
        line.startswith("slices run in processes of their own: memory of ") and "no file written, no core dump" in line
    )
    assert ("no network" in line) and "no new privileges" in line


PROBE = """
import os, socket, sys, resource
from har_edge.inference import sandbox_child as child
alone = child.leave_network()
in_force = child.restrict(2**31, alone=alone)
def tried(call):
    try:
        call()
    except OSError as error:
        return "refused"
    return "done"
print([tried(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1)),
       tried(lambda: open("/etc/hostname")),
       tried(lambda: os.execv("/bin/true", ["true"])),
       tried(lambda: os.write(int(sys.argv[2]), b"x")),
       tried(lambda: os.unlink(sys.argv[3])),
       resource.getrlimit(resource.RLIMIT_CORE)], any(one.startswith("not") for one in in_force))
"""


def test_the_process_reaches_no_network_no_file_and_no_program(tmp_path: Path) -> None:
    import socket

    file = tmp_path / "file"
    file.write_bytes(b"")
    with socket.create_server(("127.0.0.1", 0)) as server, file.open("ab") as opened:
        command = [sys.executable, "-c", PROBE, str(server.getsockname()[1]), str(opened.fileno()), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, pass_fds=(opened.fileno(),))
    tried, lacking = done.stdout.strip().rsplit(" ", 1)
    if lacking == "True":
        pytest.skip(f"this system enforces a part only: {describe_sandbox()}")
    assert tried == str([*["refused"] * 5, (0, 0)]) and file.read_bytes() == b""


def child_that(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let another program take the place of the child."""
    head = "import sys, os, time, msgspec, struct\n"
    head += "say = lambda *v: (sys.stdout.buffer.write(struct.pack('<I', len(msgspec.msgpack.encode(v))) "
    head += "+ msgspec.msgpack.encode(v)), sys.stdout.buffer.flush())\n"
    head += "take = lambda: sys.stdin.buffer.read(struct.unpack('<I', sys.stdin.buffer.read(4))[0])\n"
    head += "loaded = lambda: (take(), say('loaded', [['x', [4], 'float32', 0.0, 0]], [['y', [4], 'float32', 0.0, 0]], "
    head += "'none', []))\n"
    monkeypatch.setattr(sandbox, "_CHILD", (sys.executable, "-c", head + code))


X = {"x": np.zeros(4, np.float32)}
LIMITS = SandboxLimits(load_s=20.0, first_run_s=1.0, least_run_s=1.0)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("sys.exit(3)", "it ended with exit code 3"),
        ("take(); os.kill(os.getpid(), 11)", "SIGSEGV ended it"),
        ("take(); sys.stdout.buffer.write(b'\\xff' * 100); sys.stdout.flush()", "sent a message of 4294967295 bytes"),
        ("take(); say('loaded', 1)", "sent what is no message"),
        ("take(); say('room', 5)", "answered what was not asked"),
    ],
)
def test_a_child_that_does_not_load_is_named(code: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    child_that(monkeypatch, code)
    with pytest.raises(ModelError, match=f"this: the process that was to load it failed: .*{text}"):
        SandboxedInterpreter(b"model", "this", limits=LIMITS)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("os.abort()", "SIGABRT ended it"),
        ("time.sleep(60)", "it took too long"),
        ("say('outputs', [['y', 'float32', [4], 2**30]], 'none')", "lies outside of the shared memory"),
        ("say('outputs', [['y', 'float32', [2**40, 2**40], 0]], 'none')", "lies outside of the shared memory"),
        ("say('outputs', [['y', 'O', [4], 0]], 'none')", "an output 'y' that is none"),
        ("say('outputs', [['z', 'float32', [4], 0]], 'none')", "other outputs than it has"),
        ("say('room', 2**60)", "what is no message"),
        ("os.ftruncate(int(sys.argv[1]), 0)", "exit code 1"),  # the shared memory is sealed
    ],
)
def test_a_child_that_misbehaves_costs_its_values_only(answer: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    child_that(monkeypatch, f"loaded(); take()\n{answer}")
    runner = SandboxedInterpreter(b"model", "this", limits=LIMITS)
    try:
        with pytest.raises(MessageError, match=f"failed twice with these values: .*{text}"):
            runner.run(X)
        with pytest.raises(ModelError, match=f"this: 3 processes that ran it failed one after another, .*{text}"):
            runner.run(X)
    finally:
        runner.close()


def test_what_the_process_forked_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "pid"
    fork = f"pid = os.fork()\nif pid: open({str(told)!r}, 'w').write(str(pid)); loaded()\ntime.sleep(60)"
    child_that(monkeypatch, fork)
    runner = SandboxedInterpreter(b"model", "this", limits=LIMITS)
    runner.close()
    status = Path(f"/proc/{told.read_text()}/stat")  # a zombie until init takes it
    deadline = time.monotonic() + 10
    while status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_without_an_owner_ends() -> None:
    runner = SandboxedInterpreter(MODEL, "this model")
    assert runner._process is not None
    pid = runner._process._popen.pid
    del runner
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
