"""The check of signed plans, by the statuses of nodes and coordinator: who refuses one, who follows any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from har_edge.monitor.broker_checks import Finding, Verdict, passed
from har_edge.protocol.status import NodeStatus
from har_edge.protocol.text import listed, printable
from har_edge.protocol.topics import Topics
from har_edge.trust.keys import short
from har_edge.trust.verdict import mend_of


def check_signatures(
    name: str, nodes: Mapping[str, NodeStatus], coordinators: Mapping[str, NodeStatus], topics: Topics
) -> Iterator[Finding]:
    """See whether nodes refuse plans, and whether all of them verify those of a coordinator that signs."""
    refusing = {node: one.refused for node, one in nodes.items() if one.refused is not None}
    if refusing:
        texts = [f"{node} refuses a plan: {printable(one.reason, 200)}" for node, one in sorted(refusing.items())[:4]]
        yield Finding(name, Verdict.FAIL, "; ".join(texts), mend_of(next(iter(refusing.values())).code))
        return
    signers = {one.signer for one in coordinators.values() if one.signer}
    unverified = sorted(node for node, one in nodes.items() if not one.signer)
    if signers and unverified:
        said = f"plans are signed, but {listed(unverified)} follow unsigned ones too"
        key = printable(sorted(signers)[0], 64)
        yield Finding(name, Verdict.NOTE, said, f"start them again as `har-edge node --trust ed25519:{key} ...`")
    elif signers:
        yield passed(name, f"plans are signed by {', '.join(short(printable(one, 64)) for one in sorted(signers))}")
    else:
        yield passed(
            name, f"plans are unsigned: nodes follow whoever may publish at {topics.plan()} (docs/how-to/security.md)"
        )
