"""How a loop ends: on a signal, or when another thread asks it to."""

from __future__ import annotations

import signal
from types import FrameType

POLL_S = 0.2  # how long a loop waits for messages before it looks at anything else


class Stop:
    """Set by SIGTERM or SIGINT; a loop looks at it between two steps."""

    def __init__(self) -> None:
        self.asked = False
        self.signal: int = signal.SIGINT  # what asked

    def catch_signals(self) -> Stop:
        """Stop cleanly on the first signal, at once on a second."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self.signal = True, number
