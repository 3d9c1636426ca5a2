"""A cluster for fault injection: it records every result and can prepare the caches of its nodes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from har_edge.cluster.cluster import Cluster
from har_edge.cluster.processes import PROGRAM, Processes
from har_edge.config.pipeline import Pipeline
from har_edge.experiments.environment import Environment
from har_edge.experiments.recorder import Recorder
from har_edge.mqtt.connect import ClientLibrary
from har_edge.runtime.build import topics_of


class RecordedCluster(Cluster):
    """Nodes and a coordinator in an environment; logs and the cache of each node are below `folder`.

    `variables` go to every process, `program` is what stands before the words of a command. All processes are killed on
    exit, since some may be stopped.
    """

    folder: Path

    def __init__(
        self,
        pipeline: Pipeline,
        environment: Environment,
        folder: Path,
        *,
        client: ClientLibrary = ClientLibrary.AUTO,
        variables: Mapping[str, str] | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.environment, self.recorder = environment, Recorder(topics_of(pipeline))
        super().__init__(
            pipeline,
            environment.broker.address,
            described=environment.broker.description,
            folder=folder,
            deployed=True,
            client=client,
            processes=Processes(environment.spawn, variables or {}, program, patience_s=0.0),
            view=self.recorder,
        )
        self.until(lambda: self.bus.connected, "no connection to the broker")

    def cache(self, name: str) -> Path:
        """Return the folder where a node keeps its slices."""
        return self.cache_folder(name) / "har-edge" / "slices"

    def has_cached(self, name: str, sha256: str) -> bool:
        """Return whether a node has a file in its cache."""
        return any(sha256 in path.name for path in self.cache(name).rglob("*"))

    def copy_cached(self, name: str, sha256: str, source: str) -> None:
        """Put a file from the cache of a node into that of another, as if it had been there before."""
        if not self.has_cached(name, sha256):
            for path in self.cache(source).rglob(f"*{sha256}*"):
                target = self.cache(name) / path.relative_to(self.cache(source))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    def remove_cached(self, name: str, sha256: str) -> None:
        """Remove a file from the cache of a node."""
        for path in self.cache(name).rglob(f"*{sha256}*"):
            if path.is_file():
                path.unlink()
