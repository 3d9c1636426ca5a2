"""The settings of a training server: the job, how long to train, how to combine updates, and how long to wait."""

from __future__ import annotations

from dataclasses import dataclass

from har_edge.learning.server.checkpoints import settings_hash
from har_edge.learning.server.modes import TrainingMode
from har_edge.learning.server.shares import LEAST_BUDGET_S
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import TrainingJob


@dataclass(frozen=True, slots=True)
class TrainingFigures:
    """The names in the progress: the model, the data, the broker, and the samples that accuracy is measured on."""

    model: str = ""
    data: str = ""
    real: bool = False
    broker: str = ""
    held_out: int = 0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings of one run.

    A job whose `compress` is "auto" gets float16 for updates and weights if workers make steps of their own, and
    float32 else. `global_batch` is the number of samples of a synchronous step, by default one batch a worker.
    `local_steps` are those of an equal share, None where they are chosen; `staleness` is how many rounds a worker may
    lag. The server begins with `workers` of them, or after `wait_s` with those that are there, and gives up after
    `patience_s` without any. `grace_s` is added to each deadline. With `by_speed` shares follow measured speeds.
    `delta` is that of the privacy spent, where the job has noise. An `optimizer` of "auto" is chosen with the mode
    (server/recipes.py); `server_optimizer` steps by the mean change of workers that make steps of their own, "" adds
    it, or steps with momentum where `optimizer` is "auto", too. With `decays` an optimizer that is chosen has weight
    decay, which fits models that tell classes apart. A task has `least_budget_s` at least before its worker sends what
    it has.
    """

    topics: Topics
    job: TrainingJob
    epochs: int
    optimizer: str
    mode: TrainingMode = TrainingMode.AUTO
    server_optimizer: str = ""
    least_budget_s: float = LEAST_BUDGET_S
    local_steps: int | None = None
    staleness: int = 2
    global_batch: int | None = None
    workers: int = 1
    wait_s: float = 10.0
    patience_s: float = 120.0
    grace_s: float = 5.0
    checkpoint_s: float = 30.0
    link_bytes_per_s: float = 11.75e6
    by_speed: bool = True
    delta: float = 1e-5
    decays: bool = True
    figures: TrainingFigures = TrainingFigures()

    @property
    def hash(self) -> str:
        """The hash of what has to be the same to go on from a checkpoint; the number of epochs may change."""
        job = self.job
        blocks = [(one.sha256, one.samples) for one in job.blocks]
        mode = (self.mode.value, self.local_steps, self.global_batch)
        private = (*((job.clip, job.noise) if job.clip else ()), *(["masked"] if job.mask else []))
        data = (blocks, job.own, job.classes, job.shape, *private)
        optimizer = (self.optimizer, self.server_optimizer) if self.server_optimizer else self.optimizer
        return settings_hash(job.graph.sha256, job.batch, job.parameters, job.seed, data, optimizer, job.compress, mode)
