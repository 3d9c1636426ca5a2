"""Nodes and sensors that went without leaving: killed, cut off or hung. Who said goodbye is not missing."""

from __future__ import annotations

from collections.abc import Collection

from har_edge.monitor.broker_checks import Finding, Verdict, passed
from har_edge.protocol.text import listed
from har_edge.timing import SILENT_S
from har_edge.units import duration

_KILLED = "gone without leaving (killed, or the device is off)"


def missing_nodes(
    name: str, silent: Collection[str], lost: Collection[str], alive: int, asked: int, clear_command: str
) -> Finding:
    """Return the finding on nodes that say they live but send no heartbeats (`silent`), and on those reported `lost`.

    `alive` nodes are left; `asked` is how many the plan that was asked for can use, 0 where that is open.
    """
    if not silent and not lost:
        return passed(name, "none: who has gone has left on purpose")
    said, remedies = list[str](), list[str]()
    if silent:
        said.append(f"{listed(sorted(silent))}: no beat for {duration(SILENT_S)} or longer, so hung or cut off")
        remedies.append("end its process if it hangs (its log may say why), and start it again")
    if lost:
        said.append(f"{listed(sorted(lost))}: {_KILLED}")
        remedies.append("start it again on its device")
        remedies.append(f"or, where it is gone for good: `{clear_command}`")
    left = f"{alive} node{' is' if alive == 1 else 's are'} left"
    said.append(left + (f", fewer than the {asked} that were asked for" if alive < asked else ""))
    return Finding(name, Verdict.FAIL, "; ".join(said), "; ".join(dict.fromkeys(remedies)))


def broken_off(name: str, alive: Collection[str], lost: Collection[str], clear_command: str) -> Finding:
    """Return the note on sensors that went without leaving."""
    others = f"alive: {listed(sorted(alive))}" if alive else "no other is connected"
    said = f"{listed(sorted(lost))}: {_KILLED}; {others}"
    return Finding(name, Verdict.NOTE, said, f"start them again, or forget them: `{clear_command}`")
