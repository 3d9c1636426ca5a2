"""`import har_edge` costs next to nothing, and yet knows its names."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import har_edge

NAMES = ["LocalCluster", "Model", "Result", "ResultWatcher", "Sensor", "load_model", "split", "watch"]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_it_loads_no_module_of_its_own_and_none_of_others() -> None:
    code = "import sys; before = set(sys.modules); import har_edge; print(sorted(set(sys.modules) - before))"
    # __future__ comes with the start of an interpreter whose package is editable.
    assert set(ast.literal_eval(python(code))) - {"__future__"} == {"har_edge"}


@pytest.mark.alone
def test_it_takes_less_than_five_milliseconds() -> None:
    code = "import typing, time; t = time.perf_counter(); import har_edge; print(time.perf_counter() - t)"
    assert statistics.median(float(python(code)) for _ in range(5)) < 0.005


def test_it_names_what_it_has_and_nothing_else() -> None:
    assert sorted(har_edge.__all__) == [*NAMES[:5], "__version__", *NAMES[5:]]
    assert set(NAMES) <= set(dir(har_edge))
    for name in NAMES:
        value = getattr(har_edge, name)
        assert value.__module__ == har_edge._PUBLIC[name] and value.__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        har_edge.nothing  # noqa: B018
    with pytest.raises(ImportError):
        from har_edge import nothing  # noqa: F401


def test_type_checkers_are_told_of_the_same_names() -> None:
    tree = ast.parse(Path(har_edge.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {one.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for one in node.names}
    assert told == har_edge._PUBLIC and sorted(told) == NAMES
    assert (Path(har_edge.__file__).parent / "py.typed").is_file()
