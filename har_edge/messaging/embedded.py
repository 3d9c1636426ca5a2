"""amqtt inside this process: a broker for machines without Mosquitto. MQTT 3.1.1 only, and not fast."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import logging
import threading
from dataclasses import dataclass, field
from typing import Any

from har_edge.errors import BrokerError
from har_edge.messaging.address import Address
from har_edge.messaging.broker import check_free, free_port, reachable

_START_TIMEOUT_S = 10.0


def is_installed() -> bool:
    """Tell whether amqtt is there; it comes with `pip install har-edge[broker]`."""
    return importlib.util.find_spec("amqtt") is not None


@dataclass(slots=True)
class EmbeddedBroker:
    """amqtt in a thread of this process; `stop` ends it."""

    address: Address
    description: str = field(
        default_factory=lambda: f"amqtt {importlib.metadata.version('amqtt')} (embedded, MQTT 3.1.1 only)"
    )
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _thread: threading.Thread | None = None
    _broker: Any = None

    def check(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            raise BrokerError("amqtt ended by itself; start the broker again")

    def stop(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._broker.shutdown(), self._loop).result(_START_TIMEOUT_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_START_TIMEOUT_S)

    def start(self) -> None:
        """Start serving; raises BrokerError when amqtt does not come up."""
        from amqtt.broker import Broker

        logging.getLogger("amqtt").setLevel(logging.ERROR)
        logging.getLogger("transitions").setLevel(logging.ERROR)
        settings = {
            "listeners": {"default": {"type": "tcp", "bind": f"{self.address.host}:{self.address.port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        ready = threading.Event()

        async def begin() -> None:
            self._broker = Broker(settings)
            await self._broker.start()
            ready.set()

        def serve() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.create_task(begin())
            self._loop.run_forever()

        self._thread = threading.Thread(target=serve, name="amqtt", daemon=True)
        self._thread.start()
        if not ready.wait(_START_TIMEOUT_S):
            raise BrokerError(f"amqtt did not start at {self.address.url} within {_START_TIMEOUT_S:.0f} s")


def start_embedded(*, host: str = "127.0.0.1", port: int = 0) -> EmbeddedBroker:
    """Run amqtt in this process; `port` 0 takes a free one. Raises BrokerError when it is not installed."""
    if not is_installed():
        raise BrokerError(
            "no broker: neither Mosquitto nor amqtt is installed; `apt-get install mosquitto`, "
            "or `pip install 'har-edge[broker]'`"
        )
    port = port or free_port(host)
    check_free(host, port)
    broker = EmbeddedBroker(Address(reachable(host), port))
    broker.start()
    return broker
