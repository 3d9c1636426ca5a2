"""The file of a plan: what is written is read again, and what no planner writes is refused with the place."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from har_edge.errors import CutError
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan
from har_edge.tflite.split.plan_file import PlanFile, PlannedGroup, load_plan

SPLIT = SplitPlan(
    2, (Block(0, 3, SplitMethod.ROWS, (0, 5, 9)), Block(3, 4, SplitMethod.WHOLE, (0, 0, 1))), border_first=False
)
PLAN = PlanFile("00" * 32, (PlannedGroup(0, 4, ("a", "b"), SPLIT), PlannedGroup(4, 6, ("c",))), 1000)


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode(PLAN))
    assert load_plan(path) == PLAN


def test_figures_of_the_planner_are_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    content = msgspec.json.decode(msgspec.json.encode(PLAN))
    content["version"], content["stages"][0]["period_s"] = 1, 0.5
    path.write_bytes(msgspec.json.encode(content))
    assert load_plan(path) == PLAN


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stages": [{"start": 1, "stop": 3}]}, "gives stage 0 the operators [1, 3), expected some from 0 on"),
        ({"stages": [{"start": 0, "stop": 0}]}, "gives stage 0 the operators [0, 0)"),
        ({"stages": []}, "length >= 1"),
        ({"stages": [{"start": 0, "stop": 6, "split": SPLIT}]}, "splits operators [0, 4) in stage 0"),
        ({"stages": [{"start": 0, "stop": 4, "devices": ["a"], "split": SPLIT}]}, "1 devices for 2 shards"),
        ({"max_payload_bytes": 2**28 + 1}, "max_payload_bytes"),
        ({"model_sha256": 3}, "model_sha256"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(PLAN), **changes}))
    with pytest.raises(CutError) as caught:
        load_plan(path)
    assert told in str(caught.value) and "har-edge plan --out FILE" in str(caught.value)


def test_shares_that_do_not_add_up_are_refused_as_a_plan(tmp_path: Path) -> None:
    content = msgspec.to_builtins(PLAN)
    content["stages"][0]["split"]["blocks"][0]["bounds"] = [0, 5]
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(CutError, match=r"is no plan: shares \[0, 5\] of operators \[0, 3\)"):
        load_plan(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CutError, match=r"cannot read the plan .*nothing\.json"):
        load_plan(tmp_path / "nothing.json")
