"""Draw the lives of a window in docs/explanation/delivery.md from the tables that the program follows.

    python docs/tools/lifecycles.py            # print the section
    python docs/tools/lifecycles.py --write    # write it into the page

tests/runtime/test_lifecycles.py holds page and tables together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from har_edge.runtime import sender, sink
from har_edge.runtime.sensor import retransmit_buffer
from har_edge.runtime.stage import window

PAGE = Path(__file__).resolve().parents[1] / "explanation" / "delivery.md"
BEGIN = "<!-- made by docs/tools/lifecycles.py: begin -->\n"
END = "<!-- made by docs/tools/lifecycles.py: end -->\n"


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """A table of the program, and what it is about."""

    title: str
    module: str
    transitions: Mapping[tuple[Enum, Enum], Enum]
    initial: Enum

    @property
    def states(self) -> type[Enum]:
        return type(self.initial)

    @property
    def events(self) -> type[Enum]:
        return type(next(iter(self.transitions))[1])

    @property
    def final(self) -> list[Enum]:
        """The states that nothing leaves."""
        left = {state for state, _ in self.transitions}
        return [state for state in self.states if state not in left]


LIFECYCLES = (
    Lifecycle(
        "A window at its sensor",
        "runtime/sensor/retransmit_buffer.py",
        {**retransmit_buffer.TRANSITIONS},
        retransmit_buffer.INITIAL,
    ),
    Lifecycle("A window at a stage", "runtime/stage/window.py", {**window.TRANSITIONS}, window.INITIAL),
    Lifecycle(
        "An output, and the deliveries it was made of", "runtime/sender.py", {**sender.TRANSITIONS}, sender.INITIAL
    ),
    Lifecycle("A window at the sink", "runtime/sink.py", {**sink.TRANSITIONS}, sink.INITIAL),
)


def render() -> str:
    """Return the section: for each life a diagram, and what its states and events are."""
    return "".join(_section(one) for one in LIFECYCLES)


def page(text: str) -> str:
    """Return the page with the section of today."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{render()}{END}{rest.split(END)[1]}"


def _section(life: Lifecycle) -> str:
    lines = [f"\n### {life.title}\n", f"The table stands in `{life.module}`.\n", "```mermaid", "stateDiagram-v2"]
    lines.append(f"    [*] --> {life.initial.name}")
    for (source, target), events in _grouped(life.transitions).items():
        lines.append(f"    {source} --> {target}: {', '.join(events)}")
    lines += [f"    {state.name} --> [*]" for state in life.final]
    lines += ["```\n", *_table("state", life.states), "", *_table("event", life.events), ""]
    return "\n".join(lines)


def _grouped(transitions: Mapping[tuple[Enum, Enum], Enum]) -> dict[tuple[str, str], list[str]]:
    grouped: dict[tuple[str, str], list[str]] = {}
    for (state, event), target in transitions.items():
        grouped.setdefault((state.name, target.name), []).append(event.name)
    return grouped


def _table(name: str, members: Iterable[Enum]) -> list[str]:
    return [f"| {name} | meaning |", "|---|---|", *(f"| `{one.name}` | {one.value} |" for one in members)]


def main() -> None:
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(render())


if __name__ == "__main__":
    main()
