"""Show the stages and shared layers of a plan: a drawing for the terminal, and one in Mermaid for a page."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from string import ascii_lowercase

from har_edge.planner.plan import Plan
from har_edge.planner.slice_graph import RESULT_BYTES
from har_edge.planner.split_costs import SOURCE, PlannedPiece
from har_edge.planner.split_plan import SplitCandidate
from har_edge.tflite.split.plan import Block, SplitMethod
from har_edge.units import size

_BAR = 40  # columns of a block in the drawing
_LETTERS = ascii_lowercase
_HOW = {SplitMethod.ROWS: "rows", SplitMethod.OUTPUT: "channels", SplitMethod.WHOLE: "whole"}


def draw_blocks(candidate: SplitCandidate) -> list[str]:
    """Return a line for each block, in which each device has a letter as often as its share, and the bytes after it."""
    costs = candidate.costs
    used = [k for k in range(costs.n) if any(_has_share(block, k) for block in candidate.blocks)]
    letters = {k: _LETTERS[i % len(_LETTERS)] for i, k in enumerate(used)}
    lines = [f"{'operators':<13} {'split by':<9} {'who computes':<{_BAR}} {'travels':>9}"]
    for block, after in zip(candidate.blocks, (*candidate.blocks[1:], None), strict=True):
        pieces = costs.transfer(block, after, candidate.border_first).pieces
        sent = sum(piece.bytes for piece in pieces) if after else RESULT_BYTES
        bar = _bar(block, letters)
        how = _HOW[SplitMethod.WHOLE] if _is_alone(block) else _HOW.get(block.method, block.method.value)
        lines.append(f"{f'[{block.start}, {block.stop})':<13} {how:<9} {bar:<{_BAR}} {size(sent):>9}")
    names = ", ".join(f"{letters[k]} {costs.devices[k].name}" for k in used)
    return [*lines, names]


def _has_share(block: Block, device: int) -> bool:
    low, high = block.share(device)
    return low < high


def _is_alone(block: Block) -> bool:
    """Return whether one device computes all of a block."""
    return sum(low < high for low, high in pairwise(block.bounds)) == 1


def _bar(block: Block, letters: dict[int, str]) -> str:
    total = block.bounds[-1]
    ends = [round(bound * _BAR / total) for bound in block.bounds]
    return "".join(letters.get(k, "") * (high - low) for k, (low, high) in enumerate(pairwise(ends)))


def draw_mermaid(candidate: SplitCandidate) -> str:
    """Return the plan as a Mermaid flowchart: a node for each share of a block, an arrow for what travels."""
    return "\n".join(["flowchart TD", *_nodes(candidate), *_arrows(candidate), ""])


def draw_stages(plan: Plan) -> str:
    """Return a plan of whole layers as a Mermaid flowchart: a node for each stage, an arrow for what it sends."""
    lines = ["flowchart TD", '    source(["sensors"])']
    for number, stage in enumerate(plan.stages):
        homes = "<br/>".join(map(_quoted, stage.devices))
        lines.append(f'    n{number}["operators {stage.start} to {stage.stop - 1}<br/>{homes}"]')
    lines.append('    result(["result"])')
    lines.append(f"    source -->|{size(plan.stages[0].received_bytes)}| n0")
    for number, stage in enumerate(plan.stages):
        after = f"n{number + 1}" if number + 1 < len(plan.stages) else "result"
        lines.append(f"    n{number} -->|{size(stage.sent_bytes)}| {after}")
    return "\n".join([*lines, ""])


def _nodes(candidate: SplitCandidate) -> Iterator[str]:
    yield '    source(["sensors"])'
    for number, block in enumerate(candidate.blocks):
        how = SplitMethod.WHOLE if _is_alone(block) else block.method
        yield f'    subgraph block{number}["operators {block.start} to {block.stop - 1}, {how.value}"]'
        for k, device in enumerate(candidate.costs.devices):
            if _has_share(block, k):
                low, high = block.share(k)
                share = "" if how is SplitMethod.WHOLE else f"<br/>{low} to {high - 1}"
                yield f'        n{number}_{k}["{_quoted(device.name)}{share}"]'
        yield "    end"
    yield '    result(["result"])'


def _arrows(candidate: SplitCandidate) -> Iterator[str]:
    blocks, costs = candidate.blocks, candidate.costs
    for number, (block, after) in enumerate(pairwise((None, *blocks))):
        for piece in costs.transfer(block, after, candidate.border_first).pieces:
            for taker in piece.takers:
                yield f"    {_maker(piece, number)} -->|{size(piece.bytes)}| n{number}_{taker}"
        for k in range(costs.n):
            if block is not None and after is not None and _has_share(block, k) and _has_share(after, k):
                yield f"    n{number - 1}_{k} -.-> n{number}_{k}"
    last = next(k for k in range(costs.n) if _has_share(blocks[-1], k))
    yield f"    n{len(blocks) - 1}_{last} --> result"


def _maker(piece: PlannedPiece, number: int) -> str:
    return "source" if piece.sender == SOURCE else f"n{number - 1}_{piece.sender}"


def _quoted(name: str) -> str:
    return name.replace('"', "#quot;")
