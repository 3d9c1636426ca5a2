"""How bench/faults.py ends: wrong answers first, then what took too long."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from har_edge.experiments.faults import FaultKind, Outcome
from har_edge.experiments.load import AnswerCheck

PATH = Path(__file__).parents[2] / "bench" / "faults.py"
GOOD, LOST = AnswerCheck(10, 10, 0, 0, 0, 0, ()), AnswerCheck(10, 9, 1, 0, 0, 0, ())


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_faults", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_faults"] = module
    spec.loader.exec_module(module)
    return module


def fault(kind: FaultKind, noticed_s: float | None, gap_s: float) -> Outcome:
    return Outcome(kind, "", noticed_s, gap_s, 0, 0)


@pytest.mark.parametrize(
    ("faults", "replayed", "problem", "code"),
    [
        ([(FaultKind.CRASH, 0.5, 1.5), (FaultKind.REPLAN, None, 0.5), (FaultKind.HANG, 2.0, 60.0)], GOOD, "", 0),
        ([(FaultKind.CRASH, 0.6, 1.0)], GOOD, "", 2),
        ([(FaultKind.REPLAN, None, 0.1)] * 9 + [(FaultKind.REPLAN, None, 0.6)], GOOD, "", 2),
        ([(FaultKind.CRASH, 0.6, 1.0)], LOST, "", 1),
        ([], GOOD, "no results after 60 s", 1),
    ],
)
def test_wrong_counts_before_slow_and_the_longest_counts_too(
    bench: ModuleType,
    faults: list[tuple[FaultKind, float | None, float]],
    replayed: AnswerCheck,
    problem: str,
    code: int,
) -> None:
    report = bench.Report(tuple(fault(*one) for one in faults), replayed, GOOD, 0, 0, problem)
    assert bench.exit_code(report) == code


def test_what_took_too_long_is_said_with_its_figures(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    faults = (fault(FaultKind.JOIN, None, 0.2), fault(FaultKind.JOIN, None, 3.4))
    bench.show(bench.Report(faults, GOOD, GOOD, 0, 0, ""))
    assert "TOO LONG: join, gap: 1 of 2 above 0.5 s, the longest 3.40 s, the median 1.80 s" in capsys.readouterr().out
