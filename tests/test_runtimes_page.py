"""docs/reference/runtimes.md holds what bench/runtimes.py writes: the same columns, runtimes, delegates and words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reference/runtimes.md").read_text(encoding="utf-8")
BENCH = ast.parse((ROOT / "bench/runtimes.py").read_text(encoding="utf-8"))
COUNTS = r"all \d+|\*\*\d+ of \d+\*\*|some do not run"
CELLS = (
    None,
    r"x86_64|aarch64|armv7l",
    r"xnnpack|none|xnnpack, not applied",
    r"yes|no",
    rf"{COUNTS}|-",
    rf"{COUNTS}|fixed size|no|\*\*crashes\*\*|-",
    r"equal|differs by \d\.\de-\d\d|differs by \d+ steps|-",
)


def constant(name: str) -> ast.expr:
    """Return what the bench assigns to a name; it is read, not imported, since its libraries are not installed here."""
    (found,) = (
        node.value
        for node in BENCH.body
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == [name]
    )
    return found


def tables() -> dict[str, list[list[str]]]:
    """Return the cells of each table between the markers, by the kind of model above it."""
    part = PAGE.partition("<!-- runtimes -->\n")[2].partition("<!-- end of runtimes -->")[0]
    found: dict[str, list[list[str]]] = {}
    for line in filter(None, part.splitlines()):
        if title := re.fullmatch(r"\*\*(.+)\*\*", line):
            rows = found.setdefault(title.group(1), [])
        else:
            assert line.startswith("| ") or line.startswith("|-"), line
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_every_kind_of_model_has_a_table_with_the_columns_of_the_bench() -> None:
    head = list(ast.literal_eval(constant("HEAD")))
    assert {name.partition(",")[0].partition(" (")[0] for name in tables()} >= {
        *("float32", "dynamic range", "fp16 weights", "full int8", "uint8")
    }
    for rows in tables().values():
        assert rows[0] == head
        assert rows[1] == ["---"] * len(head)


def test_every_table_has_every_runtime_with_each_delegate() -> None:
    calls = [call for call in ast.walk(constant("RUNTIMES")) if isinstance(call, ast.Call)]
    runtimes = [ast.literal_eval(call.args[0]) for call in calls]
    assert len(runtimes) == 4
    for kind, rows in tables().items():
        for runtime in runtimes:
            delegates = {row[2].partition(",")[0] for row in rows[2:] if row[:2] == [runtime, "x86_64"]}
            assert delegates == ({"none"} if runtime == "tflite-micro" else {"xnnpack", "none"}), (kind, runtime)


def test_every_cell_is_a_word_of_the_bench() -> None:
    for kind, rows in tables().items():
        for row in rows[2:]:
            for cell, pattern in zip(row, CELLS, strict=True):
                assert pattern is None or re.fullmatch(pattern, cell), (kind, row, cell)


def test_what_is_promised_is_what_was_measured() -> None:
    for kind, rows in tables().items():
        for runtime, machine, delegate, loads, single, batch, reference in rows[2:]:
            if loads == "no":
                continue
            if runtime.startswith("LiteRT") or delegate == "none":
                assert single.startswith("all "), (kind, runtime, machine, delegate)
            if runtime.startswith("LiteRT"):
                assert batch.startswith("all ") or batch == "fixed size", (kind, runtime, machine, delegate)
                if "int8" in kind and delegate == "xnnpack":
                    assert reference == "equal", (kind, runtime, machine)
