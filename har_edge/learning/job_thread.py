"""The life of a worker's thread on a node: it trains until the job ends, and tries again after a failure."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod

from har_edge.errors import HarEdgeError
from har_edge.mqtt.bus import TakenOver

_log = logging.getLogger(__name__)
_BACKOFF_S, _BACKOFF_CAP_S = 1.0, 30.0


class JobThread(ABC):
    """A thread that trains for one run; `name` is that of the thread."""

    def __init__(self, run: str, name: str) -> None:
        self._run_name = run
        self._stop, self._failures = threading.Event(), 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
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
