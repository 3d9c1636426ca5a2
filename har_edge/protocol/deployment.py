"""The deployment: the message retained at the topic `plan`, which nodes and sensors follow.

A generation is one way to cut the model and the nodes that fill its stages. Its number is called `epoch` in messages.
While data flows, an older generation drains beside the current one, and a newer one gets ready. A reader of a
deployment needs nothing else but the files that it names by hash.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated

import msgspec

from har_edge.config.flows import FLOW_LEVEL, is_broker_url
from har_edge.config.pipeline_config import PipelineConfig
from har_edge.errors import HarEdgeError, MessageError
from har_edge.protocol.topics import is_id
from har_edge.tflite.manifest import SliceManifest, Text, find_flaw

VERSION = 1
# Version of deployments, heartbeats and node capabilities. It rises when an older node would fail.
PROTOCOL = 1
MAX_BYTES = 4 * 1024 * 1024
# No count of changes comes near, and every reader of JSON has figures up to here exactly.
MAX_REVISION = 2**53
MAX_GENERATIONS = 8
MAX_STAGES = 256
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


_StageNumber = Annotated[int, msgspec.Meta(ge=0, lt=MAX_STAGES)]


class Phase(Enum):
    """The phase of a generation."""

    PREPARING = "preparing"
    CURRENT = "current"
    DRAINING = "draining"


class Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which node fills a stage: it takes over the session of that stage, whoever had it.

    Stages with several replicas, counted from 0, take turns. A node in `standby` loads the slice and waits.
    """

    stage: _StageNumber
    node: Text
    replica: _StageNumber = 0
    standby: tuple[Text, ...] = ()

    @property
    def key(self) -> tuple[int, int]:
        return self.stage, self.replica


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One way to cut the model, and who runs the slices. `predicted_s` are the planner's seconds a window, by stage.

    `brokers` are the addresses of brokers that nodes carry themselves, by node. `flows` names the node whose broker a
    flow goes through, by the level of its topic (config/wiring.py); other flows go through the central broker. A stage
    takes a flow from there, from the broker that `flows` names, and from that of the node that makes it, so that a flow
    may change its way while data flows. Nodes of before these keys refuse a plan that has them.
    """

    epoch: Annotated[int, msgspec.Meta(ge=1, lt=2**62)]
    manifest: SliceManifest
    placements: tuple[Placement, ...]
    predicted_s: tuple[float, ...] = ()
    predicted_latency_s: float = 0.0
    brokers: dict[Text, Text] = {}
    flows: dict[Text, Text] = {}

    def of(self, node: str) -> tuple[Placement, ...]:
        """Return what a node runs."""
        return tuple(placement for placement in self.placements if placement.node == node)

    def replicas(self, stage: int) -> int:
        """Return how many take turns at a stage."""
        return sum(placement.stage == stage for placement in self.placements)


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that is deployed; `revision` grows with each change, `epoch` is where sensors send (0: nowhere yet).

    `author` is the coordinator process that wrote it, `started` when that process started: of two, the younger counts.
    `files` holds the SHA-256 of what the task needs beside the slices, by name: fitted reducers, a stream description.
    """

    version: int
    revision: Annotated[int, msgspec.Meta(ge=0, lt=MAX_REVISION)]
    author: Text
    started: Annotated[float, msgspec.Meta(ge=0.0)]
    config: PipelineConfig
    epoch: int = 0
    files: dict[Text, Text] = {}
    generations: Annotated[tuple[Generation, ...], msgspec.Meta(max_length=MAX_GENERATIONS)] = ()

    @property
    def current(self) -> Generation | None:
        """The generation that sensors send to."""
        return self.generation(self.epoch)

    def generation(self, epoch: int) -> Generation | None:
        return next((one for one in self.generations if one.epoch == epoch), None)

    def replaces(self, other: Deployment) -> bool:
        """Return whether this one is newer: a later revision, or by a younger author, who may have begun to count anew.

        A clock that was set back must not stop an author who went on with the revisions of another.
        """
        if self.author == other.author:
            return self.revision > other.revision
        return self.revision > other.revision or self.started > other.started

    def phase(self, epoch: int) -> Phase:
        """Return where the generation of a number stands."""
        if epoch == self.epoch:
            return Phase.CURRENT
        return Phase.PREPARING if epoch > self.epoch else Phase.DRAINING

    def holder(self, epoch: int, stage: int, replica: int) -> str | None:
        """Return the node that fills a stage; None where the deployment has no such stage."""
        generation = self.generation(epoch)
        placements = generation.placements if generation else ()
        return next((one.node for one in placements if one.key == (stage, replica)), None)


def session_name(base: str, pipeline: str, epoch: int, stage: int, replica: int) -> str:
    """Return the client id of a stage: that of the stage, not of the node that fills it."""
    return f"{base}.{pipeline}.{epoch}.stage-{stage}.{replica}"


encode_deployment = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Deployment).decode


def decode_deployment(payload: bytes) -> Deployment:
    """Read a deployment. Raises MessageError for one that is malformed, too large, or of another version."""
    if len(payload) > MAX_BYTES:
        raise MessageError(f"a plan of {len(payload)} bytes came; expected at most {MAX_BYTES}")
    try:
        deployment = _decode(payload)
    except (msgspec.MsgspecError, HarEdgeError, ValueError, RecursionError) as error:
        raise MessageError(f"what came is no plan: {error}; expected one of version {VERSION}") from None
    problem = _problem(deployment)
    if problem:
        raise MessageError(f"a plan came in which {problem}; it is not followed: see what wrote it")
    return deployment


def check_deployment(deployment: Deployment) -> None:
    """Raise MessageError for a deployment that nodes could not read."""
    decode_deployment(encode_deployment(deployment))


def _problem(deployment: Deployment) -> str:
    """Say what is wrong with a deployment; empty where nothing is."""
    if deployment.version != VERSION:
        return f"the version is {deployment.version}; expected {VERSION}"
    if not is_id(deployment.config.base) or not is_id(deployment.config.name):
        return "base or name cannot stand in a topic"
    for name, sha256 in deployment.files.items():
        if not _FILE.fullmatch(name) or not _SHA256.fullmatch(sha256):
            return f"file {name!r} has hash {sha256!r}; expected a plain name and a SHA-256 as 64 hex digits"
    epochs = [generation.epoch for generation in deployment.generations]
    if len(set(epochs)) < len(epochs):
        return "two generations have the same epoch"
    if deployment.epoch and deployment.epoch not in epochs:
        return f"the epoch is {deployment.epoch}, but no generation has it"
    return next(filter(None, map(_flaw, deployment.generations)), "")


def _flaw(generation: Generation) -> str:
    """Say what is wrong with a generation; empty where nothing is."""
    where, slices = f"in epoch {generation.epoch} ", generation.manifest.slices
    if not 1 <= len(slices) <= MAX_STAGES:
        return where + f"there are {len(slices)} slices; expected 1 to {MAX_STAGES}"
    for entry in slices:
        for file, sha256 in entry.files.items():
            if not _FILE.fullmatch(file) or not _SHA256.fullmatch(sha256):
                return where + f"slice {file!r} has hash {sha256!r}; expected a plain name and a SHA-256"
    flaw = find_flaw(generation.manifest)
    if flaw:
        return where + f"the manifest {flaw}"
    keys = [placement.key for placement in generation.placements]
    if len(set(keys)) < len(keys):
        return where + "a stage is placed twice"
    if {stage for stage, _ in keys} != set(range(len(slices))):
        return (
            where + f"stages {sorted({stage for stage, _ in keys})} are placed; expected each of {len(slices)} slices"
        )
    for placement in generation.placements:
        if not all(map(is_id, (placement.node, *placement.standby))):
            return where + f"stage {placement.stage} has a node that cannot be: {placement.node!r}"
    return where + found if (found := _routing_flaw(generation)) else ""


def _routing_flaw(generation: Generation) -> str:
    """Say what is wrong with the brokers of a generation; empty where nothing is."""
    for node, url in generation.brokers.items():
        if not is_id(node) or not is_broker_url(url):
            return f"node {node!r} has the broker {url!r}; expected mqtt://HOST:PORT or mqtts://HOST:PORT"
    for level, node in generation.flows.items():
        match = FLOW_LEVEL.fullmatch(level)
        if match is None or int(match[1]) >= len(generation.manifest.slices):
            return (
                f"there is a flow {level!r}; expected STAGE or STAGE-FLOW of {len(generation.manifest.slices)} stages"
            )
        if node not in generation.brokers:
            return f"flow {level} goes through the broker of {node!r}, which has none"
    return ""
