"""A watchdog for one worker: a run of its slice that takes far longer than it should. It reads no clock.

Only time counts in which somebody looked. So a process that was suspended, or got no processor, blames no stage for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from har_edge.timing import HEARTBEAT_S, STUCK_END_S, STUCK_RUN_S

# How many times as long as usual a run may take; and the least time for the first one, which is known by forecast only.
RUN_FACTOR, FIRST_RUN_S = 8.0, 10.0


@dataclass(slots=True)
class RunWatchdog:
    """Watches the runs of a worker, each told from others by when it began.

    `predicted_s` is how long a window takes by the plan. `run_s` is for how long the present run was seen to go on.
    """

    predicted_s: float = 0.0
    run_s: float = 0.0
    _began: float = 0.0
    _limit_s: float = 0.0
    _looked_at: float = float("-inf")

    def look(self, began: float, usual_s: float, batch: int, now: float) -> None:
        """Look at the run that began at `began` (0: none is going on) with so many windows.

        `usual_s` is how long a window took on average, 0 where none was run.
        """
        passed_s = min(HEARTBEAT_S, max(0.0, now - self._looked_at))
        goes_on = began != 0.0 and began == self._began
        self.run_s = self.run_s + passed_s if goes_on else 0.0
        self._began, self._looked_at = began, now
        least_s = STUCK_RUN_S if usual_s else FIRST_RUN_S
        self._limit_s = max(least_s, RUN_FACTOR * max(self.predicted_s, usual_s) * max(1, batch))

    @property
    def stuck(self) -> bool:
        """Whether the present run has taken far too long."""
        return self._began != 0.0 and self.run_s > self._limit_s

    @property
    def unending(self) -> bool:
        """Whether it has gone on after that for so long that it will not end."""
        return self.stuck and self.run_s > self._limit_s + STUCK_END_S
