"""Bad input to workers and the command of a split training: dropped, counted and named; the run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec import structs

from har_edge.errors import ModelError, NodeError
from har_edge.learning.split.files import StageFolder
from har_edge.learning.split.service import SplitService
from har_edge.learning.split.state import decode_state, encode_state, hash_of
from har_edge.learning.split.tensors import split_bytes
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.split_training import (
    STATE,
    AssignedStage,
    HeldState,
    MicroBatch,
    SplitLevel,
    SplitState,
    StateMessage,
)
from har_edge.protocol.training import RunState, VectorPart, encode_training
from har_edge.runtime.artifact_store import Store
from tests.learning.split.networks import residual, samples
from tests.learning.split.rig import TOPICS, SplitRig, make_rig


@pytest.fixture
def rig(tmp_path: Path) -> SplitRig:
    rig = make_rig(tmp_path, residual(), samples(160), replicate_every=4)
    rig.until(lambda: rig.server.counted >= 2)
    return rig


def micro_batch(rig: SplitRig, **more: object) -> MicroBatch:
    assert rig.server.assignment is not None
    machine = rig.nodes["b"].worker.stages[1]
    part = VectorPart("tensors", machine.spec.entering_bytes // 4, bytes(machine.spec.entering_bytes))
    message = MicroBatch(
        run="r",
        author="command",
        sender="a",
        generation=rig.server.generation,
        stage=1,
        step=machine.step,
        part=part,
        micro=3,
        micros=4,
        samples=16,
    )
    return structs.replace(message, **more)


WRONG: list[tuple[dict[str, object], str]] = [
    ({"stage": 2}, "a message for stage 2 came; this worker has [1]"),
    ({"step": 50}, "a message of step 50 came; expected one of step"),
    ({"part": VectorPart("tensors", 3, bytes(12))}, "tensors of 12 bytes came as forward of step"),
    ({"part": VectorPart("state", 40, bytes(160))}, "state of 160 bytes came as forward of step"),
]


@pytest.mark.parametrize(("more", "reason"), WRONG, ids=[case[1][:30] for case in WRONG])
def test_a_message_that_does_not_belong_here_is_dropped(rig: SplitRig, more: dict[str, object], reason: str) -> None:
    worker = rig.nodes["b"].worker
    topic = TOPICS.training("r", SplitLevel.FORWARD.value, "b")
    worker.handle(Outgoing(topic, encode_training(micro_batch(rig, **more))))
    assert len(worker.reasons) == 1 and reason in worker.reasons[0]
    worker.reasons.clear()
    rig.run()
    assert rig.server.state is RunState.FINISHED and rig.server.record.recoveries == []


@pytest.mark.parametrize("more", [{"generation": 99}, {"author": "another"}])
def test_messages_of_another_generation_or_command_are_passed_over(rig: SplitRig, more: dict[str, object]) -> None:
    worker = rig.nodes["b"].worker
    topic = TOPICS.training("r", SplitLevel.FORWARD.value, "b")
    worker.handle(Outgoing(topic, encode_training(micro_batch(rig, **more))))
    assert worker.reasons == []


def test_what_comes_twice_counts_once(rig: SplitRig) -> None:
    for node in rig.nodes.values():
        bus = node.bus
        publish: Callable[..., None] = bus.publish

        def twice(topic: str, payload: bytes, publish: Callable[..., None] = publish, **more: object) -> None:
            publish(topic, payload, **more)
            publish(topic, payload, **more)

        bus.publish = twice  # type: ignore[method-assign]
    rig.run()
    assert rig.server.state is RunState.FINISHED and rig.server.record.recoveries == []
    assert [row.step for row in rig.server.record.steps] == list(range(10))


def state_message(content: bytes, held: HeldState, rig: SplitRig) -> StateMessage:
    return StateMessage(
        run="r",
        author="command",
        sender="a",
        generation=rig.server.generation,
        stage=0,
        step=held.step,
        part=split_bytes(STATE, content)[0],
        held=held,
    )


def test_a_state_whose_hash_is_another_is_not_kept(rig: SplitRig) -> None:
    worker = rig.nodes["b"].worker
    held = HeldState(0, 1, 4, hash_of(b"weights"), 7)
    worker.handle(Outgoing(TOPICS.training("r", "state", "b"), encode_training(state_message(b"others!", held, rig))))
    assert "whose hash is not" in worker.reasons[0] and (0, 1, 4) not in worker.held
    before = rig.server.record.dropped
    saved = Delivery(TOPICS.training("r", "saved", "a"), encode_training(state_message(b"others!", held, rig)), (0, 0))
    rig.server.handle(saved, rig.now)
    assert rig.server.record.dropped == before + 1 and "with other content" in rig.server.lines[-1]


def test_a_forged_part_does_not_stand_in_the_way_of_a_state(rig: SplitRig) -> None:
    send = rig.server.handle

    def forge(step: int) -> None:
        for number in range(3):
            held = HeldState(0, 1, step, "c" * 64, 40)
            part = VectorPart(STATE, 10, b"x", 0, 40)
            forged = structs.replace(state_message(b"", held, rig), stage=number, part=part)
            send(Delivery(TOPICS.training("r", "saved", "a"), encode_training(forged), (0, 0)), rig.now)

    for step in range(1, 11):
        forge(step)
    huge = structs.replace(state_message(b"", HeldState(0, 1, 3, "d" * 64, 2**31 - 1), rig))
    send(Delivery(TOPICS.training("r", "saved", "a"), encode_training(huge), (0, 0)), rig.now)
    assert "a state of 2147483647 bytes came for stage 0; expected at most" in rig.server.lines[-1]
    assert len(rig.server._states._steps) <= 4
    forge(10)  # the last step, whose states the run waits for
    rig.run()
    assert rig.server.state is RunState.FINISHED and rig.server.record.recoveries == []
    assert rig.server.whole.step == 10


def test_a_full_disk_of_the_command_ends_no_training(rig: SplitRig) -> None:
    def full(content: bytes) -> object:
        raise NodeError("cannot keep 7 bytes in /cache: No space left on device")

    rig.server._states.put = full  # type: ignore[assignment]
    rig.run()
    assert rig.server.state is RunState.FINISHED and rig.server.record.recoveries == []
    assert rig.server.whole.step == 10 and rig.checkpoints[-1].step == 10
    assert any("step 10 is held in memory only: cannot keep 7 bytes in /cache" in line for line in rig.lines)


def test_the_reason_of_a_loss_is_said(rig: SplitRig) -> None:
    node = rig.nodes["b"]
    rig.publish(node.bus, [node.worker.report(SplitState.LOST, "cannot keep 7 bytes in /cache")])
    rig.run()
    assert rig.server.state is RunState.FINISHED
    assert "b is lost: cannot keep 7 bytes in /cache" in rig.lines


def test_a_loss_beyond_what_a_message_carries_ends_the_run_and_is_said(rig: SplitRig) -> None:
    compute = rig.nodes["c"].worker.stages[2].compute
    finish = compute.finish
    compute.finish = lambda *args: replace(finish(*args), loss=1e31)  # type: ignore[method-assign]
    rig.run()
    assert rig.server.state is RunState.STOPPED
    assert "became 1e+31; the learning rate may be too high" in rig.server.problem


def test_a_node_that_cannot_load_its_stage_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(tmp_path, residual(), samples(160), names="abcd", cuts=(1, 3))
    load = StageFolder.load

    def refuse(folder: StageFolder, stage: AssignedStage, micro_batch: int) -> object:
        if folder.store.folder.name == "b":
            raise ModelError("forward graph of operators 1 to 3: it does not load")
        return load(folder, stage, micro_batch)

    monkeypatch.setattr(StageFolder, "load", refuse)
    rig.run()
    assert rig.server.state is RunState.FINISHED and rig.server.assigned == ("a", "d", "c")
    assert "b takes no part any more: forward graph of operators 1 to 3: it does not load" in rig.lines


def test_states_are_checked_before_they_are_used(rig: SplitRig) -> None:
    machine = rig.nodes["b"].worker.stages[1]
    content = encode_state(rig.server.whole.cut(machine.spec), 1, 3)
    decode_state(content, machine.spec)
    diverged = rig.server.whole.cut(machine.spec)
    diverged.weights[0] = np.nan
    for changed, reason in [
        (content[:-1], "cannot be read"),
        (encode_state(rig.server.whole.cut(machine.spec), 1, 4), "of operators 1 to 4 came; expected version 1"),
        (encode_state(diverged, 1, 3), "not finite"),
        (encode_state(rig.server.whole.cut(rig.server.specs[0]), 1, 3), "bytes of weights; expected"),
    ]:
        with pytest.raises(ModelError, match=reason):
            decode_state(changed, machine.spec)


def test_nodes_that_share_a_folder_do_not_take_each_other_s_files(tmp_path: Path) -> None:
    one, two = (StageFolder(Store(tmp_path), lambda content, what: None, lambda: 0) for _ in range(2))
    content = b"a state"
    name = hashlib.sha256(content).hexdigest()
    for folder in (one, two):
        folder.put(name, content)
    one.drop(name)
    one.drop(name)
    assert two.has(name) and two.read(name) == content


def test_words_of_a_node_do_not_reach_the_terminal_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    server = SimpleNamespace(
        filters=[],
        handle=None,
        tick=lambda now: [],
        rival="",
        lacking=set(),
        checkpoints=[],
        lines=["b: no\x1b[31m\nway"],
    )
    bus = SimpleNamespace(subscribe=lambda filters: None, poll=lambda timeout_s: [], connected=False)
    files = SimpleNamespace(pump=lambda bus: None)
    said = list[str]()
    for name in ("_evaluate", "_announce"):
        monkeypatch.setattr(SplitService, name, lambda self, *now: None)
    arguments = (bus, server, files, None, (), Path("checkpoint"), said.append, None)
    SplitService(*arguments).step()  # type: ignore[arg-type]
    assert said == ["b: no\\x1b[31m\\nway"]
