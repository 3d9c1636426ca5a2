"""The output of `har-edge evaluate`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from har_edge.cli.console import columns, fold
from har_edge.cli.reports.bars import TOLD_SHARE
from har_edge.evaluation.missing import WithoutSource
from har_edge.evaluation.packed import PackedScore
from har_edge.evaluation.report import Agreement, ClassRow, Evaluation

# The text prints the figures of at most so many classes; --json has all.
MAX_CLASSES = 40
_NAME_WIDTH = 26


def format_evaluation(evaluation: Evaluation) -> str:
    """Return the figures as text, after a line that says which data they are from."""
    lines = [f"model      {evaluation.model} (sha256 {evaluation.model_sha256[:12]})", f"data       {evaluation.data}"]
    lines += [f"windows    {evaluation.windows} of one activity scored, {evaluation.mixed} others left out"]
    lines += list(_saturated(evaluation))
    if evaluation.accuracy is None or evaluation.macro_f1 is None:
        lines += ["accuracy   none: no window has one known activity, so nothing was scored", ""]
    else:
        lines += [f"accuracy   {evaluation.accuracy:.4f}"]
        lines += [f"top {k:<6} {share:.4f}" for k, share in evaluation.top_k.items()]
        lines += [f"macro F1   {evaluation.macro_f1:.4f}", *_worth(evaluation), ""]
        subjects = [(name, part.windows, part.accuracy, part.macro_f1) for name, part in evaluation.per_subject.items()]
        lines += _rows(("subject", "windows", "accuracy", "macro F1"), subjects)
        lines += ["", *_classes(evaluation.per_class)]
        lines += _confusion(evaluation)
    if evaluation.packed is not None:
        lines += ["", *_packed(evaluation.packed, evaluation.accuracy)]
    if evaluation.agreement:
        lines += ["", *(_agreement(way, part) for way, part in evaluation.agreement.items())]
    return "\n".join(fold(line, 11) for line in lines)


def _packed(part: PackedScore, whole: float | None) -> Iterator[str]:
    """Yield what packed activations change, and what they save."""
    kinds = Counter(re.sub(r":[^+]*", "", text) for text in part.packings.values())  # without the figures of q8
    yield "packed     " + ", ".join(f"{count} tensors between slices as {kind}" for kind, count in kinds.items())
    accuracy = "" if part.accuracy is None or whole is None else f"; accuracy {part.accuracy:.4f}, {whole:.4f} unpacked"
    yield f"           {part.labels_differ} of {part.windows} labels differ from the whole model's{accuracy}"
    count = max(1, part.windows)
    yield (
        f"           {part.bytes / count:.0f} bytes a window between slices, {part.raw_bytes / count:.0f} unpacked: "
        f"{part.ratio:.2f} times fewer" + (f"; {part.clipped} values clipped" if part.clipped else "")
    )


def _saturated(evaluation: Evaluation) -> Iterator[str]:
    """Yield a line for each source with more than a trace of values beyond the range of its quantised input."""
    for source, part in evaluation.saturated.items():
        if part.share >= TOLD_SHARE:
            (least, largest), (low, high) = part.came, part.takes
            yield (
                f"saturated  {part.share:.1%} of the values of {source}: {least:.4g} to {largest:.4g} came, the model "
                f"takes {low:.4g} to {high:.4g}"
            )


def format_missing(rows: Iterable[WithoutSource]) -> str:
    """Return the scores of the model without each source, one line each."""
    cells = [(row.source, row.windows, row.accuracy, row.macro_f1) for row in rows]
    return "\n".join(["", *_rows(("without source", "windows", "accuracy", "macro F1"), cells)])


def _rows(heads: Sequence[str], rows: Sequence[tuple[str | int | float | None, ...]]) -> list[str]:
    """Return lines of a name and figures; a long name has a line of its own, with the figures below it."""
    names = [str(name) for name, *_ in rows]
    longest = max([_NAME_WIDTH, *(len(name) for name in names if len(name) <= columns() - 10 * (len(heads) - 1))])
    lines = [f"{heads[0]:<{longest}}" + "".join(f"{head:>10}" for head in heads[1:])]
    for name, (_, *figures) in zip(names, rows, strict=True):
        cells = "".join(f"{_figure(figure):>10}" for figure in figures)
        lines += [f"{name:<{longest}}{cells}"] if len(name) <= longest else [name, " " * longest + cells]
    return lines


def _figure(value: str | int | float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _classes(per_class: Sequence[ClassRow]) -> Iterator[str]:
    """Yield a line for each class; if there are many, for the most frequent ones."""
    shown = list(per_class)
    if len(shown) > MAX_CLASSES:
        shown = sorted((row for row in shown if row.windows), key=lambda row: -row.windows)[:MAX_CLASSES]
    cells: list[tuple[str | int | float | None, ...]] = [
        # A class without windows has no recall, nor the figures that follow from it.
        (row.label, row.windows, *((row.precision, row.recall, row.f1) if row.windows else (None, None, None)))
        for row in shown
    ]
    yield from _rows(("activity", "windows", "precision", "recall", "F1"), cells)
    if len(shown) < len(per_class):
        yield f"and {len(per_class) - len(shown)} more classes that occur, in truth or in answers: --json has all"


def _confusion(evaluation: Evaluation) -> Iterator[str]:
    """Yield the confusion matrix in parts no wider than the terminal; nothing without a matrix."""
    count = len(evaluation.labels)
    if not evaluation.confusion:
        yield f"(no confusion matrix: there are {count} classes)"
        return
    yield from ("", "rows: truth, columns: answer")
    width = max(4, len(str(max(map(max, evaluation.confusion)))) + 1)
    margin = min(max(map(len, evaluation.labels)), max(8, columns() - 4 - 6 * width))
    at_once = max(1, (columns() - margin - 4) // width)
    for first in range(0, count, at_once):
        part = range(first, min(first + at_once, count))
        yield " " * (margin + 4) + "".join(f"{number + 1:>{width}}" for number in part)
        for number, (label, row) in enumerate(zip(evaluation.labels, evaluation.confusion, strict=True), start=1):
            cells = "".join(f"{row[column] or '.':>{width}}" for column in part)
            if len(label) > margin:
                yield label
            yield f"{label if len(label) <= margin else '':<{margin}} {number:>3}{cells}"


def _worth(evaluation: Evaluation) -> list[str]:
    """Return lines that say plainly how much the figures are worth."""
    split, indent = evaluation.split, " " * 11
    if not evaluation.real:
        return [f"{indent}on synthetic data: says nothing about people"]
    if evaluation.trained_on is None:
        return [f"{indent}nobody says what this model was trained on: if on these subjects, this says little"]
    if not evaluation.trained_on:
        return [f"{indent}on random weights: says nothing about anything"]
    if evaluation.seen and split is not None:
        people = f"trained on {_names(split.train)}, tested on {_names(split.test)}"
        return [
            f"{indent}trained on {_names(evaluation.seen)}: not a generalisation figure; the split figure is "
            f"{split.accuracy:.4f} (macro F1 {split.macro_f1:.4f}; {people})",
        ]
    return [f"{indent}trained on {_names(evaluation.trained_on)}, on none of these subjects"]


def _names(streams: list[str]) -> str:
    return ", ".join(streams)


def _agreement(way: str, part: Agreement) -> str:
    if part.identical:
        return f"{way}: {part.equal} outputs, all identical to those of the whole model"
    return (
        f"{way}: DIFFERS from the whole model: {part.equal} identical, {part.different} different, "
        f"{part.missing} missing, {part.extra} extra"
    )
