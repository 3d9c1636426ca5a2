"""The settings of the command that trains a model over several devices, and what it needs beside messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from har_edge.learning.data.input_layout import InputLayout
from har_edge.learning.server.checkpoints import settings_hash
from har_edge.learning.server.settings import TrainingFigures
from har_edge.learning.split.batches import BatchOrder
from har_edge.mqtt.bus import Outgoing
from har_edge.planner.training_devices import SplitDevice
from har_edge.protocol.split_training import SplitJob, SplitStage, SplitTrainingPlan, StageFiles
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import TrainingFile
from har_edge.tflite.gradient.stage_spec import StageSpec

# Chooses stages, replicas and micro-batches for the devices that are there. Raises ConfigError where none fit.
SplitPlanner = Callable[[tuple[SplitDevice, ...]], SplitTrainingPlan]


class StageWriter(Protocol):
    """Makes the files of stages, and keeps contents by their hash so that nodes can fetch them."""

    def files(self, stage: SplitStage, micro_batch: int) -> tuple[StageFiles, StageSpec]:
        """Return the files of a stage and its description. Raises GradientError where it cannot be trained."""

    def put(self, content: bytes) -> TrainingFile:
        """Keep a content on the disk."""

    def publish(self, files: Sequence[TrainingFile]) -> None:
        """Let nodes fetch contents."""

    def withdraw(self, files: Sequence[TrainingFile]) -> list[Outgoing]:
        """Return what takes contents away from the broker again."""


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """The settings of one run.

    The command begins with `workers` nodes, or after `wait_s` with those that are there, and gives up after
    `patience_s` without any. After every `replicate_every` steps the stages copy their states to their neighbours.
    `grace_s` is added to each deadline. `probe_s` are the seconds of the probe on the machine that measured the costs
    of the plan, 0 where it was not measured there. `layout` says how several inputs stand in a sample.
    """

    topics: Topics
    job: SplitJob
    order: BatchOrder
    epochs: int
    optimizer: str
    planner: SplitPlanner
    model_sha256: str = ""
    workers: int = 2
    wait_s: float = 10.0
    patience_s: float = 120.0
    grace_s: float = 5.0
    replicate_every: int = 10
    checkpoint_s: float = 60.0
    link_bytes_per_s: float = 11.75e6
    probe_s: float = 0.0
    layout: InputLayout | None = None
    figures: TrainingFigures = field(default_factory=TrainingFigures)

    @property
    def total_steps(self) -> int:
        """How many steps the run has."""
        return self.epochs * self.order.steps_an_epoch

    @property
    def hash(self) -> str:
        """The hash of what has to be the same to go on from a checkpoint; stages and epochs may change."""
        order = (self.order.samples, self.order.batch, self.order.seed)
        return settings_hash("split", self.model_sha256, self.job.data, order, self.optimizer)
