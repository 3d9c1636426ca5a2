"""Load what a deployment gives a sensor: its files from the broker, and the reducers made from them."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Sequence

import msgspec

from har_edge.config.pipeline import Pipeline
from har_edge.config.pipeline_config import BrokerConfig
from har_edge.errors import NodeError
from har_edge.inference.codecs import MAX_FILE_BYTES
from har_edge.mqtt.bus import Bus, Session
from har_edge.protocol.deployment import MAX_BYTES, Deployment
from har_edge.protocol.topics import Topics
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.artifacts import fetch, fetch_session
from har_edge.runtime.build import build_sensor
from har_edge.runtime.deployment_files import await_deployment, files_of, materialise
from har_edge.runtime.sensor.sensor import SensorSetup

Connect = Callable[[Session], Bus]


class ReducerLoader:
    """Waits for a plan and brings the files it names; each on a connection of its own, until `stop` says so."""

    def __init__(self, topics: Topics, store: Store, connect: Connect, stop: Callable[[], bool]) -> None:
        self._topics, self._store, self._connect, self._stop = topics, store, connect, stop

    def await_plan(self) -> Deployment | None:
        """Wait for a plan that says where to send; None when `stop` came first."""
        name = f"{self._topics.base}-{self._topics.pipeline}-plan-{secrets.token_hex(4)}"
        bus = self._connect(Session(name, clean_start=True, max_packet_bytes=MAX_BYTES + 4096))
        try:
            return await_deployment(bus, self._topics, self._stop, lambda one: one.current is not None)
        finally:
            bus.close(forget=True)

    def pipeline_of(self, deployment: Deployment) -> Pipeline:
        """Return the pipeline of the current epoch, its files fetched; the broker is whatever the command says.

        Raises NodeError when they do not come or were not waited for, and what `materialise` does.
        """
        generation, wanted = deployment.current, files_of(deployment, None)
        if generation is None:
            raise NodeError("a plan without an epoch came; expected one that says where to send; wait for its nodes")
        if not all(map(self._store.has, wanted)):
            bus = self._connect(fetch_session())
            try:
                fetch(bus, self._topics, wanted, self._store, self._stop, MAX_FILE_BYTES)
            finally:
                bus.close(forget=True)
        pipeline = materialise(deployment, generation, self._store, ())
        return dataclasses.replace(pipeline, config=msgspec.structs.replace(pipeline.config, broker=BrokerConfig()))

    def setup_of(self, deployment: Deployment, sources: Sequence[str], *, combine: bool) -> SensorSetup:
        """Return what a sensor of these sources is made of in the current epoch."""
        return build_sensor(self.pipeline_of(deployment), sources, combine=combine).setup
