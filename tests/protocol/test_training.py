"""Messages of a training: golden bytes, every truncation, a table of malformed input, and the page about them."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.events import TrainingEvent, Unreadable, decode
from har_edge.protocol.masks import MASKED_VERSION, SEALED_BYTES, MaskPart, MaskRelay, MaskTerms
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import (
    MAX_JOB_BYTES,
    MAX_JSON_BYTES,
    MAX_ROUND_BYTES,
    PART_BYTES,
    BlockFile,
    CheckpointNote,
    Round,
    RunState,
    SampleRange,
    TrainingFile,
    TrainingJob,
    TrainingLevel,
    TrainingMessage,
    TrainingProgress,
    TrainingTask,
    Update,
    VectorPart,
    WorkerProgress,
    WorkerReport,
    WorkerState,
    encode_progress,
    encode_training,
)
from har_edge.protocol.training_results import MAX_RANGES_BYTES, ModelNote, RangeReport, RangeRequest

TOPICS = Topics("har", "har")
PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "wire.md").read_text(encoding="utf-8")
FILE = TrainingFile("a" * 64, 100)
JOB = TrainingJob(
    run="night",
    author="one",
    started=1.7e9,
    graph=FILE,
    spec=FILE,
    batch=32,
    parameters=1,
    shape=(28, 28, 1),
    classes=("cat", "dog"),
    blocks=(BlockFile("b" * 64, 1000, 10),),
)
PART = VectorPart("f4", 1, bytes.fromhex("0000803f"))
ROUND = Round(
    run="night",
    author="one",
    number=3,
    epoch=1,
    seed=7,
    tasks={"pi": TrainingTask(4, (SampleRange(0, 0, 10),), 2.5)},
    weights=PART,
    optimizer="sgd:lr=0.1",
)
UPDATE = Update(
    run="night", author="one", worker="pi", round=3, task=4, samples=10, vector=PART, loss=2.5, correct=7, seconds=0.5
)
REPORT = WorkerReport(run="night", author="one", worker="pi", instance="i", state=WorkerState.READY, step_s=0.05)
MASK = MaskPart(run="night", author="one", worker="pi", number=2, keys=(bytes(32), b"k" * 32))
RELAY = MaskRelay(run="night", author="one", number=2, shares={"pi": bytes(SEALED_BYTES)})
TERMS = MaskTerms(2, 4, 3, 0.5, 640)
NOTE = CheckpointNote(run="night", author="one", file=FILE, settings="c" * 64, round=3, epoch=1)
PROGRESS = TrainingProgress(
    run="night", author="one", state=RunState.RUNNING, time=1.7e9, workers=(WorkerProgress("pi"),)
)
REQUEST = RangeRequest(
    run="night", author="one", sha256="d" * 64, size=100, outputs=1, samples=512, blocks={"pi": (0, 3)}
)
RANGES = RangeReport(run="night", author="one", worker="pi", sha256="d" * 64, samples=9, lows=bytes(4), highs=PART.data)
MODEL = ModelNote(run="night", author="one", sha256="e" * 64, size=100, replaces=("f" * 64,), time=1.7e9)
EXAMPLES: dict[TrainingLevel, TrainingMessage] = {
    TrainingLevel.JOB: JOB,
    TrainingLevel.ROUND: ROUND,
    TrainingLevel.UPDATE: UPDATE,
    TrainingLevel.WORKER: REPORT,
    TrainingLevel.CHECKPOINT: NOTE,
    TrainingLevel.PROGRESS: PROGRESS,
    TrainingLevel.CALIBRATE: REQUEST,
    TrainingLevel.RANGES: RANGES,
    TrainingLevel.MODEL: MODEL,
    TrainingLevel.MASK: MASK,
    TrainingLevel.RELAY: RELAY,
}
NAMED = dict.fromkeys((TrainingLevel.UPDATE, TrainingLevel.WORKER, TrainingLevel.RANGES, TrainingLevel.MASK), "pi")
LIMITS = {TrainingLevel.JOB: MAX_JOB_BYTES, TrainingLevel.ROUND: MAX_ROUND_BYTES, TrainingLevel.UPDATE: MAX_ROUND_BYTES}
LIMITS[TrainingLevel.RANGES] = MAX_RANGES_BYTES


def topic_of(level: TrainingLevel) -> str:
    return TOPICS.training("night", level.value, NAMED.get(level))


def encoded(message: TrainingMessage) -> bytes:
    return encode_progress(message) if isinstance(message, TrainingProgress) else encode_training(message)


def reason(topic: str, payload: bytes) -> str:
    event = decode(Outgoing(topic, payload), TOPICS)
    assert isinstance(event, Unreadable), event
    return event.reason


@pytest.mark.parametrize("level", list(TrainingLevel), ids=lambda level: level.value)
def test_each_message_is_read_back_and_no_part_of_it_is_one(level: TrainingLevel) -> None:
    payload = encoded(EXAMPLES[level])
    event = decode(Outgoing(topic_of(level), payload), TOPICS)
    assert isinstance(event, TrainingEvent) and event.message == EXAMPLES[level] and event.run == "night"
    for cut in range(1, len(payload)):
        assert isinstance(decode(Outgoing(topic_of(level), payload[:cut]), TOPICS), Unreadable)
    removed = decode(Outgoing(topic_of(level), b""), TOPICS)
    assert isinstance(removed, TrainingEvent) and removed.message is None
    limit = LIMITS.get(level, MAX_JSON_BYTES)
    assert f"expected at most {limit}" in reason(topic_of(level), bytes(limit + 1))


@pytest.mark.parametrize("level", list(TrainingLevel), ids=lambda level: level.value)
def test_keys_of_later_versions_are_passed_over(level: TrainingLevel) -> None:
    form = msgspec.json if level is TrainingLevel.PROGRESS else msgspec.msgpack
    known = form.decode(encoded(EXAMPLES[level])) | {"signature": "x", "later": [1]}
    event = decode(Outgoing(topic_of(level), form.encode(known)), TOPICS)
    assert isinstance(event, TrainingEvent) and event.message == EXAMPLES[level]


def test_a_masked_job_and_its_round_are_read_back() -> None:
    job = msgspec.structs.replace(JOB, mask=True, version=MASKED_VERSION)
    for level, message in (("job", job), ("round", msgspec.structs.replace(ROUND, mask=TERMS))):
        event = decode(Outgoing(TOPICS.training("night", level), encode_training(message)), TOPICS)
        assert isinstance(event, TrainingEvent) and event.message == message


def changed(level: TrainingLevel, **more: object) -> tuple[str, bytes]:
    return topic_of(level), encoded(msgspec.structs.replace(EXAMPLES[level], **more))


BAD = [
    (changed(TrainingLevel.JOB, version=2), "a job of version 2 came; expected 1"),
    (changed(TrainingLevel.JOB, mask=True), "a job of version 1 came; expected 2"),
    (changed(TrainingLevel.MASK, version=MASKED_VERSION), "a mask of version 2 came; expected 1"),
    (changed(TrainingLevel.MASK, worker="other"), "a mask of 'other' came on the topic of 'pi'"),
    (changed(TrainingLevel.MASK, keys=None), "a message of a masked sum with 0 of its three contents came"),
    (changed(TrainingLevel.MASK, told={"pi": bytes(66)}), "with 2 of its three contents came; expected one"),
    (changed(TrainingLevel.MASK, keys=(bytes(31), bytes(32))), "Expected `bytes` of length >= 32"),
    (changed(TrainingLevel.MASK, keys=None, told={"pi": bytes(67)}), "Expected `bytes` of length <= 66"),
    (changed(TrainingLevel.MASK, keys=None, shares={"a b": bytes(SEALED_BYTES)}), "Expected `str` matching regex"),
    (changed(TrainingLevel.RELAY, counted=("pi",)), "with 2 of its three contents came; expected one"),
    (changed(TrainingLevel.RELAY, shares={"pi": b""}), "Expected `bytes` of length >= 148"),
    (changed(TrainingLevel.RELAY, shares={f"n{i}": bytes(SEALED_BYTES) for i in range(513)}), "Expected `object` of"),
    (changed(TrainingLevel.ROUND, mask=msgspec.structs.replace(TERMS, devices=2)), "Expected `int` >= 3"),
    (changed(TrainingLevel.ROUND, mask=msgspec.structs.replace(TERMS, limit=0.0)), "Expected `float` > 0"),
    (changed(TrainingLevel.ROUND, sealed="aes"), "a round sealed with 'aes' came; this version opens none"),
    (changed(TrainingLevel.JOB, run="day"), "a job of run 'day' came on the topic of 'night'"),
    (changed(TrainingLevel.UPDATE, worker="other"), "an update of 'other' came on the topic of 'pi'"),
    (changed(TrainingLevel.UPDATE, samples=-1), "Expected `int` >= 0"),
    (changed(TrainingLevel.UPDATE, vector=VectorPart("f4", 1, b"", 2, 2)), "part 2 of 2 came"),
    (changed(TrainingLevel.UPDATE, vector=VectorPart("f4", 2**40, b"")), "Expected `int`"),
    (changed(TrainingLevel.UPDATE, vector=VectorPart("f4", 1, bytes(PART_BYTES + 1))), "Expected `bytes` of length"),
    (
        changed(TrainingLevel.ROUND, tasks={"pi": TrainingTask(1, (SampleRange(0, 5, 5),), 1.0)}),
        "a range without samples",
    ),
    (changed(TrainingLevel.ROUND, tasks={"pi": TrainingTask(1, (), 1.0)}), "Expected `array` of length"),
    (
        changed(TrainingLevel.ROUND, tasks={"pi": TrainingTask(1, (SampleRange(0, 4, 6), SampleRange(0, 0, 5)), 1.0)}),
        "the task of 'pi' has samples twice",
    ),
    (changed(TrainingLevel.ROUND, epoch=2**32), "Expected `int` <="),
    (changed(TrainingLevel.WORKER, samples=2**53), "Expected `int` <="),
    (changed(TrainingLevel.JOB, graph=TrainingFile("a" * 64 + "\n", 1)), "Expected `str` matching regex"),
    (changed(TrainingLevel.ROUND, tasks={"a b": TrainingTask(1, (), 1.0)}), "Expected `str` matching regex"),
    (changed(TrainingLevel.JOB, graph=TrainingFile("x", 1)), "Expected `str` matching regex"),
    (changed(TrainingLevel.JOB, batch=0), "Expected `int` >= 1"),
    (changed(TrainingLevel.MODEL, replaces=()), "Expected `array` of length >= 1"),
    (changed(TrainingLevel.MODEL, sealed="aes"), "sealed with 'aes' came"),
    (changed(TrainingLevel.CALIBRATE, blocks={"pi": ()}), "Expected `array` of length >= 1"),
    (changed(TrainingLevel.RANGES, worker="other"), "of 'other' came on the topic of 'pi'"),
    ((TOPICS.training("night", "jobs"), b"x"), "train/night/jobs came; expected one of job, round, update"),
    ((TOPICS.training("night", "update"), b"x"), "expected a worker after update"),
    ((TOPICS.training("night", "job", "pi"), b"x"), "expected no worker after job"),
    ((topic_of(TrainingLevel.JOB), b"\x91" * 5000), "what came is no job of a training"),
    ((topic_of(TrainingLevel.PROGRESS), b'{"run": "\xff"}'), "what came is no progress of a training"),
]


@pytest.mark.parametrize(("message", "text"), BAD)
def test_bad_messages_are_unreadable_for_a_reason(message: tuple[str, bytes], text: str) -> None:
    assert text in reason(*message)


TABLES = [
    (TrainingJob, "field of a job"),
    (Round, "field of a round"),
    (TrainingTask, "field of a task"),
    (VectorPart, "field of a part"),
    (Update, "field of an update"),
    (WorkerReport, "field of a worker"),
    (CheckpointNote, "field of a checkpoint"),
    (RangeRequest, "field of a calibration"),
    (RangeReport, "field of ranges"),
    (ModelNote, "field of a model"),
    (TrainingProgress, "field of the progress"),
    (WorkerProgress, "field of a worker in the progress"),
    (MaskTerms, "field of the terms"),
    (MaskPart, "field of a mask"),
    (MaskRelay, "field of a relay"),
]


@pytest.mark.parametrize(("struct", "head"), TABLES, ids=[case[0].__name__ for case in TABLES])
def test_every_field_is_on_the_page(struct: type[msgspec.Struct], head: str) -> None:
    (table,) = re.findall(rf"^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    names = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(names) == sorted(struct.__struct_fields__)


def test_the_update_on_the_page_is_one() -> None:
    block = re.search(r"<!-- golden: update -->\n```\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    assert bytes.fromhex(block[1]) == encode_training(UPDATE)
    assert "at most 1 MiB, a round or an update 2 MiB, all others 256 KiB" in PAGE
    assert (MAX_JOB_BYTES, MAX_ROUND_BYTES, PART_BYTES) == (2**20, 2**21, 2**20)
