"""The imports point one way, and the rooms keep to what they are for (docs/explanation/design.md)."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import har_edge

PACKAGE = Path(har_edge.__file__).parent
# A room may import from rooms below its own level, and from itself.
LEVELS = [
    {"cli"},
    {"training", "experiments"},
    {"evaluation", "cluster", "emulation"},
    {"api", "integrations"},
    {"coordinator", "learning", "monitor"},
    {"runtime"},
    {"planner", "inference", "trust"},
    {"protocol"},
    {"config", "mqtt"},
    {"tflite", "codecs"},
    {"data"},
    {"resources", "extras", "service"},
    {"errors", "files", "timing", "units"},
]
HEAVY = (
    "tensorflow", "keras", "sklearn", "matplotlib", "joblib", "distributed",
    "PIL", "paho", "mqtt5", "ai_edge_litert", "tflite_runtime", "numpy",
)  # fmt: skip
# Who alone may import a library, as a path below the package.
ONLY = {
    "tensorflow": "training/",
    "keras": "training/",
    "sklearn": ("evaluation/", "learning/data/digits.py", "training/"),
    "matplotlib": "evaluation/",
    "joblib": "evaluation/engine.py",
    "PIL": ("data/heat_maps.py", "data/pictures.py"),
    "distributed": "evaluation/engine.py",
    "flwr": "integrations/flower.py",
    "cryptography": ("learning/masking/keys.py", "trust/"),
    "dp_accounting": "learning/privacy.py",
    "ai_edge_quantizer": "learning/quantization/int8_model.py",
    "tflite_runtime": "inference/interpreter.py",
    "paho": "mqtt/",
    "mqtt5": "mqtt/",
}
NO_SOCKETS_OR_CLOCKS = ("tflite/", "codecs/", "data/", "planner/", "config/", "protocol/")


@functools.cache
def trees() -> dict[Path, list[ast.AST]]:
    """Return the nodes of each module, parsed once a test run."""
    return {path: list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def modules() -> list[tuple[str, list[str]]]:
    """Return each module, as a path below the package, with everything it imports."""
    found = []
    for path, nodes in trees().items():
        names: list[str] = []
        for node in nodes:
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found.append((path.relative_to(PACKAGE).as_posix(), names))
    return found


def room(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def level(name: str) -> int | None:
    return next((number for number, rooms in enumerate(LEVELS) if name in rooms), None)


def test_imports_point_one_way() -> None:
    wrong = []
    for path, imports in modules():
        own = level(room(path))
        for name in imports:
            if not name.startswith("har_edge.") or own is None:
                continue
            other = name.split(".")[1]
            below = level(other)
            if other != room(path) and below is not None and below <= own:
                wrong.append(f"{path} imports {name}")
    assert wrong == []


def test_every_room_has_a_level() -> None:
    rooms = {room(path) for path, _ in modules()} - {"__init__"}
    assert rooms == set.union(*LEVELS)


@pytest.mark.parametrize("library", ONLY)
def test_libraries_stay_in_their_rooms(library: str) -> None:
    users = [path for path, imports in modules() if any(name.split(".")[0] == library for name in imports)]
    assert [path for path in users if not path.startswith(ONLY[library])] == []


def test_litert_is_imported_by_the_interpreter_and_the_schema_only() -> None:
    users = [path for path, imports in modules() if any(name.startswith("ai_edge_litert") for name in imports)]
    assert sorted(users) == ["inference/interpreter.py", "tflite/schema.py"]


@pytest.mark.parametrize("module", ["socket", "time", "random", "subprocess", "ssl", "select", "asyncio", "threading"])
def test_pure_rooms_touch_no_socket_and_no_clock(module: str) -> None:
    users = [path for path, imports in modules() if module in imports and path.startswith(NO_SOCKETS_OR_CLOCKS)]
    assert users == []


# What turns the bytes of a message into what they mean, one function for each kind: for protocol/events.py alone.
DECODERS = {"decode_status", "decode_heartbeat", "decode_deployment", "decode_results", "decode_header"}


def test_messages_are_decoded_in_one_place() -> None:
    wrong, root = [], Path(__file__).parents[1]
    for folder in (PACKAGE, root / "bench", root / "tests", root / "examples"):
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder.parent).as_posix()
            if name.startswith(("har_edge/protocol/", "tests/protocol/")):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
                names |= {node.attr} if isinstance(node, ast.Attribute) else set()
                if folder == PACKAGE and isinstance(node, ast.Call) and ast.unparse(node.func) == "wire.decode":
                    wrong.append(f"{name}:{node.lineno} decodes tensors, expected decode of protocol/events.py")
                wrong += [f"{name} uses {decoder}, expected decode" for decoder in sorted(names & DECODERS)]
    assert wrong == []


# Names with two classes: one that a program of the user's sees, and the one that the public API is built on.
TWICE = {
    "Model": {"api/model.py", "tflite/model.py"},
    "Sensor": {"api/sensor.py", "runtime/sensor/sensor.py"},
}


def test_each_public_class_has_a_name_of_its_own() -> None:
    places: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, set()).add(path.relative_to(PACKAGE).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == TWICE


def test_long_running_processes_are_started_in_few_places() -> None:
    """Those of a pipeline by the cluster, brokers by their launcher, what runs on emulated devices by the test bed."""
    starters = [
        path.relative_to(PACKAGE).as_posix()
        for path, nodes in trees().items()
        if any(isinstance(node, ast.Call) and ast.unparse(node.func) == "subprocess.Popen" for node in nodes)
    ]
    assert starters == [
        "cluster/processes.py",
        "emulation/testbed.py",
        "inference/sandbox.py",
        "mqtt/broker/embedded.py",
        "mqtt/broker/launcher.py",
        "mqtt/broker/watchdog.py",
    ]


def test_no_module_uses_pickle_or_eval() -> None:
    wrong = []
    for path, nodes in trees().items():
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                wrong += [f"{path}: {name}" for name in names if name.split(".")[0] in {"pickle", "marshal", "shelve"}]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
                wrong.append(f"{path}:{node.lineno} {node.func.id}")
            if isinstance(node, ast.keyword) and node.arg == "shell":
                wrong.append(f"{path}:{node.lineno} shell=")
    assert wrong == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, har_edge; print([name for name in {HEAVY!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_command_line_parser_loads_nothing_heavy() -> None:
    code = f"""
import sys
from har_edge.cli.main import build_parser
build_parser()
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
