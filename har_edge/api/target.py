"""Which pipeline a program means, and how it reaches the broker."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from har_edge.api.arguments import check_path, check_text
from har_edge.config.pipeline import Pipeline, load_pipeline
from har_edge.config.pipeline_config import BrokerConfig
from har_edge.errors import ConfigError
from har_edge.mqtt.address import Address, read_address
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.connect import ClientLibrary, MqttVersion, choose_client, open_bus
from har_edge.protocol.topics import Topics
from har_edge.runtime.build import topics_of

BROKER_VARIABLE = "HAR_EDGE_BROKER"


@dataclass(frozen=True, slots=True)
class Target:
    """A pipeline and its broker; `pipeline` is None where a coordinator's plan says what it is."""

    topics: Topics
    address: Address
    client: ClientLibrary
    protocol: MqttVersion
    pipeline: Pipeline | None

    def connect(self, session: Session) -> Bus:
        """Open a connection; raises BrokerError."""
        return open_bus(self.address, session, self.client, self.protocol)


def find_target(
    folder: str | os.PathLike[str] | Pipeline | None, pipeline: str | None, broker: str | Address | None
) -> Target:
    """Return the pipeline of a folder of slices, or the one that a coordinator deploys under a name.

    The broker is the one given, else that of HAR_EDGE_BROKER, else that of the pipeline file. User and password come
    from HAR_EDGE_USERNAME and HAR_EDGE_PASSWORD, or from the files that the pipeline file names. Raises ConfigError.
    """
    if folder is not None:
        check_path("folder", folder, Pipeline)
    check_text("pipeline", pipeline)
    if broker is not None and not isinstance(broker, str | Address):
        raise ConfigError(f"broker={broker!r} came, of type {type(broker).__name__}; expected mqtt://HOST[:PORT]")
    if (folder is None) == (pipeline is None):
        came = "neither a folder nor pipeline=NAME" if folder is None else f"a folder and pipeline={pipeline!r}"
        raise ConfigError(
            f"{came} came; expected the folder that `split` wrote, or the name of a pipeline that a coordinator deploys"
        )
    if folder is None:
        assert pipeline is not None
        return _target(Topics("har", pipeline), broker, BrokerConfig(), Path(), None)
    fixed = folder if isinstance(folder, Pipeline) else load_pipeline(Path(folder))
    return _target(topics_of(fixed), broker, fixed.config.broker, fixed.folder, fixed)


def _target(
    topics: Topics, broker: str | Address | None, settings: BrokerConfig, folder: Path, pipeline: Pipeline | None
) -> Target:
    protocol = MqttVersion(settings.protocol)
    client = choose_client(ClientLibrary(settings.client), protocol)
    if isinstance(broker, Address):
        return Target(topics, broker, client, protocol, pipeline)
    url = broker or os.environ.get(BROKER_VARIABLE) or settings.url
    files = {
        name: folder / value
        for name in ("password_file", "ca_file", "cert_file", "key_file")
        if (value := getattr(settings, name)) is not None and (name == "password_file" or url.startswith("mqtts:"))
    }
    return Target(topics, read_address(url, username=settings.username, **files), client, protocol, pipeline)
