"""The nodes that refuse the plans of this coordinator, by what their statuses say, and how that is mended."""

from __future__ import annotations

from collections.abc import Sequence

from har_edge.coordinator.membership import MAX_MEMBERS
from har_edge.protocol.status import ALIVE, NodeStatus, PlanRefusal
from har_edge.protocol.text import printable
from har_edge.trust.verdict import Flaw, mend_of


class Refusals:
    """The last refusal of each node that has accepted nothing since."""

    def __init__(self) -> None:
        self._by_node: dict[str, PlanRefusal] = {}

    def note(self, node: str, status: NodeStatus | None, published: Sequence[str]) -> str:
        """Take what a node says; return what a person should read.

        `published` are the hashes of our plans, the last one last. Only a refusal of that one counts: an older one may
        have come from a broker that lost its latest state.
        """
        refusal = status.refused if status is not None and status.state in ALIVE else None
        before = self._by_node.pop(node, None)
        if refusal is None or refusal.plan not in published[-1:]:
            return f"node {node} follows the plan again" if before is not None and status is not None else ""
        if len(self._by_node) >= MAX_MEMBERS:
            return ""
        self._by_node[node] = refusal
        if before is not None and before.code == refusal.code:
            return ""
        return f"node {node} refuses this plan: {printable(refusal.reason, 300)}; {mend_of(refusal.code)}"

    @property
    def detail(self) -> str:
        """The text for the status of the coordinator; empty where nobody refuses."""
        named = [f"{node} ({printable(one.code, 20)})" for node, one in sorted(self._by_node.items())]
        more = f" and {len(named) - 4} more" if len(named) > 4 else ""
        return f"the plan is refused by {', '.join(named[:4])}{more}" if named else ""

    def newest(self, node: str) -> int | None:
        """Return the number of the signature that a node has accepted where ours is older; None where it is not."""
        refusal = self._by_node.get(node)
        return refusal.serial if refusal is not None and refusal.code == Flaw.ROLLBACK.value else None
