"""Scripts beside the package use names that are there: benches run seldom, and a rename must not break them unseen."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path for folder in ("bench", "docs/tools", "examples", ".ci") for path in (ROOT / folder).glob("*.py"))
OURS = ("har_edge", "paho")
EXTRAS = ("tensorflow", "keras")  # modules that need these are passed over without them


def find(module: str, name: str = "") -> object:
    """Return a module, or a name in it; raises ImportError or AttributeError for what is not there."""
    found = importlib.import_module(module)
    if not name or hasattr(found, name):
        return getattr(found, name) if name else found
    try:
        return importlib.import_module(f"{module}.{name}")
    except ImportError:
        raise AttributeError(f"{module} has no {name}") from None


def missing(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules: dict[str, ModuleType] = {}
    for node in ast.walk(tree):
        asked: list[tuple[str, str, str]] = []
        if isinstance(node, ast.Import):
            asked = [(alias.name, "", alias.asname or "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            asked = [(node.module, alias.name, alias.asname or alias.name) for alias in node.names]
        for module, name, local in asked:
            if module.split(".")[0] not in OURS:
                continue
            try:
                found = find(module, name)
            except (ImportError, AttributeError) as error:
                if error.name not in EXTRAS:
                    yield f"line {node.lineno}: {error}"
                continue
            if isinstance(found, ModuleType) and local:
                modules[local] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            module_found = modules[node.value.id]
            if not hasattr(module_found, node.attr):
                yield f"line {node.lineno}: {module_found.__name__} has no {node.attr}"


def test_the_scripts_are_found() -> None:
    assert len(SCRIPTS) > 30


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_script_uses_names_that_are_there(path: Path) -> None:
    assert list(missing(path)) == []


def test_each_kind_of_missing_name_is_found(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        "import paho.mqtt.client as mqtt\nfrom har_edge import nowhere\nfrom har_edge.tflite import slices\n"
        "from har_edge.away import x\nprint(mqtt.Client, mqtt.ClientLibrary, slices.check_places, slices.slice_model)\n"
    )
    assert list(missing(path)) == [
        "line 2: har_edge has no nowhere",
        "line 4: No module named 'har_edge.away'",
        "line 5: paho.mqtt.client has no ClientLibrary",
        "line 5: har_edge.tflite.slices has no check_places",
    ]
