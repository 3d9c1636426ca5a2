"""The content of the pipeline file: the settings on which sensors, stages and sink must agree."""

from __future__ import annotations

from enum import Enum
from typing import Literal

import msgspec

from har_edge.config.message_sizes import largest_message
from har_edge.config.task import Task
from har_edge.tflite.manifest import SliceManifest, Text
from har_edge.timing import STAGE_SESSION_S

FILE_NAME = "pipeline.toml"
DEFAULT_NAME = "har"
MQTT_MAX_BYTES = 268_435_455
LEAST_PAYLOAD_LIMIT = 16 * 1024 * 1024  # of pipelines that say nothing: batches fit, too
PACKET_BYTES = 4096  # the most that topic and properties of a packet take beside its payload


class BrokerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How nodes reach the broker; options of a command override it."""

    url: Text = "mqtt://127.0.0.1:1883"
    username: Text | None = None
    password_file: Text | None = None
    ca_file: Text | None = None
    cert_file: Text | None = None
    key_file: Text | None = None
    client: Text = "auto"
    protocol: Text = "5"


class MissingRule(Enum):
    """The reaction of a stage to a missing source: wait and give the window up, or run without the source."""

    WAIT = "wait"
    CARRY_ON = "carry_on"


class JoinConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many seconds a stage waits for the parts of a window, and for how many windows at once.

    `carry_on_after_s` matters only under MissingRule.CARRY_ON.
    """

    timeout_s: float = 30.0
    capacity: int = 256
    missing: MissingRule = MissingRule.WAIT
    carry_on_after_s: float = 1.0

    @property
    def patience_s(self) -> float | None:
        """Seconds that a window waits for a source before the stage runs without it; None: the stage never does."""
        return self.carry_on_after_s if self.missing is MissingRule.CARRY_ON else None


class PipelineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the pipeline file in TOML; `slices` is relative to the file.

    A file without `epoch` gets the generation id of its slices when it is loaded. `delegate` names what computes on
    every device: "xnnpack" where the runtime hands operators to it (the default), or "none". Without
    `max_payload_bytes`, the limit follows from the slices (`payload_limit`). `flows` gives the brokers of flows that do
    not go through the central one, in a fixed folder (config/flows.py).
    """

    task: Task
    name: Text = DEFAULT_NAME
    base: Text = "har"
    epoch: int = 1
    slices: Text = "."
    max_payload_bytes: int | msgspec.UnsetType = msgspec.UNSET
    session_expiry_s: int = STAGE_SESSION_S
    broker: BrokerConfig = BrokerConfig()
    join: JoinConfig = JoinConfig()
    # Left out by default: nodes of older versions refuse keys that they do not know.
    delegate: Literal["xnnpack", "none"] | msgspec.UnsetType = msgspec.UNSET
    flows: dict[Text, Text] | msgspec.UnsetType = msgspec.UNSET


def payload_limit(config: PipelineConfig, manifest: SliceManifest) -> int:
    """Return the most bytes of a message: what the configuration says, else what one window of these slices needs."""
    if config.max_payload_bytes is not msgspec.UNSET:
        return config.max_payload_bytes
    return min(MQTT_MAX_BYTES - PACKET_BYTES, max(LEAST_PAYLOAD_LIMIT, largest_message(manifest)))
