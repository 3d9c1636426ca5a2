"""The counters of a node, so that nothing is lost silently."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counts since the start of a node.

    `rejected` are unusable messages; `given_up` windows whose parts never came; `carried_on` windows that were run
    without a source, `decoded` those with a parity for a share, and `late` those whose part came later; `leftover`
    windows that came again in part only, since their other parts had been settled before a connection or a process was
    lost; `unheard` and `refused` attempts
    to publish that will be made again; `too_large` messages given up, since the broker takes none of that size;
    `unanswered` windows a sensor no longer awaits a result of; `foreign` windows that were for stages of another epoch;
    `shelved` windows that a deployed stage released but keeps, in case the part they lack comes yet; `dropped` windows
    of a device that never left, since too many waited; `resent` windows that a sensor sent again; `incomplete` windows
    that it no longer awaits, since other sensors of the stream have not sent them; `quantised` values that entered what
    takes them by a fixed scale, and `saturated` those of them beyond its range; `clipped` values of activations that
    lay beyond what their packing (float16, int8) carries; `shed` messages of a stream that sent more than its share,
    which a deployed stage left to its sensors to send again.
    """

    windows: int = 0
    messages: int = 0
    rejected: int = 0
    given_up: int = 0
    carried_on: int = 0
    late: int = 0
    leftover: int = 0
    duplicates: int = 0
    unheard: int = 0
    refused: int = 0
    too_large: int = 0
    unanswered: int = 0
    foreign: int = 0
    shelved: int = 0
    dropped: int = 0
    resent: int = 0
    incomplete: int = 0
    quantised: int = 0
    saturated: int = 0
    clipped: int = 0
    decoded: int = 0
    shed: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counters by name, for the status message."""
        return dataclasses.asdict(self)
