"""Draw the versions of a model: the state of each, its figures, and why it has that state."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from har_edge.learning.versions.registry import DECIDING, ModelVersion, VersionRegistry, VersionState
from har_edge.protocol.text import escape
from har_edge.units import ago, plural

if TYPE_CHECKING:
    from rich.table import Table

# Digits of a hash that tell versions apart.
DIGITS = 12
_STYLES = {VersionState.DEPLOYED: "green", VersionState.REFUSED: "yellow", VersionState.ROLLED_BACK: "yellow"}


def draw_versions(versions: Sequence[ModelVersion], columns: int) -> Table:
    """Return a table with the newest version last, for a terminal of so many columns."""
    from rich.table import Table
    from rich.text import Text

    now = time.time()
    names = [name for name in DECIDING if any(name in one.figures for one in versions)]
    table = Table(box=None, pad_edge=False)
    for name in ("version", "state", *names, "held out", "made", "why"):
        figures = name in names or name == "held out"
        table.add_column(name, justify="right" if figures else "left", no_wrap=name != "why", overflow="fold")
    for one in versions:
        values = [f"{one.figures[name]:.4f}" if name in one.figures else "-" for name in names]
        told = [one.sha256[:DIGITS], one.state.value, *values, str(one.samples), ago(now - one.made), one.reason or "-"]
        table.add_row(*(Text(escape(text)) for text in told), style=_STYLES.get(one.state))
    return table


def summary(registry: VersionRegistry) -> str:
    """Return in words which version is deployed, on which data, and how many there are."""
    one = registry.deployed
    if one is None:
        return f"{plural(len(registry.versions), 'version')}, none of them deployed"
    figures = ", ".join(f"{name} {value:.4f}" for name, value in one.figures.items())
    count = plural(len(registry.versions), "version")
    return f"{count}; deployed: {one.sha256[:DIGITS]}, {figures} on {escape(one.held_out)}"
