"""The files of stages: made of a model by the command, and loaded by a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from har_edge.errors import ModelError
from har_edge.learning.preparation import store_files
from har_edge.learning.published_files import PublishedFiles
from har_edge.learning.split.state import StageTensors, decode_state
from har_edge.learning.split.step import StageStep
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.split_training import AssignedStage, SplitStage, StageFiles
from har_edge.protocol.training import TrainingFile
from har_edge.runtime.artifact_store import Store
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.stage_graphs import check_training_cuts, write_stage
from har_edge.tflite.gradient.stage_spec import StageSpec, decode_stage_spec
from har_edge.tflite.model import Model


@dataclass(slots=True)
class ModelStages:
    """Makes the files of stages of a model, and brings them to the broker."""

    model: Model
    loss: Loss
    store: Store
    published: PublishedFiles
    _made: dict[tuple[int, int, int, bool], tuple[StageFiles, StageSpec]] = field(default_factory=dict)

    def files(self, stage: SplitStage, micro_batch: int) -> tuple[StageFiles, StageSpec]:
        """Return the files of a stage and its description. Raises GradientError where it cannot be trained."""
        key = (stage.start, stage.stop, micro_batch, stage.keep)
        if key not in self._made:
            if stage.start:
                check_training_cuts(self.model, [stage.start])
            graphs = write_stage(
                self.model, stage.start, stage.stop, batch=micro_batch, loss=self.loss, keep=stage.keep
            )
            spec = self.put(graphs.spec.encode())
            forward, backward = (
                None if one is None else self.put(bytes(one)) for one in (graphs.forward, graphs.backward)
            )
            self._made[key] = StageFiles(spec, forward, backward), graphs.spec
        files, found = self._made[key]
        self.publish([one for one in (files.spec, files.forward, files.backward) if one is not None])
        return files, found

    def put(self, content: bytes) -> TrainingFile:
        """Keep a content on the disk."""
        return store_files(self.store, [content])[0]

    def publish(self, files: Sequence[TrainingFile]) -> None:
        """Let nodes fetch contents."""
        self.published.add(files)

    def withdraw(self, files: Sequence[TrainingFile]) -> list[Outgoing]:
        """Return what takes contents away from the broker again."""
        return self.published.remove([one.sha256 for one in files])


@dataclass(slots=True)
class StageFolder:
    """The files of a worker on its disk. `check` runs a graph in a process of its own first."""

    store: Store
    check: Callable[[bytes, str], object]
    peak: Callable[[], int]
    threads: int = 1

    def has(self, sha256: str) -> bool:
        """Return whether a file is here."""
        return self.store.has(sha256)

    def read(self, sha256: str) -> bytes:
        """Return a file."""
        return self.store.path(sha256).read_bytes()

    def put(self, sha256: str, content: bytes) -> None:
        """Keep a file."""
        self.store.keep_also([sha256])
        self.store.put(sha256, content)

    def drop(self, sha256: str) -> None:
        """Let a file go; the store evicts it when it needs the room."""
        self.store.release([sha256])

    def peak_bytes(self) -> int:
        """Return the most memory that this process has used."""
        return self.peak()

    def load(self, stage: AssignedStage, micro_batch: int) -> tuple[StageStep, StageTensors]:
        """Return the graphs and the state of a stage. Raises ModelError where they are not those of the plan."""
        files, place = stage.files, stage.stage
        spec = decode_stage_spec(self.read(files.spec.sha256))
        if (spec.start, spec.stop, spec.batch) != (place.start, place.stop, micro_batch):
            raise ModelError(
                f"a description of operators {spec.start} to {spec.stop} for {spec.batch} samples came; the plan says "
                f"{place.start} to {place.stop} for {micro_batch}"
            )
        graphs = []
        for name, file in (("forward", files.forward), ("backward", files.backward)):
            content = None if file is None else self.read(file.sha256)
            if content is not None:
                self.check(content, f"{name} graph of operators {spec.start} to {spec.stop}")
            graphs.append(content)
        state = decode_state(self.read(stage.state.file.sha256), spec)
        return StageStep(graphs[0], graphs[1], spec, threads=self.threads), state
