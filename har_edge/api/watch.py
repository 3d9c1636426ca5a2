"""The results of a pipeline as an iterator, for loops and for asyncio."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

from har_edge.api.arguments import check_count, check_number, python_words
from har_edge.api.target import Target, find_target
from har_edge.errors import BrokerError, NodeError
from har_edge.mqtt.bus import Session
from har_edge.protocol.results import Result
from har_edge.runtime.sink import Sink

if TYPE_CHECKING:
    from har_edge.config.pipeline import Pipeline
    from har_edge.mqtt.address import Address
    from har_edge.mqtt.bus import Bus

_log = logging.getLogger(__name__)
POLL_S = 0.1
CONNECT_TIMEOUT_S = 10.0
# How long the broker keeps results for a watcher that lost the connection.
SESSION_S = 300


class ResultWatcher:
    """The results of a pipeline, each window once, from the moment this was made; make it with `watch`.

    It is an iterator, an asynchronous iterator, and a context manager of either kind. Use one of the two kinds: it has
    one connection, which one thread uses at a time.
    """

    def __init__(self, target: Target, *, limit: int | None = None, timeout_s: float | None = None) -> None:
        """Connect and subscribe; return when results would be heard. Raises BrokerError."""
        self._sink, self._limit, self._timeout_s = Sink(), limit, timeout_s
        self._came: deque[Result] = deque()
        self._given = 0
        self._closed = False
        self._executor: ThreadPoolExecutor | None = None
        topics = target.topics
        name = f"{topics.base}-{topics.pipeline}-watch-{secrets.token_hex(4)}"
        self._where = f"pipeline {topics.pipeline!r} at {target.address.url}"
        self._bus: Bus = target.connect(Session(name, expiry_s=SESSION_S, transient=True, receive_max=4096))
        self._bus.subscribe([topics.result("+")])
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while not self._bus.connected:
            self._poll()
            if time.monotonic() > deadline:
                self._bus.close(forget=True)
                raise BrokerError(f"no connection to {self._where} within {CONNECT_TIMEOUT_S:.0f} s; is it running?")
        self._heard_at = time.monotonic()

    def __iter__(self) -> ResultWatcher:
        return self

    def __next__(self) -> Result:
        while True:
            if (result := self._take()) is not None:
                return result
            if self._is_over():
                self.close()
                raise StopIteration
            self._poll()

    def __aiter__(self) -> ResultWatcher:
        return self

    async def __anext__(self) -> Result:
        while True:
            if (result := self._take()) is not None:
                return result
            if self._is_over():
                await self.aclose()
                raise StopAsyncIteration
            # Results that come while nobody waits any more, since the task was cancelled, stay for the next call.
            await asyncio.get_running_loop().run_in_executor(self._thread(), self._poll)

    def close(self) -> None:
        """Disconnect; closing twice does nothing more."""
        if self._closed:
            return
        self._closed = True
        if self._executor is not None:
            self._executor.shutdown(wait=True)  # a poll that was cancelled still uses the connection
        self._bus.close(forget=True)

    async def aclose(self) -> None:
        """Disconnect, without holding up the event loop."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def __enter__(self) -> ResultWatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> ResultWatcher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _take(self) -> Result | None:
        if not self._came or self._closed or self._given == self._limit:
            return None
        self._given += 1
        return self._came.popleft()

    def _is_over(self) -> bool:
        """Return whether there will be no more; raises NodeError when nothing came for `timeout_s`."""
        if self._closed or self._given == self._limit:
            return True
        if self._timeout_s is not None and time.monotonic() - self._heard_at > self._timeout_s:
            raise NodeError(
                f"no result of {self._where} for {self._timeout_s:g} s, after {self._given}; expected stages that run "
                "and a sensor that sends: see `har-edge status`"
            )
        return False

    def _poll(self) -> None:
        for delivery in self._bus.poll(POLL_S):
            self._bus.acknowledge(delivery)
            self._came.extend(self._sink.handle(delivery))
            self._heard_at = time.monotonic()

    def _thread(self) -> ThreadPoolExecutor:
        # One worker: calls that overlap, since one was cancelled, follow each other.
        self._executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix="har-edge-watch")
        return self._executor


@python_words()
def watch(
    folder: str | os.PathLike[str] | Pipeline | None = None,
    *,
    pipeline: str | None = None,
    broker: str | Address | None = None,
    limit: int | None = None,
    timeout_s: float | None = None,
) -> ResultWatcher:
    """Return the results of a pipeline as they come: `for result in ...`, or `async for result in ...`.

    Args:
        folder: the folder that `split` wrote, or what it returned; or
        pipeline: the name of a pipeline that a coordinator deploys.
        broker: `mqtt[s]://HOST[:PORT]`; by default HAR_EDGE_BROKER, then what the pipeline file says.
        limit: end after so many results.
        timeout_s: raise NodeError when no result comes for so many seconds; by default it waits for ever.

    Returns:
        An iterator over `Result`: `.label` and `.confidence` of window `.seq` of `.stream`. Results that were made
        before this call are not among them.

    Raises ConfigError for a pipeline or broker that cannot be, BrokerError where the broker cannot be reached.

    >>> import har_edge
    >>> with har_edge.LocalCluster("int8", cuts=[9]) as cluster:
    ...     with har_edge.watch(cluster.pipeline, broker=cluster.broker, limit=2) as results:
    ...         cluster.replay("subject7", windows=2)
    ...         sorted(result.seq for result in results)
    [0, 1]
    """
    check_count("limit", limit)
    check_number("timeout_s", timeout_s)
    return ResultWatcher(find_target(folder, pipeline, broker), limit=limit, timeout_s=timeout_s)
