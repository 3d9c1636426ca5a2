"""Every rule against central differences, which need no TensorFlow; their tolerance is 5e-4 of the largest value."""

from __future__ import annotations

import pytest

from tests.tflite.gradient.cases import Case
from tests.tflite.gradient.check import check_case
from tests.tflite.gradient.elementwise_cases import ELEMENTWISE
from tests.tflite.gradient.shape_cases import SHAPED


@pytest.mark.parametrize("case", [*ELEMENTWISE, *SHAPED], ids=str)
def test_gradients_are_central_differences(case: Case) -> None:
    found = check_case(case)
    assert any(gradient.any() for gradient in found.values())
