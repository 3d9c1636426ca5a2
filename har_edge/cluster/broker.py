"""A broker for a cluster: Mosquitto where it is installed, else the embedded one; one that may be killed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.mqtt.broker.embedded import start_embedded
from har_edge.mqtt.broker.launcher import find_mosquitto, start_mosquitto
from har_edge.resources import find_folder

if TYPE_CHECKING:
    from har_edge.mqtt.broker.launcher import RunningBroker


def start_broker(folder: Path) -> RunningBroker:
    """Start a broker of the shipped configuration on a free port, its files below `folder`."""
    if find_mosquitto() is None:
        return start_embedded()
    folder.chmod(0o755)  # Mosquitto, started by root, becomes a user of its own and must get in
    return start_mosquitto(find_folder("brokers") / "mosquitto.conf", folder / "broker")
