"""The wheel on Debian arm64 under qemu-user: installed with pip, then demo, check, a node, and the bits against ours.

Outside CI: python -m pytest -m arm64 tests/installed/test_arm64.py (some ten minutes; needs root, debootstrap,
qemu-user-static and Linux 6.7). The root is kept in HAR_EDGE_ARM64, by default build/arm64. No figure of it is a speed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from har_edge.inference.interpreter import Delegate, Interpreter
from har_edge.inference.sampling import sample
from har_edge.resources import find_folder

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(1800)]
TREE = Path(__file__).parents[2]
HAR_EDGE = "/w/v/bin/har-edge"
PACKAGES = ("python3", "python3-venv", "python3-pip", "ca-certificates", "mosquitto")
FLOATS = ("har-float", "har-decimate-q8-zlib-restore")
INTEGERS = ("har-int8", "har-bottleneck")
# Sums in another order: some units in the last place of scores below 1.
CLOSE = 2e-6
PROBE = """
import json, sys
import numpy as np
from pathlib import Path
from har_edge.inference.interpreter import Delegate, Interpreter
from har_edge.resources import find_folder
for name in sys.argv[1:]:
    with np.load(f"/w/in-{name}.npz") as archive:
        values = dict(archive)
    for delegate in Delegate:
        model = Interpreter(find_folder("models") / f"{name}.tflite", delegate=delegate)
        np.savez(f"/w/out-{name}-{delegate.value}.npz", **model.run(values))
"""
ROUND = f"""
set -e
cd /w
export HAR_EDGE_BROKER=mqtt://127.0.0.1:{{port}}
{HAR_EDGE} broker --port {{port}} --directory /w/broker > broker.log 2>&1 & broker=$!
sleep 3
{HAR_EDGE} node --name pi > node.log 2>&1 & node=$!
{HAR_EDGE} coordinator --model bottleneck --stages 1 > coordinator.log 2>&1 & coordinator=$!
trap 'kill $node $coordinator $broker' EXIT
{HAR_EDGE} sensor --pipeline har --subjects 7 --speed 20 --windows 20 > sensor.log 2>&1 &
timeout 300 {HAR_EDGE} watch --pipeline har --json --windows 20 > results.jsonl 2> watch.log
timeout 60 {HAR_EDGE} status --json > status.json
"""


@pytest.fixture(scope="module")
def emulate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("emulate", TREE / "bench/emulate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    problem = module.lacking("arm64")
    if problem:
        pytest.fail(f"what -m arm64 asks for cannot run here: it {problem}")
    return module


@pytest.fixture
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def root(emulate: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian with the wheel of this tree installed in /w/v."""
    found = Path(os.environ.get("HAR_EDGE_ARM64") or TREE / "build/arm64")
    emulate.make_root(found, "arm64", PACKAGES)
    wheels = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, TREE], check=True
    )
    (wheel,) = wheels.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    (found / "w").mkdir(exist_ok=True)
    for old in (found / "w").glob("*.whl"):
        old.unlink()
    shutil.copy(wheel, found / "w")
    if not (found / "w/v/bin/python3").exists():
        run(emulate, found, "python3 -m venv /w/v")
    run(emulate, found, f"/w/v/bin/pip install --quiet /w/{wheel.name}")
    run(emulate, found, f"/w/v/bin/pip install --quiet --no-deps --force-reinstall /w/{wheel.name}")
    return found


def run(emulate: ModuleType, root: Path, script: str) -> str:
    done = emulate.run(root, "arm64", ["sh", "-c", script], timeout_s=900.0)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


def test_pip_takes_litert_for_aarch64(emulate: ModuleType, root: Path) -> None:
    asked = "import json; from har_edge.inference.wheels import *; p = read_platform(); "
    asked += "print(json.dumps([wheel_machine(p), installed(), refusal(p)]))"
    machine, runtime, reason = json.loads(run(emulate, root, f"/w/v/bin/python -c '{asked}'"))
    assert (machine, runtime.split()[0], reason) == ("aarch64", "ai-edge-litert", None)


@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS])
def test_bits_against_this_machine(
    emulate: ModuleType, root: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    path, rng = find_folder("models") / f"{name}.tflite", np.random.default_rng(0)
    values = sample(Interpreter(path).inputs, rng)
    np.savez(root / f"w/in-{name}.npz", **values)
    (root / "w/probe.py").write_text(PROBE, encoding="utf-8")
    run(emulate, root, f"/w/v/bin/python /w/probe.py {name}")
    for delegate in Delegate:
        ours = Interpreter(path, delegate=delegate).run(values)
        with np.load(root / f"w/out-{name}-{delegate.value}.npz") as archive:
            theirs = dict(archive)
        assert theirs.keys() == ours.keys()
        gap = max(float(np.max(np.abs(ours[key].astype(float) - theirs[key].astype(float)))) for key in ours)
        record_property(f"{name}, {delegate.value}", gap)
        print(f"{name}, delegate {delegate.value}: {'equal' if gap == 0 else f'differs by {gap:.1e}'}")
        assert gap == 0 if name in INTEGERS else gap < CLOSE


@pytest.mark.parametrize("name", ["bottleneck", "float", "int8"])
def test_every_cut_gives_the_bits_of_the_whole(emulate: ModuleType, root: Path, name: str) -> None:
    said = run(emulate, root, f"{HAR_EDGE} slice {name} --check")
    assert "all equal, bit for bit" in said


def test_the_demo_runs(emulate: ModuleType, root: Path) -> None:
    said = run(emulate, root, f"{HAR_EDGE} demo --windows 20 --speed 5 --json /w/demo.json 2>&1")
    assert "40 in, 40 out, 0 lost, 0 doubled" in said


def test_a_node_gets_its_slice_and_answers(emulate: ModuleType, root: Path, free_port: int) -> None:
    run(emulate, root, ROUND.format(port=free_port))
    results = (root / "w/results.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["seq"] for line in results) == list(range(20))
    status = json.loads((root / "w/status.json").read_text(encoding="utf-8"))
    node = next(one for one in status["nodes"] if one["name"] == "pi")
    assert (status["ready"], node["delegate"]) == (True, "xnnpack")
    assert node["runtime"].startswith("ai-edge-litert ")
