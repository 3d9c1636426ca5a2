"""Messages of a training in stages: every truncation, a table of malformed input, and the page about them."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.events import TrainingEvent, Unreadable, decode
from har_edge.protocol.split_training import (
    AssignedStage,
    GradientShare,
    HeldState,
    MicroBatch,
    MicroLoss,
    SplitAssignment,
    SplitJob,
    SplitLevel,
    SplitMessage,
    SplitReport,
    SplitStage,
    SplitState,
    StageDone,
    StageFiles,
    StateMessage,
    StateSource,
)
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import MAX_JSON_BYTES, MAX_ROUND_BYTES, TrainingFile, VectorPart, encode_training

TOPICS = Topics("har", "har")
PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "wire.md").read_text(encoding="utf-8")
FILE = TrainingFile("a" * 64, 100)
PART = VectorPart("tensors", 1, bytes(4))
STAGES = (
    AssignedStage(SplitStage(0, 3, ("pi", "po"), in_flight=2), StageFiles(FILE, FILE, FILE), StateSource(FILE), "pu"),
    AssignedStage(SplitStage(3, 5, ("pu",)), StageFiles(FILE, None, FILE), StateSource(FILE, "pi", ("pu",))),
)
HELD = HeldState(0, 3, 10, "b" * 64, 100)
ASSIGNMENT = SplitAssignment(
    run="night",
    author="one",
    generation=1,
    step=0,
    stages=STAGES,
    micro_batch=4,
    micro_batches=8,
    optimizer="sgd:lr=0.1",
)
MICRO = MicroBatch(
    run="night", author="one", sender="po", generation=1, stage=0, step=2, part=PART, micro=1, micros=8, samples=32
)
SHARE = GradientShare(
    run="night", author="one", sender="po", generation=1, stage=0, step=2, part=PART, micros=8, samples=32
)
REPORT = SplitReport(run="night", author="one", worker="pi", instance="i", state=SplitState.LOADED, held=(HELD,))
STATE = StateMessage(run="night", author="one", sender="pi", generation=1, stage=0, step=10, part=PART, held=HELD)
EXAMPLES: dict[SplitLevel, SplitMessage] = {
    SplitLevel.SPLIT: SplitJob(run="night", author="one", started=1.7e9, probe=FILE, probe_spec=FILE),
    SplitLevel.STAGES: ASSIGNMENT,
    SplitLevel.STAGE: REPORT,
    SplitLevel.FORWARD: MICRO,
    SplitLevel.BACKWARD: MICRO,
    SplitLevel.LABELS: MICRO,
    SplitLevel.LOSS: MicroLoss(run="night", author="one", worker="pi", generation=1, step=2, micro=1, loss=2.5),
    SplitLevel.DONE: StageDone(run="night", author="one", worker="pi", generation=1, stage=0, step=3, forward_s=0.5),
    SplitLevel.REDUCE: SHARE,
    SplitLevel.STATE: STATE,
    SplitLevel.SAVED: STATE,
}
WITH_PART = [level for level, one in EXAMPLES.items() if hasattr(one, "part")]


def topic_of(level: SplitLevel) -> str:
    return TOPICS.training("night", level.value, None if level in (SplitLevel.SPLIT, SplitLevel.STAGES) else "pi")


def reason(topic: str, payload: bytes) -> str:
    event = decode(Outgoing(topic, payload), TOPICS)
    assert isinstance(event, Unreadable), event
    return event.reason


@pytest.mark.parametrize("level", list(SplitLevel), ids=lambda level: level.value)
def test_each_message_is_read_back_and_no_part_of_it_is_one(level: SplitLevel) -> None:
    payload = encode_training(EXAMPLES[level])
    event = decode(Outgoing(topic_of(level), payload), TOPICS)
    assert isinstance(event, TrainingEvent) and event.message == EXAMPLES[level] and event.run == "night"
    for cut in range(1, len(payload)):
        assert isinstance(decode(Outgoing(topic_of(level), payload[:cut]), TOPICS), Unreadable)
    removed = decode(Outgoing(topic_of(level), b""), TOPICS)
    assert isinstance(removed, TrainingEvent) and removed.message is None
    limit = MAX_ROUND_BYTES if level in WITH_PART else MAX_JSON_BYTES
    assert f"expected at most {limit}" in reason(topic_of(level), bytes(limit + 1))
    later = msgspec.msgpack.decode(payload) | {"signature": "x", "later": [1]}
    event = decode(Outgoing(topic_of(level), msgspec.msgpack.encode(later)), TOPICS)
    assert isinstance(event, TrainingEvent) and event.message == EXAMPLES[level]


def changed(level: SplitLevel, **more: object) -> tuple[str, bytes]:
    return topic_of(level), encode_training(structs.replace(EXAMPLES[level], **more))


def with_stage(**more: object) -> tuple[str, bytes]:
    stage = structs.replace(STAGES[0], stage=structs.replace(STAGES[0].stage, **more))
    return changed(SplitLevel.STAGES, stages=(stage, STAGES[1]))


BAD = [
    (changed(SplitLevel.STAGES, version=2), "a stages of version 2 came; expected 1: update the older of the two"),
    (changed(SplitLevel.FORWARD, sealed="aes"), "sealed with 'aes' came; this version opens none"),
    (changed(SplitLevel.SPLIT, run="day"), "a split of run 'day' came on the topic of 'night'"),
    (changed(SplitLevel.STAGE, worker="other"), "a stage of 'other' came on the topic of 'pi'"),
    (changed(SplitLevel.FORWARD, part=VectorPart("tensors", 1, b"", 2, 2)), "part 2 of 2 came"),
    (changed(SplitLevel.FORWARD, micro=8), "micro-batch 8 of 8 came"),
    (changed(SplitLevel.FORWARD, micros=4097), "Expected `int` <= 4096"),
    (changed(SplitLevel.FORWARD, samples=0), "Expected `int` >= 1"),
    (changed(SplitLevel.LOSS, loss=float("nan")), "Expected `float`"),
    (changed(SplitLevel.STAGES, stages=()), "Expected `array` of length >= 1"),
    (changed(SplitLevel.STAGES, stages=STAGES[::-1]), "expected stages that follow each other"),
    (with_stage(stop=2), "a stage of operators 3 to 5 came after one that ends at 2"),
    (with_stage(workers=("pi", "pi")), "names a worker twice"),
    (with_stage(workers=()), "Expected `array` of length >= 1"),
    (with_stage(workers=("a b",)), "Expected `str` matching regex"),
    (with_stage(slots=(2,)), "has a slot without a worker"),
    (with_stage(in_flight=0), "Expected `int` >= 1"),
    ((TOPICS.training("night", "forward"), b"x"), "expected a worker after forward"),
    ((TOPICS.training("night", "split", "pi"), b"x"), "expected no worker after split"),
    ((topic_of(SplitLevel.STAGES), b"\x91" * 5000), "what came is no stages of a split training"),
]


@pytest.mark.parametrize(("message", "text"), BAD)
def test_bad_messages_are_unreadable_for_a_reason(message: tuple[str, bytes], text: str) -> None:
    assert text in reason(*message)


def test_replicas_take_micro_batches_in_turn_or_by_their_slots() -> None:
    stage = SplitStage(0, 1, ("a", "b", "c"))
    assert [stage.replica(micro) for micro in range(4)] == [0, 1, 2, 0]
    uneven = structs.replace(stage, slots=(0, 0, 1, 2))
    assert [uneven.replica(micro) for micro in range(5)] == [0, 0, 1, 2, 0]


TABLES = [
    (SplitJob, "field of a split job"),
    (SplitAssignment, "field of an assignment"),
    (AssignedStage, "field of an assigned stage"),
    (SplitStage, "field of a stage of a plan"),
    (StageFiles, "field of the files of a stage"),
    (StateSource, "field of the state of a stage"),
    (SplitReport, "field of a report"),
    (MicroBatch, "field of a micro-batch"),
    (GradientShare, "field of a gradient share"),
    (StateMessage, "field of a state message"),
    (MicroLoss, "field of a loss"),
    (StageDone, "field of a done step"),
]


@pytest.mark.parametrize(("struct", "head"), TABLES, ids=[case[0].__name__ for case in TABLES])
def test_every_field_is_on_the_page(struct: type[msgspec.Struct], head: str) -> None:
    (table,) = re.findall(rf"^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    names = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(names) == sorted(struct.__struct_fields__)
