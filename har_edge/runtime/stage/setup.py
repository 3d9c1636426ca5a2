"""The setup of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from har_edge.config.task import Task
from har_edge.config.wiring import Wiring
from har_edge.inference.saturation import Saturation
from har_edge.protocol.topics import Topics

if TYPE_CHECKING:
    from har_edge.inference.input_adapter import InputAdapter
    from har_edge.inference.interpreter import Port
    from har_edge.inference.shard_program import ShardProgram

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class StageSetup:
    """The setup of a stage: topics, wiring, the slice's `run` and result port; for each source its feed and port.

    Activations are written in `wire_version`, with `ids` for the names of tensors; `names` says what the ids of tensors
    that come stand for, where windows say those of sources.

    Without `carry_on_after_s`, a window that lacks a source is given up. Stages of one `share` take turns: the broker
    gives each message to one of them.

    A stage that is `deployed` leaves windows of other epochs to the stages of these. All its sensors send again what is
    not answered, so it need not hold up the queue, and moves parts that wait to the replay buffer sooner.

    `delegate` is who computes the slice, for what its node says of itself. `saturations` count what the feeds quantise.

    A shard has a `program`, whose steps it runs one by one; `run` runs all of them.

    No message of windows is larger than `window_bytes` for each window that it carries (0: no bound but that of a
    message). `sent` are the names of all tensors that stages send, as far as these are known.
    """

    topics: Topics
    epoch: int
    task: Task
    wiring: Wiring
    run: Run
    result_port: Port | None
    feeds: Mapping[str, InputAdapter]
    max_payload_bytes: int
    join_timeout_s: float
    join_capacity: int
    ports: Mapping[str, Port] = field(default_factory=dict)
    wire_version: int = 1
    ids: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    carry_on_after_s: float | None = None
    share: str = ""
    deployed: bool = False
    remembers: bool = True
    delegate: str = ""
    saturations: tuple[Saturation, ...] = ()
    program: ShardProgram | None = None
    window_bytes: int = 0
    sent: frozenset[str] = frozenset()

    @property
    def answers(self) -> bool:
        """Whether the stage gives results: of classes, or of outputs that are none."""
        return self.result_port is not None or (self.wiring.answers and self.task.gathers)
