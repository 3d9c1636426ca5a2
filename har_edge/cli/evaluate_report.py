"""What `har-edge evaluate` prints."""

from __future__ import annotations

from collections.abc import Iterable

from har_edge.evaluation.chart import format_confusion
from har_edge.evaluation.missing import WithoutSource
from har_edge.evaluation.report import Agreement, Evaluation


def format_evaluation(evaluation: Evaluation) -> str:
    """Return the figures as text, and first of all what they are figures of."""
    lines = [f"model      {evaluation.model} (sha256 {evaluation.model_sha256[:12]})", f"data       {evaluation.data}"]
    lines += [f"windows    {evaluation.windows} of one activity scored, {evaluation.mixed} others left out"]
    lines += [f"accuracy   {evaluation.accuracy:.4f}", f"macro F1   {evaluation.macro_f1:.4f}", *_worth(evaluation), ""]
    lines.append(f"{'subject':<26}{'windows':>9}{'accuracy':>10}{'macro F1':>10}")
    for subject, part in evaluation.per_subject.items():
        lines.append(f"{subject:<26}{part.windows:>9}{part.accuracy:>10.4f}{part.macro_f1:>10.4f}")
    lines += ["", f"{'activity':<26}{'windows':>9}{'precision':>10}{'recall':>10}{'F1':>10}"]
    for row in evaluation.per_class:
        lines.append(f"{row.label:<26}{row.windows:>9}{row.precision:>10.4f}{row.recall:>10.4f}{row.f1:>10.4f}")
    lines += ["", "rows: truth, columns: answer", format_confusion(evaluation)]
    if evaluation.agreement:
        lines += ["", *(_agreement(way, part) for way, part in evaluation.agreement.items())]
    return "\n".join(lines)


def format_missing(rows: Iterable[WithoutSource]) -> str:
    """Return how the model did without each source, a line each."""
    head = f"\n{'without source':<26}{'windows':>9}{'accuracy':>10}{'macro F1':>10}"
    return "\n".join(
        [head, *(f"{row.source:<26}{row.windows:>9}{row.accuracy:>10.4f}{row.macro_f1:>10.4f}" for row in rows)]
    )


def _worth(evaluation: Evaluation) -> list[str]:
    """Say plainly what the figures are worth."""
    split = evaluation.split
    if not evaluation.real:
        return ["           on synthetic data: says nothing about people"]
    if evaluation.seen:
        people = f"trained on {_names(split.train)}, tested on {_names(split.test)}"
        return [
            f"           trained on {_names(evaluation.seen)}: not a generalisation figure; the split figure is",
            f"           {split.accuracy:.4f} (macro F1 {split.macro_f1:.4f}; {people})",
        ]
    return [f"           trained on {_names(evaluation.trained_on)}, on none of these subjects"]


def _names(streams: list[str]) -> str:
    return ", ".join(streams)


def _agreement(way: str, part: Agreement) -> str:
    if part.identical:
        return f"{way}: {part.equal} outputs, all identical to those of the whole model"
    return (
        f"{way}: DIFFERS from the whole model: {part.equal} identical, {part.different} different, "
        f"{part.missing} missing, {part.extra} extra"
    )
