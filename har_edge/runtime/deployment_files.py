"""Following a deployment: wait for it, know the files it needs, and lay them out as a pipeline."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from har_edge.config.pipeline import Pipeline, assemble
from har_edge.config.pipeline_config import FILE_NAME
from har_edge.data.description import BUILT_IN
from har_edge.errors import MessageError, NodeError
from har_edge.mqtt.bus import Bus
from har_edge.protocol.deployment import Deployment, Generation
from har_edge.protocol.events import PlanEvent, Unreadable, decode
from har_edge.protocol.topics import Kind, Topics
from har_edge.runtime.artifact_store import Store

_log = logging.getLogger(__name__)
FOLDER = "pipelines"
_POLL_S = 0.2
_PATIENCE_S = 2.0
# Folders of epochs that are gone are removed when nobody can be about to read them.
_STALE_S = 86_400.0


def await_deployment(
    bus: Bus, topics: Topics, stop: Callable[[], bool], suits: Callable[[Deployment], bool] = lambda _: True
) -> Deployment | None:
    """Subscribe to the plan and wait for one that can be read, and suits; None when `stop` says so before."""
    bus.subscribe([topics.plan()])
    warn_at = time.monotonic() + _PATIENCE_S
    while not stop():
        for delivery in bus.poll(_POLL_S):
            bus.acknowledge(delivery)
            event = decode(delivery, topics)
            if isinstance(event, Unreadable) and event.kind is Kind.PLAN:
                _log.warning("%s", event.reason)
            elif isinstance(event, PlanEvent) and event.deployment is not None and suits(event.deployment):
                return event.deployment
        if time.monotonic() > warn_at:
            warn_at += 60.0
            _log.warning("waiting for a plan at %s: start `har-edge coordinator`", topics.plan())
    return None


def files_of(
    deployment: Deployment, generation: Generation | None, stages: Collection[int] | None = None
) -> frozenset[str]:
    """Return the hashes of what a sensor needs (no generation), or a node for these stages (by default all)."""
    if generation is None:
        return frozenset(deployment.files.values())
    slices = generation.manifest.slices
    chosen = range(len(slices)) if stages is None else stages
    return frozenset(deployment.files.values()).union(*(slices[stage].files.values() for stage in chosen))


def materialise(deployment: Deployment, generation: Generation, store: Store, stages: Collection[int]) -> Pipeline:
    """Lay files in the store out under their names, with the slices of these stages, and return the pipeline.

    Its epoch is the generation's, its folder one below the store's that no other deployment shares; from now on the
    store keeps what this deployment names. Raises NodeError when the store lacks a file or the folder cannot be
    written; MessageError or ConfigError when the files do not fit.
    """
    config, slices = deployment.config, generation.manifest.slices
    store.keep({sha256 for one in (None, *deployment.generations) for sha256 in files_of(deployment, one)})
    names = dict(deployment.files)
    description, pictures = config.task.stream.description, config.task.image is not None
    if not pictures and description not in BUILT_IN and description not in names:  # nor any other file of this device
        raise MessageError(f"the plan names the stream description {description!r}, but carries no file of this name")
    for stage in stages:
        for file, sha256 in slices[stage].files.items():
            if names.setdefault(file, sha256) != sha256:
                raise MessageError(f"the plan has two files of the name {file!r}; expected one of a name")
    everything = sorted([*deployment.files.items(), *(item for entry in slices for item in entry.files.items())])
    content = hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:12]
    folder = store.folder / FOLDER / f"{config.base}-{config.name}-{generation.epoch}-{content}"
    paths = {name: store.path(sha256) for name, sha256 in names.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            _link(folder / name, path.absolute())
        _prune(folder.parent, deployment)
    except OSError as error:
        raise NodeError(
            f"cannot lay the pipeline out in {folder}: {error.strerror or error}; make room or permit writing there, "
            "or give another folder with --cache"
        ) from None
    placed = msgspec.structs.replace(config, epoch=generation.epoch, slices=".")
    return assemble(placed, generation.manifest, folder / FILE_NAME)


def _link(place: Path, target: Path) -> None:
    """Let a name stand for a file; where the file system has no links, copy it. It appears whole or not at all."""
    if place.is_symlink() and place.readlink() == target:
        return
    draft = place.with_name(f".draft-{secrets.token_hex(8)}")
    try:
        try:
            draft.symlink_to(target)
        except OSError:
            shutil.copyfile(target, draft)
        draft.replace(place)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _prune(folder: Path, deployment: Deployment) -> None:
    """Remove the folders of this pipeline whose epochs are over."""
    oldest = min(generation.epoch for generation in deployment.generations)
    prefix = f"{deployment.config.base}-{deployment.config.name}-"
    for place in folder.iterdir():
        epoch = place.name.removeprefix(prefix).partition("-")[0]
        if place.name.startswith(prefix) and epoch.isdecimal() and int(epoch) < oldest:
            with contextlib.suppress(OSError):
                if place.stat().st_mtime < time.time() - _STALE_S:
                    shutil.rmtree(place)
