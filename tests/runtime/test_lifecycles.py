"""The tables of states: an event that cannot come raises, every state can be reached, and the page shows them."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from har_edge.runtime.stage.window import TRANSITIONS, WindowEvent, WindowState
from har_edge.runtime.transitions import UnknownTransition, advance

TOOL = Path(__file__).resolve().parents[2] / "docs" / "tools" / "lifecycles.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lifecycles", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lifecycles"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


lifecycles = load()


def test_the_page_shows_the_tables_that_the_program_follows() -> None:
    text = lifecycles.PAGE.read_text(encoding="utf-8")
    if os.environ.get("HAR_EDGE_UPDATE"):
        text = lifecycles.page(text)
        lifecycles.PAGE.write_text(text, encoding="utf-8")
    assert lifecycles.render() in text, "python docs/tools/lifecycles.py --write, and read the difference"


def test_the_section_changes_with_a_table() -> None:
    text = lifecycles.page(lifecycles.PAGE.read_text(encoding="utf-8"))
    assert "    WAITING --> COMPLETE: LAST_PART\n" in text and "    OVERTAKEN --> LEFTOVER: SETTLED_BEFORE\n" in text
    other = lifecycles.Lifecycle(
        "Other", "x.py", {(WindowState.WAITING, WindowEvent.PART): WindowState.LOST}, WindowState.WAITING
    )
    assert "    WAITING --> LOST: PART\n" in lifecycles._section(other)


@pytest.mark.parametrize("life", lifecycles.LIFECYCLES, ids=lambda life: life.module)
def test_every_state_is_reached_and_every_event_used(life) -> None:  # type: ignore[no-untyped-def]
    reached, before = {life.initial}, set()
    while reached != before:
        before = set(reached)
        reached |= {target for (state, _), target in life.transitions.items() if state in before}
    assert reached == set(life.states)
    assert {event for _, event in life.transitions} == set(life.events)
    assert all(one.value and not one.value.endswith(".") for one in (*life.states, *life.events))


@pytest.mark.parametrize("life", lifecycles.LIFECYCLES, ids=lambda life: life.module)
def test_what_the_table_does_not_have_is_an_error_of_the_program(life) -> None:  # type: ignore[no-untyped-def]
    unknown = set(itertools.product(life.states, life.events)) - life.transitions.keys()
    assert unknown
    for state, event in unknown:
        with pytest.raises(
            UnknownTransition, match=rf"{state.name} got {event.name}; expected an event that its table"
        ):
            advance(life.transitions, state, event)


def test_a_window_that_is_over_goes_nowhere() -> None:
    over = {WindowState.STALE, WindowState.LEFTOVER, WindowState.LOST}
    assert over == set(WindowState) - {state for state, _ in TRANSITIONS}
