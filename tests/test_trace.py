"""bench/trace.py and bench/tracer.py: which calls count as entering a module, and what is taken off."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
TREE = Path(os.environ.get("HAR_EDGE_TREE") or ROOT)  # in CI, the package is not beside the tests
ENTRY = """
import json
import threading

from har_edge import far
from har_edge.near import Near, steps


def main(argv):
    near = Near()
    for _ in range(int(argv[0])):
        near.ask()
    local()
    sorted([2, 1], key=far.key)
    json.loads("{}", object_hook=far.hook)
    assert sum(steps()) == 3
    assert near.size == 4
    thread = threading.Thread(target=far.alone)
    thread.start()
    thread.join()
    return 5


def local():
    pass
"""
NEAR = """
from har_edge.far import key, made


class Near:
    made_at_import = made()

    def ask(self):
        self.own()
        return key(1)

    def own(self):
        pass

    @property
    def size(self):
        return 4


def steps():
    yield 1
    yield 2
"""
FAR = """
def key(value):
    return value


def made():
    return 1


def hook(value):
    return value


def alone():
    beside()


def beside():
    pass
"""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of another har_edge, of three modules."""
    (tmp_path / "pyproject.toml").write_text('[project.scripts]\nhar-edge = "har_edge.entry:main"\n')
    (tmp_path / "har_edge").mkdir()
    for name, text in {"__init__": "", "entry": ENTRY, "near": NEAR, "far": FAR}.items():
        (tmp_path / "har_edge" / f"{name}.py").write_text(text)
    return tmp_path


def trace(checkout: Path, *arguments: str) -> tuple[int, dict[str, int], str]:
    """Run the command of a checkout; return its exit code, its calls by function, and what it said of errors."""
    calls = checkout / "calls.json"
    command = [sys.executable, str(ROOT / "bench/tracer.py"), str(checkout), str(calls), *arguments]
    environment = {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    rows = json.loads(calls.read_text()) if calls.exists() else []
    return done.returncode, {f"{module}.{name.rpartition('.')[2]}": count for module, name, count in rows}, done.stderr


def test_calls_from_other_modules_count_and_no_others(checkout: Path) -> None:
    code, calls, _ = trace(checkout, "3")
    assert code == 5
    assert calls == {
        "entry.main": 1,  # from outside of the package
        "near.ask": 3,
        "near.size": 1,  # a property
        "near.steps": 3,  # a generator: started and resumed, until it ends
        "far.key": 3 + 2,  # from near, and through a function of C
        "far.hook": 1,  # through a library
        "far.alone": 1,  # a thread
    }


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    code, calls, said = trace(tmp_path)
    assert code == 1 and not calls
    assert "pyproject.toml names no script har-edge; expected a checkout of har_edge" in said


def test_the_har_edge_of_another_place_is_refused(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    (empty / "pyproject.toml").write_text((checkout / "pyproject.toml").read_text())
    command = [sys.executable, str(ROOT / "bench/tracer.py"), str(empty), str(empty / "calls.json"), "3"]
    done = subprocess.run(command, env={"PYTHONPATH": str(checkout)}, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and f"expected the one of {empty}" in done.stderr


def test_calls_can_be_read_while_the_command_runs(tmp_path: Path) -> None:
    tracer = load("tracer").Tracer(tmp_path)
    (tmp_path / "one.py").write_text("def go():\n    pass\n")
    spec = importlib.util.spec_from_file_location("traced_one", tmp_path / "one.py")
    assert spec is not None and spec.loader is not None
    one = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(one)
    threading.setprofile(tracer)
    try:
        for expected in (1, 2):
            thread = threading.Thread(target=one.go)
            thread.start()
            thread.join()
            tracer.write(str(tmp_path / "calls"))
            assert json.loads((tmp_path / "calls").read_text()) == [["one", "go", expected]]
    finally:
        threading.setprofile(None)


def test_waiting_is_taken_off() -> None:
    bench = load("trace")
    calls = Counter({("loop", "poll"): 30, ("loop", "beat"): 11, ("node", "plan"): 2, ("node", "tick"): 10})
    waiting = Counter({("loop", "poll"): 20, ("loop", "beat"): 20, ("node", "tick"): 40})
    assert bench.without_waiting(calls, waiting, 0.5) == {("loop", "poll"): 20, ("node", "plan"): 2}


def test_the_figures_of_a_way() -> None:
    bench = load("trace")
    way = bench.TracedPath("a way", lambda _: {}, 10, 0.5)
    by_process = {
        "stage": Counter({("loop", "turn"): 20, ("rare", "once"): 1}),
        "watch": Counter({("loop", "turn"): 10, ("sink", "take"): 4, ("sink", "show"): 1}),
    }
    assert bench.figures(way, by_process) == {
        "modules": {"loop": 3.0, "sink": 0.5},
        "entered": 3.5,
        "functions": {"loop.turn": 3.0, "sink.take": 0.4, "rare.once": 0.1, "sink.show": 0.1},
        "processes": {"stage": 2.1, "watch": 1.5},
    }


def test_the_run_with_the_median_of_entries_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    bench = load("trace")
    numbers = iter([7, 3, 5])
    way = bench.TracedPath("a way", lambda _: {"node": Counter({("loop", "turn"): next(numbers)})})
    found = bench.measure(way, bench.Target(ROOT, True), 3)
    assert found["entered"] == 5 and found["runs"] == [3, 5, 7]
    bench.show({"plan": found}, modules=True)
    said = capsys.readouterr().out
    assert "a plan to a running worker             1        5       3        7\n  5 times loop.turn\n" in said
    assert said.endswith("       5.0  loop\n") and max(map(len, said.splitlines())) <= 80


@pytest.mark.slow
def test_a_stage_of_this_checkout_is_traced(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench/trace.py"), "--checkout", str(TREE), "--embedded"]
    options = ["--ways", "slice", "--repeats", "1", "--json", str(tmp_path / "found.json")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.startswith("har_edge ") and "synthetic recordings" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())["slice"]
    assert found["modules"]["inference.interpreter"] >= 1
    assert found["entered"] == sum(found["modules"].values()) and len(found["modules"]) > 10
