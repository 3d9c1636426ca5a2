"""Dynamic programming over places to cut and the devices of each class that are left, bounded by dual prices.

The search visits the nodes in order. A state is a node and the devices that are left; of two ways to one state the
quicker stays. It drops states from which the prices allow no plan, and devices that a weaker one can replace.

The search is exact as long as no node has more than `width` states. Beyond that it keeps the most promising ones, which
makes it a beam search, and the result says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from har_edge.planner.dual_prices import DualPrices
from har_edge.planner.problem import FeasibleEdges, Floats, Ints, StageAssignment

_SLACK = 1e-9
_SEED = 0
_GROUPS = 16  # groups of replicas looked at for one state and stage
Left = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BeamResult:
    """The best plan below the target, None where none was found; `exact` says that no state was dropped for want of
    room.
    """

    steps: tuple[StageAssignment, ...] | None
    exact: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Beam:
    """States of one node: devices left, seconds spent, and the origin of each state (its node, row and column)."""

    left: NDArray[np.int16]
    spent: Floats
    node: Ints
    row: Ints
    column: Ints


class BeamSearch:
    """Searches the plan with the least latency below `target_s`, or with `first` any plan at all.

    With `first`, latency must be zero in the edges. Then the search may pass over a device for a weaker one, since the
    stronger device can do the weaker one's work in any plan.
    """

    def __init__(self, options: FeasibleEdges, prices: DualPrices, target_s: float, width: int, *, first: bool) -> None:
        self._options, self._problem, self._prices = options, options.problem, prices
        self._first, self._width, self._target, self._exact = first, width, target_s, True
        self._price = prices.each + prices.any
        self._cost = options.latency_s + self._price[:, None] * options.need
        n = len(options.need)
        self._stronger = _stronger(options.need) if first else np.zeros((n, n), np.bool_)
        self._bars = [frozenset(np.flatnonzero(self._stronger[:, k]).tolist()) for k in range(n)]
        self._known: dict[tuple[Left, Left], list[Left]] = {}
        weakness = -options.need.sum(axis=1, dtype=np.int64) if first else self._price
        self._order = np.argsort(weakness, kind="stable").tolist()  # weak before strong, or cheap before dear
        self._hash = np.random.default_rng(_SEED).integers(1, 1 << 62, n)
        self._coming: list[list[_Beam]] = [[] for _ in range(self._problem.nodes)]
        self._kept: dict[int, _Beam] = {}

    def run(self) -> BeamResult:
        """Run the search."""
        zero = np.zeros(1, np.int64)
        counts = np.array([self._problem.counts], np.int16)
        self._coming[0].append(_Beam(counts, np.zeros(1), zero, zero, zero))
        last = self._problem.nodes - 1
        for node in range(last):
            if self._coming[node]:
                pool = self._keep(node, self._width)
                self._kept[node] = pool
                if len(pool.spent):
                    self._expand(node, pool)
        if not self._coming[last]:
            return BeamResult(None, self._exact)
        ends = self._keep(last, self._width)
        enough = self._used(ends.left) >= self._problem.least
        below = enough & ((ends.spent < self._target) | self._first)
        if not below.any():
            return BeamResult(None, self._exact)
        return BeamResult(
            self._trace(ends, int(np.where(below, ends.spent, np.inf).argmin())), self._exact or self._first
        )

    def _used(self, left: NDArray[np.int16]) -> Ints:
        return np.asarray(sum(self._problem.counts) - left.sum(axis=1, dtype=np.int64))

    def _slack(self, left: NDArray[np.int16], spent: Floats) -> Floats:
        """Return the most that the way to the end may cost, at the dual prices."""
        worth = left @ self._prices.each + self._prices.any * (self._options.devices - self._used(left))
        if self._first:
            return np.asarray(worth + _SLACK * (1 + worth))
        return np.asarray(worth + (self._target - spent) * (1 - _SLACK))

    def _keep(self, node: int, width: int) -> _Beam:
        """Return the states of a node, each once, at most `width` of them."""
        parts, self._coming[node] = self._coming[node], []
        left = np.concatenate([part.left for part in parts])
        spent = np.concatenate([part.spent for part in parts])
        slack = self._slack(left, spent) - self._prices.to_end[node]
        # Quickest first within each state, then the first of each.
        order = np.lexsort((spent, left @ self._hash))
        keys = (left @ self._hash)[order]
        order = order[np.append(True, keys[1:] != keys[:-1])]
        order = order[slack[order] >= 0]
        if len(order) > width:
            self._exact = False
            order = order[np.argsort(-slack[order], kind="stable")[:width]]
        columns = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("node", "row", "column"))
        return _Beam(left[order], spent[order], *columns)

    def _expand(self, node: int, pool: _Beam) -> None:
        """Extend every state of a node along every edge, with every class that can run it."""
        options = self._options
        start, stop = options.first[node], options.first[node + 1]
        if start == stop:
            return
        need, heads = options.need[:, start:stop], options.heads[start:stop]
        slack = self._slack(pool.left, pool.spent)
        allowed = options.devices - self._used(pool.left)
        reach = self._cost[:, start:stop] + self._prices.to_end[heads]
        able = (pool.left[:, :, None] >= need) & (allowed[:, None, None] >= need) & (reach <= slack[:, None, None])
        if self._first:
            single = (need == 1).any(axis=0)
            alone = (able[:, :, single] & (need[:, single] == 1)).astype(np.float32)
            barred = (np.matmul(self._stronger.astype(np.float32), alone) > 0) & (need[:, single] == 1)
            able[:, :, single] &= ~barred
        rows, classes, columns = np.nonzero(able)
        left = pool.left[rows]
        left[np.arange(len(rows)), classes] -= need[classes, columns]
        spent = pool.spent[rows] + options.latency_s[classes, start + columns]
        self._send(node, rows, start + columns, left, spent)
        if options.shareable[start:stop].any() and (len(self._order) > 1 or self._problem.least > 1):
            self._expand_groups(node, pool, slack, reach)

    def _expand_groups(self, node: int, pool: _Beam, slack: Floats, reach: Floats) -> None:
        """Extend states with groups of replicas of several classes."""
        options, start, stop = self._options, self._options.first[node], self._options.first[node + 1]
        room = np.where(options.shareable[start:stop], slack[:, None] - reach.min(axis=0), -1.0)
        pairs = np.argsort(-room, axis=None, kind="stable")[: np.count_nonzero(room >= 0)]
        found: list[tuple[int, int, Left]] = []
        most = self._width
        for pair in pairs.tolist():
            row, j = divmod(pair, stop - start)
            found += [(row, start + j, group) for group in self._groups(start + j, tuple(pool.left[row].tolist()))]
            if len(found) >= most:
                self._exact = False
                break
        if not found:
            return
        rows, columns = np.array([row for row, _, _ in found]), np.array([column for _, column, _ in found])
        groups = np.array([group for _, _, group in found], np.int16)
        latency = np.where(groups > 0, options.latency_s[:, columns].T, 0.0).max(axis=1)
        self._send(node, rows, columns, pool.left[rows] - groups, pool.spent[rows] + latency)

    def _groups(self, column: int, left: Left) -> list[Left]:
        """Return the groups of replicas that can share a stage.

        Each group needs all its members, unless a plan must have many devices. If two groups differ in one device, only
        the one with the weaker device is returned.
        """
        need = tuple(self._options.need[:, column].tolist())
        known = self._known.get((need, left))
        if known is None:
            known = self._known[need, left] = list(islice(self._fill_all(need, left), _GROUPS + 1))
        if len(known) > _GROUPS:
            self._exact = False
        return known[:_GROUPS]

    def _fill_all(self, need: Left, left: Left) -> Iterator[Left]:
        """Yield the groups that `_groups` returns, small ones first."""
        padded = self._problem.least > 1
        allowed = self._options.devices - sum(self._problem.counts) + sum(left)
        top = min(self._problem.replicas, sum(left), allowed)
        sizes = set(range(2, top + 1)) if padded else {r for r, n in zip(need, left, strict=True) if n and 1 < r <= top}
        for size in sorted(sizes):
            able = [k for k in self._order if left[k] and need[k] <= size]
            if sum(left[k] for k in able) >= size:
                yield from self._fill(able, [need[k] == size or padded for k in able], left, size)

    def _fill(self, able: list[int], tight: list[bool], left: Left, size: int) -> Iterator[Left]:
        """Yield the groups of `size` devices of these classes with at least one tight member."""
        rest = [sum(left[k] for k in able[i:]) for i in range(len(able) + 1)]
        bound = [any(tight[i:]) for i in range(len(able) + 1)]
        group = [0] * len(left)

        def choose(i: int, wanted: int, is_tight: bool, barred: frozenset[int]) -> Iterator[Left]:
            if wanted == 0:
                if is_tight:
                    yield tuple(group)
                return
            if rest[i] < wanted or not (is_tight or bound[i]):
                return
            k = able[i]
            for take in range(0 if k in barred else min(left[k], wanted), -1, -1):
                group[k] = take
                closed = barred if take == left[k] else barred | self._bars[k]
                yield from choose(i + 1, wanted - take, is_tight or (take > 0 and tight[i]), closed)
            group[k] = 0

        yield from choose(0, size, False, frozenset())

    def _send(self, node: int, rows: Ints, columns: Ints, left: NDArray[np.int16], spent: Floats) -> None:
        """Store states at the heads of their edges."""
        if not len(columns):
            return
        heads = self._options.heads[columns]
        order = np.argsort(heads, kind="stable")
        heads, rows, columns, left, spent = heads[order], rows[order], columns[order], left[order], spent[order]
        edges = np.flatnonzero(np.append(True, heads[1:] != heads[:-1])).tolist()
        for a, b in zip(edges, [*edges[1:], len(heads)], strict=True):
            part = _Beam(left[a:b], spent[a:b], np.full(b - a, node), rows[a:b], columns[a:b])
            self._coming[int(heads[a])].append(part)

    def _trace(self, ends: _Beam, row: int) -> tuple[StageAssignment, ...]:
        """Return the steps that led to a state."""
        steps: list[StageAssignment] = []
        pool, node = ends, self._problem.nodes - 1
        while node > 0:
            node, before = int(pool.node[row]), int(pool.row[row])
            earlier = self._kept[node]
            devices = tuple((earlier.left[before] - pool.left[row]).tolist())
            steps.append(StageAssignment(int(self._options.edges[pool.column[row]]), devices))
            pool, row = earlier, before
        return tuple(reversed(steps))


def _stronger(need: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return whether class a can do what class b can with no more replicas; of equal classes, the later is stronger."""
    n = len(need)
    covers = np.array([(need[a] <= need).all(axis=1) for a in range(n)]).reshape(n, n)
    return np.asarray(covers & (~covers.T | np.tri(n, k=-1, dtype=np.bool_)))
