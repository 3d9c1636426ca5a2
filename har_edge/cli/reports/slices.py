"""The output of `har-edge slice`: text for people, or one JSON object."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import numpy as np

from har_edge.cli.console import say
from har_edge.cli.reports.shard_shares import (
    ShardGroup,
    ShareView,
    group_lines,
    groups_of,
    share_lines,
    shares_of,
)
from har_edge.protocol.text import escape
from har_edge.runtime.verify import CutCheck
from har_edge.runtime.verify_split import SplitCheck
from har_edge.tflite.cuts import Cut
from har_edge.tflite.manifest import SliceManifest, TensorSpec
from har_edge.tflite.metadata import read_annotations
from har_edge.tflite.model import Model
from har_edge.tflite.schema import text
from har_edge.tflite.split.plan import SplitPlan
from har_edge.units import duration, plural, size

_NAME_WIDTH = 48  # converters write names of several hundred characters; --json has them in full


class PlannedSlice(msgspec.Struct, frozen=True):
    """One slice as written; `predicted_s` is None when nothing was measured.

    A slice with `steps` is a shard: it runs so many files one after the other, `file_bytes` in all, and computes
    `shares` of operators. One that computes them all alone is in a group of one device.
    """

    file: str
    start: int
    stop: int
    file_bytes: int
    predicted_s: float | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[str, ...] = ()
    steps: int = 0  # of a shard
    shares: tuple[ShareView, ...] = ()  # of a split


class Checked(msgspec.Struct, frozen=True):
    """The result of `--check`: the cuts that were compared, the refused ones, and the differences by cuts."""

    compared: int
    refused: int
    unequal: list[CutCheck]


class Report(msgspec.Struct):
    """Collects results; a field that was not requested stays None."""

    model: str
    sha256: str
    operators: int
    legal_cuts: int
    refused_cuts: int
    notes: list[str]
    cuts: list[Cut] | None = None
    check: Checked | None = None
    split_check: SplitCheck | None = None
    slices: list[PlannedSlice] | None = None
    out: str | None = None
    groups: tuple[ShardGroup, ...] | None = None  # of a split

    def say(self, note: str) -> None:
        """Add a remark for the reader."""
        self.notes.append(note)

    def add_cuts(self, cuts: Sequence[Cut]) -> None:
        """Add all cuts."""
        self.cuts = list(cuts)

    def add_checks(self, checks: Sequence[CutCheck], cuts: Sequence[Cut]) -> bool:
        """Add the results of the comparison; return whether all outputs were equal."""
        unequal = [check for check in checks if check.difference is not None]
        self.check = Checked(len(checks), sum(cut.refusal is not None for cut in cuts), unequal)
        return not unequal

    def add_split_check(self, check: SplitCheck) -> bool:
        """Add the comparison of a split; return whether all outputs were equal."""
        self.split_check = check
        return check.difference is None

    def add_groups(self, plans: Sequence[SplitPlan]) -> None:
        """Add the groups of devices of a split."""
        self.groups = groups_of(plans)

    def differs(self, chosen: Sequence[int]) -> bool:
        """Return whether the slices between these cuts differed from the whole model."""
        return self.check is not None and any(set(check.cuts) == set(chosen) for check in self.check.unequal)

    def add_slices(
        self,
        manifest: SliceManifest,
        folder: Path,
        predicted_s: Sequence[float],
        plans: Sequence[SplitPlan] = (),
    ) -> None:
        """Add the written slices; `predicted_s` is empty when nothing was measured, `plans` where nothing is split."""
        self.out = str(folder)
        shares = shares_of(plans) or [()] * len(manifest.slices)
        self.slices = [
            PlannedSlice(
                file=entry.file,
                start=entry.start,
                stop=entry.stop,
                file_bytes=sum((folder / name).stat().st_size for name in entry.files),
                predicted_s=predicted_s[number] if predicted_s else None,
                inputs=entry.inputs,
                outputs=entry.outputs,
                files=tuple(entry.files),
                steps=len(entry.steps),
                shares=shares[number],
            )
            for number, entry in enumerate(manifest.slices)
        ]

    def print(self, *, as_json: bool) -> None:
        """Print the report."""
        if as_json:
            print(msgspec.json.encode(self).decode())
            return
        say(
            f"{self.model}: {self.operators} operators, {self.legal_cuts} cuts, {self.refused_cuts} refused, "
            f"sha256 {self.sha256}"
        )
        for lines in (
            _cut_lines(self.cuts),
            _check_lines(self.check),
            _split_check_lines(self.split_check),
            [] if self.groups is None else group_lines(self.groups),
            _slice_lines(self.slices, self.out, {one.first for one in self.groups or () if one.devices == 1}),
        ):
            if lines:
                say("\n" + "\n".join(lines), 8)
        for note in self.notes:
            say(f"\nnote: {note}")


def start(model: Model, cuts: Sequence[Cut]) -> Report:
    """Return the report of a model, with a note on the parts that a cut leaves out."""
    refused = sum(cut.refusal is not None for cut in cuts)
    others = [text(s.signatureKey) for s in model.raw.signatureDefs if s.subgraphIndex != 0]
    notes = list(model.remarks)
    if problem := read_annotations(model).problem:
        notes.append(f"{model.name}: {problem}")
    if others:
        notes.append(f"slices hold the first graph only; the signatures {', '.join(others)} are left out")
    if lone := [str(cut.index) for cut in cuts if cut.refusal is None and not _takes_batches(cut)]:
        notes.append(
            f"at {len(lone)} cuts something crosses whose first dimension is no batch, so a message carries one window "
            f"(--batch 1): {', '.join(lone)}"
        )
    return Report(model.name, model.sha256, len(model.main.operators), len(cuts) - refused, refused, notes)


def _takes_batches(cut: Cut) -> bool:
    """Return whether all crossing tensors carry the batch; a fixed first dimension belongs to a model without one."""
    return all(item.tensor.batched for item in cut.crossing)


def _cut_lines(cuts: Sequence[Cut] | None) -> list[str]:
    if cuts is None:
        return []
    rows = [("cut", "before it", "after it", "bytes", "tensors that cross")]
    for cut in cuts:
        crossing = ", ".join(_tensor(item.tensor) for item in cut.crossing) or "none"
        what = crossing if cut.refusal is None else f"refused: {cut.refusal}"
        rows.append((str(cut.index), cut.before, cut.after, str(cut.bytes) if cut.refusal is None else "-", what))
    return _table(rows, right={0, 3})


def _check_lines(check: Checked | None) -> list[str]:
    if check is None:
        return []
    lines = [f"cuts {','.join(map(str, item.cuts)) or 'none'}: {item.difference}" for item in check.unequal]
    outcome = f"{len(check.unequal)} not equal" if check.unequal else "all equal, bit for bit"
    return [*lines, f"check: {check.compared} ways to cut compared with the whole model, {outcome}"]


def _split_check_lines(check: SplitCheck | None) -> list[str]:
    if check is None:
        return []
    said = check.difference or "equal, bit for bit"
    if check.error and check.difference is None:
        said = f"integers equal, floats within {check.error:.1e} of the largest value"
    without = f" and without each of {check.spared} stages" if check.spared else ""
    return [
        f"check: {check.stages} stages compared with the whole model in {check.runs} runs,",
        f"with messages in {check.orders} orders each{without}: {said}",
    ]


def _slice_lines(slices: Sequence[PlannedSlice] | None, out: str | None, alone: Collection[int]) -> list[str]:
    """Return the table of slices; those in `alone` belong to a split, and share their operators with no other."""
    if slices is None:
        return []
    timed = any(item.predicted_s is not None for item in slices)
    rows = [("slice", "operators", *(["predicted"] if timed else []), "size")]
    for number, item in enumerate(slices):
        start, stop = item.start, item.stop
        if item.shares:
            start, stop = item.shares[0].start, item.shares[-1].stop
        name = item.file if not item.steps else f"{'slice' if number in alone else 'shard'} {number}"
        predicted = "-" if item.predicted_s is None else duration(item.predicted_s)
        rows.append((name, f"[{start}, {stop})", *([predicted] if timed else []), size(item.file_bytes)))
    heading, *table = _table(rows, right=set(range(2, len(rows[0]))))
    lines = [heading]
    for number, (line, item) in enumerate(zip(table, slices, strict=True)):
        lines.append(line)
        if item.steps:
            lines += [f"    {text}" for text in (() if number in alone else share_lines(item.shares))]
            lines.append(f"    runs {plural(item.steps, 'step')} a window")
            lines += [
                f"    {what} {_pieces(specs)}" for what, specs in (("takes", item.inputs), ("gives", item.outputs))
            ]
            continue
        lines += [f"    takes {_tensor(tensor)}" for tensor in item.inputs]
        lines += [f"    gives {_tensor(tensor)}" for tensor in item.outputs]
    slowest = max((item.predicted_s or 0.0 for item in slices), default=0.0)
    last = [f"slowest slice: {duration(slowest)}, at most {1 / slowest:.0f} runs/s"] if slowest else []
    return [*lines, *last, f"written to {out}"]


def _pieces(specs: Sequence[TensorSpec]) -> str:
    """Return how many regions there are of how many tensors, with their bytes, and how they travel if packed."""
    total = sum(math.prod(abs(n) for n in spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs)
    tensors = len({spec.of for spec in specs})
    found = f"{plural(len(specs), 'region')} of {plural(tensors, 'tensor')}, {size(total)}"
    # The scale and zero point of q8 differ from tensor to tensor.
    packed = Counter(re.sub(":[^+]*", "", spec.packing) for spec in specs)
    if set(packed) == {""}:
        return found
    return f"{found} unpacked: " + ", ".join(f"{n} as {name or 'they are'}" for name, n in sorted(packed.items())[::-1])


def _tensor(tensor: TensorSpec) -> str:
    name = escape(tensor.name)
    name = name if len(name) <= _NAME_WIDTH else "…" + name[1 - _NAME_WIDTH :]
    packed = f" as {tensor.packing}" if tensor.packing else ""
    return f"{name} {tensor.dtype}[{','.join('?' if n == -1 else str(n) for n in tensor.shape)}]{packed}"


def _table(rows: Sequence[Sequence[str]], right: set[int]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
