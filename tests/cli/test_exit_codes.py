"""docs/reference/exit-codes.md has every exit code, and every command that ends with 1."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import har_edge
from har_edge.cli.main import COMMANDS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
CODES = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
ENDS_WITH_1 = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
FOLDER = Path(har_edge.__file__).parent / "cli"


def constants(path: Path) -> dict[str, int]:
    """Return the exit codes that a module names."""
    return {
        node.targets[0].id: node.value.value
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        if node.targets[0].id.startswith("EXIT_") and isinstance(node.value.value, int)
    }


def values(returned: ast.expr | None) -> set[object]:
    """Return the constants that a statement may return."""
    if isinstance(returned, ast.IfExp):
        return values(returned.body) | values(returned.orelse)
    return {returned.value} if isinstance(returned, ast.Constant) else set()


def one_is_returned(path: Path) -> bool:
    """Return whether a module names the exit code 1, or returns it."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    returned = [values(node.value) for node in nodes if isinstance(node, ast.Return)]
    return 1 in constants(path).values() or any(type(one) is int and one == 1 for each in returned for one in each)


def test_every_code_is_on_the_page() -> None:
    named = {code for path in FOLDER.rglob("*.py") for code in constants(path).values()}
    assert named == {1, 3, 4, 130}
    assert named | {0, 2, 141, 143} == CODES


def test_every_command_that_ends_with_1_is_on_the_page() -> None:
    found = {name for name in COMMANDS if one_is_returned(FOLDER / "commands" / f"{name}.py")}
    assert len(found) >= 5 and found <= ENDS_WITH_1 <= {*COMMANDS}
