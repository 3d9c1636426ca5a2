"""docs/reference/differentiable-operators.md names the operators that have rules, and the inputs that get gradients."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from har_edge.tflite.gradient.table import RULES
from tests.tflite.gradient import (
    harness,
    test_conv_rules,
    test_depthwise_rules,
    test_linear_rules,
    test_pool_rules,
    test_volume_rules,
)
from tests.tflite.gradient.cases import Same, X
from tests.tflite.gradient.check import gradients_of
from tests.tflite.gradient.elementwise_cases import ELEMENTWISE
from tests.tflite.gradient.shape_cases import SHAPED

PAGE = (Path(__file__).parents[3] / "docs/reference/differentiable-operators.md").read_text(encoding="utf-8")
CASES = [*ELEMENTWISE, *SHAPED]
TABLES = (test_linear_rules, test_conv_rules, test_depthwise_rules, test_pool_rules, test_volume_rules)
PRODUCTS = [case for table in TABLES for case in table.CASES]


def rows() -> dict[str, str]:
    """Return the inputs that get a gradient, as the page has them, by operator."""
    found: dict[str, str] = {}
    for operators, inputs in re.findall(r"^\| (`[A-Z].+?) \| ([^|]+?) \|", PAGE, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", operators):
            assert name not in found, f"{name} stands there twice"
            found[name] = inputs
    return found


def test_the_page_names_every_operator_with_a_rule() -> None:
    assert sorted(rows()) == sorted(RULES)


def _positions() -> dict[str, set[int]]:
    """Return the inputs that are differentiated in the tables of the tests, by operator."""
    found: dict[str, set[int]] = {}
    for case in CASES:
        places = {i for i, one in enumerate(case.inputs) if isinstance(one, (X, Same))}
        found.setdefault(case.operator, set()).update(places)
    for product in PRODUCTS:
        places = {i for i, one in enumerate(product.inputs) if isinstance(one, (harness.X, harness.W))}
        found.setdefault(product.operator, set()).update(places)
    return found


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_page_names_the_inputs_that_get_a_gradient(name: str) -> None:
    positions = sorted(_positions()[name])
    assert rows()[name] in (", ".join(map(str, positions)), "all" if len(positions) > 2 else None)


@pytest.mark.parametrize("name", sorted({case.operator for case in CASES}))
def test_each_of_these_inputs_gets_one(name: str) -> None:
    case = next(case for case in CASES if case.operator == name)
    assert set(gradients_of(case)[2]) == {f"in{i}" for i, one in enumerate(case.inputs) if isinstance(one, X)}
