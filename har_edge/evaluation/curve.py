"""The pictures of a study: accuracy over bytes, and accuracy by subject."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from har_edge.codecs.spec import parse_spec
from har_edge.evaluation.chart import draw_matrix
from har_edge.evaluation.results import TITLES, StudyResults
from har_edge.evaluation.rows import NETWORK, Row
from har_edge.evaluation.study import NO_REDUCTION, Downstream
from har_edge.extras import require

CURVE, CONFUSION, SUBJECTS = "curve.png", "confusion.png", "subjects.png"
TARGET = 0.8
_MARKERS = {Downstream.CODES.value: "o", Downstream.RESTORE.value: "s"}
_DPI = 120


def draw_study(results: StudyResults, folder: Path) -> list[Path]:
    """Write curve.png, confusion.png and subjects.png; ConfigError without matplotlib (the extra `evaluation`)."""
    rows = results.headline
    if not rows:
        return []
    data = results.conditions.data if results.conditions.real else "SYNTHETIC DATA"
    title = f"{TITLES[rows[0].protocol]}, {rows[0].subjects} subjects; {data}"
    best = choose_row(rows)
    draw_curve(rows, folder / CURVE, title)
    draw_subjects(rows, folder / SUBJECTS, title)
    shown = f"{best.name}: {100 * best.reduction:.1f} % less than raw\n{title}"
    draw_matrix(best.confusion, best.labels, folder / CONFUSION, shown)
    return [folder / name for name in (CURVE, SUBJECTS, CONFUSION)]


def choose_row(rows: Sequence[Row]) -> Row:
    """Return the most accurate row that reaches the target reduction; where none does, of all."""
    reached = [row for row in rows if row.reduction >= TARGET and row.method == NETWORK]
    return max(reached or rows, key=lambda row: (row.accuracy, row.reduction))


def draw_curve(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw mean accuracy over wire bytes per second: a colour a method, a marker for what the classifier sees.

    Each variant is named once, at its smallest batch; larger ones are small marks on a line that leaves it.
    """
    figure = _figure(12, 8)
    axes = figure.add_subplot()
    families = list(dict.fromkeys(_family(row) for row in rows))
    colours = dict(zip(families, _palette(len(families)), strict=True))
    variants = _by_variant(rows)
    for members in variants:
        _draw_variant(axes, members, colours[_family(members[0])])
    named = [members[0] for members in variants]
    _draw_lines(axes, named)
    axes.set_xscale("log")
    axes.set_xlabel("bytes per second on the wire, all sensors (MQTT PUBLISH packets), logarithmic")
    axes.set_ylabel("accuracy, mean over subjects ± standard deviation (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="both", alpha=0.15)
    _draw_key(figure, rows)
    _fit(axes, rows)
    figure.draw_without_rendering()
    _name_points(figure, axes, variants, colours)
    _save(figure, path)


def _by_variant(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each variant, the smallest batch first."""
    variants: dict[tuple[str | int, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.batch):
        variants.setdefault(row.key[:-1], []).append(row)
    return list(variants.values())


def _draw_variant(axes: Any, members: Sequence[Row], colour: Any) -> None:
    first, marker = members[0], _MARKERS.get(members[0].downstream, "*")
    fill = "white" if first.downstream == Downstream.RESTORE.value else colour
    axes.errorbar(
        [first.wire_bytes_per_s], [100 * first.accuracy], yerr=[100 * (first.accuracy_std or 0)], fmt=marker,
        markersize=7, color=colour, markerfacecolor=fill, ecolor=(*colour[:3], 0.25), capsize=2, zorder=3,
    )  # fmt: skip
    if len(members) > 1:
        axes.plot(
            [row.wire_bytes_per_s for row in members], [100 * row.accuracy for row in members], color=colour,
            linewidth=0.8, marker=marker, markersize=3.5, markerfacecolor=fill, zorder=2,
        )  # fmt: skip


def draw_subjects(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw the accuracy of each row for each subject, as a table of shades."""
    names = list(dict.fromkeys(name for row in rows for name in row.per_subject))
    shares = np.array([[row.per_subject.get(name, math.nan) for name in names] for row in rows])
    figure = _figure(4.5 + 0.75 * len(names), 1.8 + 0.32 * len(rows))
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="RdYlGn", vmin=min(0.5, float(np.nanmin(shares))), vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    for (line, column), share in np.ndenumerate(shares):
        if not math.isnan(share):
            axes.text(column, line, f"{100 * share:.1f}", ha="center", va="center", fontsize=8)
    axes.set_title(f"accuracy by subject (%)\n{title}", fontsize=9)
    _save(figure, path)


def _draw_lines(axes: Any, rows: Sequence[Row]) -> None:
    """Mark the accuracy without reduction, the raw rate, and the target."""
    raw = rows[0].raw_bytes_per_s
    whole = [
        row for row in rows if row.reducer == NO_REDUCTION and row.method == NETWORK and row.grouping == "location"
    ]
    if whole:
        level = 100 * max(row.accuracy for row in whole)
        axes.axhline(level, color="black", linestyle="--", linewidth=1, zorder=1)
        axes.annotate(
            f"no reduction: {level:.1f} %", (0.005, level), xycoords=("axes fraction", "data"), fontsize=8,
            xytext=(0, 3), textcoords="offset points",
        )  # fmt: skip
    for rate, text in ((raw, "raw samples"), ((1 - TARGET) * raw, f"{100 * TARGET:.0f} % less than raw")):
        axes.axvline(rate, color="grey", linestyle=":", linewidth=1.2, zorder=1)
        axes.annotate(
            f"{text}\n{rate:.0f} B/s", (rate, 0.01), xycoords=("data", "axes fraction"), fontsize=8, color="dimgrey",
            xytext=(3, 0), textcoords="offset points",
        )  # fmt: skip


def _draw_key(figure: Any, rows: Sequence[Row]) -> None:
    """Say what the markers mean; colours are named at the points."""
    from matplotlib.lines import Line2D

    ways, batches = {row.downstream for row in rows}, sorted({row.batch for row in rows})
    texts = {
        Downstream.CODES.value: ("o", "dimgrey", "classifier trained on codes"),
        Downstream.RESTORE.value: ("s", "white", "windows restored for the unreduced classifier"),
    }
    handles = [
        Line2D([], [], marker=marker, linestyle="", color="dimgrey", markerfacecolor=fill, label=label)
        for way, (marker, fill, label) in texts.items()
        if way in ways
    ]
    if len(batches) > 1:
        label = f"small: {', '.join(map(str, batches[1:]))} windows a message instead of {batches[0]}"
        handles.append(Line2D([], [], marker="o", linestyle="-", color="dimgrey", markersize=3.5, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


def _fit(axes: Any, rows: Sequence[Row]) -> None:
    """Leave room for names at both sides; cut error bars that would squeeze the points together."""
    rates = [row.wire_bytes_per_s for row in rows] + [rows[0].raw_bytes_per_s]
    axes.set_xlim(min(rates) / 1.8, max(rates) * 2.5)
    lowest, spread = min(100 * row.accuracy for row in rows), [100 * (row.accuracy_std or 0) for row in rows]
    lows = [100 * row.accuracy - std for row, std in zip(rows, spread, strict=True)]
    highs = [100 * row.accuracy + std for row, std in zip(rows, spread, strict=True)]
    axes.set_ylim(max(0.0, lowest - 12, min(lows)) - 3, min(100.0, max(highs)) + 1.5)


def _name_points(figure: Any, axes: Any, variants: Sequence[Sequence[Row]], colours: dict[str, Any]) -> None:
    """Write each variant's name where it covers no mark and no other name, with a line to its point."""
    scale = figure.dpi / 72
    rows = [members[0] for members in variants]
    places = [
        [axes.transData.transform((row.wire_bytes_per_s, 100 * row.accuracy)) for row in rows_of]
        for rows_of in variants
    ]
    spots = [place[0] for place in places]
    frame = axes.get_window_extent()
    taken = [_box(x, y, 10 * scale, 10 * scale) for x, y in spots]
    for (x, y), *others in places:
        taken += [_box((x + other) / 2, y, abs(x - other) + 6 * scale, 6 * scale) for other, _ in others]
    taken += [text.get_window_extent() for text in axes.texts]
    for row, (x, y) in sorted(zip(rows, spots, strict=True), key=lambda pair: -pair[1][1]):
        text = axes.annotate(
            row.name, (row.wire_bytes_per_s, 100 * row.accuracy), xytext=(0, 0), textcoords="offset points",
            ha="center", va="center", fontsize=7.5, color=_darker(colours[_family(row)]), zorder=4,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7},
        )  # fmt: skip
        extent = text.get_window_extent()
        width, height = extent.width + 4 * scale, extent.height + 2 * scale
        for along, up in _places(width / 2 + 6 * scale, height / 2 + 6 * scale):
            box = _box(x + along, y + up, width, height)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        else:
            along, up = width / 2, height / 2
            box = _box(x + along, y + up, width, height)
        taken.append(box)
        text.set_position((along / scale, up / scale))
        if math.hypot(along, up) > width / 2 + 12 * scale:
            axes.annotate(
                "", (row.wire_bytes_per_s, 100 * row.accuracy), xytext=(along / scale, up / scale),
                textcoords="offset points", zorder=2,
                arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "grey", "shrinkA": 8, "shrinkB": 4},
            )  # fmt: skip


def _places(across: float, up: float) -> Iterator[tuple[float, float]]:
    """Yield offsets around a point, nearest first."""
    for ring in range(1, 14):
        for angle in (0, 180, 90, 270, 45, 135, 225, 315, 22, 158, 202, 338, 67, 113, 247, 293):
            radians = math.radians(angle)
            reach = 1 + 0.5 * (ring - 1)
            yield across * math.cos(radians) * (reach if ring < 6 else 2.2), up * math.sin(radians) * reach * 1.4


def _darker(colour: Any) -> Any:
    return tuple(0.6 * part for part in colour[:3])


def _box(x: float, y: float, width: float, height: float) -> Any:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _family(row: Row) -> str:
    return row.method if row.method != NETWORK else parse_spec(row.reducer)[0].method


def _palette(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab10" if count <= 10 else "tab20"](index) for index in range(count)]


def _figure(width: float, height: float) -> Any:
    require("drawing", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="png")
