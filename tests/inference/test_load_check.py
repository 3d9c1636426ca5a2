"""Models are loaded and run once in a process of their own: what ends that process does not end ours."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import sys
import time
from pathlib import Path

import pytest

from har_edge.config.catalog import find_model
from har_edge.errors import ModelError
from har_edge.inference import load_check, load_check_child
from har_edge.inference.interpreter import Delegate, Interpreter, load_slice
from har_edge.inference.load_check import FILE_NAME, LoadCheck, default_folder
from tests.tflite import models

GOOD = models.chain()


def stand_in(code: str) -> tuple[str, ...]:
    """Return a child that does something else than to load a model."""
    return (sys.executable, "-c", f"import os, signal, sys, time; sys.stdin.buffer.read(); {code}")


def dies(name: str) -> tuple[str, ...]:
    return stand_in(f"os.kill(os.getpid(), signal.{name})")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("SIGSEGV", "so this process does not load it: compare its hash, cut the model again, or use another runtime"),
        ("SIGABRT", "so this process does not load it"),
        ("SIGBUS", "so this process does not load it"),
        ("SIGKILL", "most likely for want of memory; free some, or cut the model into more slices"),
        ("SIGXCPU", "since it took too long; cut the model into more slices"),
    ],
)
def test_a_death_by_signal_is_a_clear_error(name: str, advice: str) -> None:
    check = LoadCheck(None, dies(name))
    with pytest.raises(ModelError, match=rf"slice s-0: {name} ended a test process .*{advice}.*sha256 "):
        check(GOOD, "slice s-0")


def test_what_the_runtime_said_last_is_told() -> None:
    check = LoadCheck(None, stand_in("sys.stderr.write('first\\nno \\x1b room\\n'); sys.stderr.flush(); os.abort()"))
    with pytest.raises(ModelError, match=r"SIGABRT ended .* once \(no \? room\), so"):
        check(GOOD, "m")


def test_time_is_bounded() -> None:
    check, started = LoadCheck(None, stand_in("time.sleep(60)"), timeout_s=0.5), time.monotonic()
    with pytest.raises(ModelError, match=r"m: it did not run once within 0.5 s in a test process"):
        check(GOOD, "m")
    assert time.monotonic() - started < 30


def test_a_child_that_cannot_work_is_no_verdict_on_the_model(tmp_path: Path) -> None:
    check = LoadCheck(tmp_path, stand_in("sys.exit('no module numpy')"))
    with pytest.raises(ModelError, match=r"exit code 1: no module numpy; look whether har_edge is whole"):
        check(GOOD, "m")
    assert not (tmp_path / FILE_NAME).exists()


def test_a_good_model_passes_and_is_remembered(tmp_path: Path) -> None:
    LoadCheck(tmp_path)(GOOD, "m")
    (line,) = (tmp_path / FILE_NAME).read_text().splitlines()
    assert line.endswith(f" {load_check.runtime_name()}")
    LoadCheck(tmp_path, dies("SIGSEGV"))(GOOD, "m")  # another process: it knows already, and starts no child
    with pytest.raises(ModelError, match="SIGSEGV"):
        LoadCheck(tmp_path, dies("SIGSEGV"))(models.chain(1), "m")


def test_a_verdict_is_of_one_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LoadCheck(tmp_path)(GOOD, "m")
    monkeypatch.setattr(load_check, "runtime_name", lambda: "another-1.0")
    with pytest.raises(ModelError, match="SIGSEGV"):
        LoadCheck(tmp_path, dies("SIGSEGV"))(GOOD, "m")


def test_a_verdict_is_of_one_delegate(tmp_path: Path) -> None:
    LoadCheck(tmp_path)(GOOD, "m")
    with pytest.raises(ModelError, match="SIGSEGV"):
        LoadCheck(tmp_path, dies("SIGSEGV"))(GOOD, "m", "none")
    LoadCheck(tmp_path)(GOOD, "m", "none")
    for delegate in ("xnnpack", "none"):  # both are known now
        LoadCheck(tmp_path, dies("SIGSEGV"))(GOOD, "m", delegate)


@pytest.mark.parametrize("delegate", ["xnnpack", "none"])
def test_the_child_runs_what_this_process_will_run(
    delegate: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    applied: list[str] = []

    def run(self: Interpreter, values: object) -> dict[str, object]:
        applied.append(self.delegate.value)
        return {}

    monkeypatch.setattr(Interpreter, "run", run)
    monkeypatch.setattr(load_check_child, "limit", lambda memory_bytes, seconds: None)  # not of the process of tests
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(find_model("float").path.read_bytes())))
    assert load_check_child.main(2**30, 60, delegate) == 0
    assert applied == [delegate]


@pytest.mark.parametrize("delegate", list(Delegate))
def test_a_slice_is_checked_with_the_delegate_that_will_run_it(delegate: Delegate, tmp_path: Path) -> None:
    path, seen = tmp_path / "s.tflite", []
    path.write_bytes(GOOD)
    load_slice(
        path,
        hashlib.sha256(GOOD).hexdigest(),
        check=lambda content, what, told: seen.append((content, told)),
        delegate=delegate,
    )
    assert seen == [(GOOD, delegate.value)]


def test_a_death_holds_for_this_process_only(tmp_path: Path) -> None:
    """A device that was short of memory is to try again after a restart."""
    counting = stand_in(f"open({str(tmp_path / 'count')!r}, 'a').write('x'); os.abort()")
    check = LoadCheck(tmp_path / "verdicts", counting)
    for _ in range(3):
        with pytest.raises(ModelError, match="SIGABRT"):
            check(GOOD, "m")
    assert (tmp_path / "count").read_text() == "x"
    LoadCheck(tmp_path / "verdicts")(GOOD, "m")


def test_a_folder_that_cannot_be_written_costs_the_memory_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    check = LoadCheck(tmp_path / "file" / "below")
    check(GOOD, "m")
    check(GOOD, "m")


def test_a_list_of_verdicts_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_text("".join(f"{number:064x} r\n" for number in range(load_check.MAX_LINES)))
    LoadCheck(tmp_path)(GOOD, "m")
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_a_damaged_file_is_refused_by_its_structure(cut: float) -> None:
    with pytest.raises(ModelError, match=r"slice s: the file is damaged: model: .*"):
        LoadCheck(None)(GOOD[: int(len(GOOD) * cut)], "slice s")


def test_what_the_runtime_refuses_in_order_is_left_to_the_caller(tmp_path: Path) -> None:
    LoadCheck(tmp_path)(models.custom(), "m")
    assert not (tmp_path / FILE_NAME).exists()


def test_the_child_is_limited() -> None:
    code = (
        "import resource, sys; from har_edge.inference.load_check_child import limit; limit(2**30, 7);"
        "kinds = resource.RLIMIT_CORE, resource.RLIMIT_CPU, resource.RLIMIT_DATA;"
        "print([resource.getrlimit(kind)[0] for kind in kinds])"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([0, 7, 2**30])


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that may have 1 MiB cannot even load NumPy: it fails, and this process does not."""
    monkeypatch.setattr(load_check, "_memory_bytes", lambda: 2**20)
    with pytest.raises(ModelError, match=r"m: .*test process"):
        LoadCheck(None)(GOOD, "m")


def test_the_exit_codes_are_no_other_ones() -> None:
    assert {load_check_child.DAMAGED, load_check_child.REFUSED}.isdisjoint({0, 1, 2, *range(128, 256)})


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "har-edge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.sep + "home-of-nobody")
    assert default_folder() == Path("/home-of-nobody/.cache/har-edge")


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.EACCES, "look whether this user may run python-of-old"),
        (errno.ENOENT, "look whether this user may run python-of-old"),
        (errno.ENOMEM, "free some memory, or end other processes"),
        (errno.EAGAIN, "free some memory, or end other processes"),
    ],
)
def test_a_child_that_cannot_start_has_a_hint_for_its_cause(
    monkeypatch: pytest.MonkeyPatch, number: int, mend: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("subprocess.run", fail)
    with pytest.raises(ModelError) as caught:
        LoadCheck(None, command=("python-of-old",))(b"model", "it")
    assert str(caught.value) == f"no test process could be started: {os.strerror(number)}; {mend}"
