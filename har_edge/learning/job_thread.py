"""The life of a worker's thread on a node: it trains until the job ends, and tries again after a failure."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from typing import Protocol

from har_edge.errors import HarEdgeError
from har_edge.mqtt.bus import TakenOver

_log = logging.getLogger(__name__)
_BACKOFF_S, _BACKOFF_CAP_S = 1.0, 30.0
_LOOK_S = 0.2


class Ending(Protocol):
    """The interface that a new thread needs of the one before it."""

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended."""


class JobThread(ABC):
    """A thread that trains for one run; `name` is that of the thread."""

    def __init__(self, run: str, name: str) -> None:
        self._run_name = run
        self._stop, self._failures = threading.Event(), 0
        self._after: Ending | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def start(self, after: Ending | None = None) -> None:
        """Begin, as soon as another one of the same run has ended: both have the same session."""
        self._after = after
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended."""
        self._thread.join(timeout_s)

    @abstractmethod
    def _train(self) -> None:
        """Train until the job ends, or `_stop` is set; `_failures` is 0 again once it works."""

    def _run(self) -> None:
        while self._after is not None and self._after.alive and not self._stop.is_set():
            self._after.join(_LOOK_S)
        self._after = None
        while not self._stop.is_set():
            try:
                self._train()
                return
            except TakenOver:
                _log.warning("training %s: a younger node of this name has taken over", self._run_name)
                return
            except (HarEdgeError, OSError) as error:
                self._fail(str(error))
            except Exception as error:  # a training must not end the node
                _log.exception("training %s failed", self._run_name)
                self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, text: str) -> None:
        delay_s = min(_BACKOFF_CAP_S, _BACKOFF_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        _log.warning("training %s failed, trying again in %g s: %s", self._run_name, delay_s, text)
        self._stop.wait(delay_s)
