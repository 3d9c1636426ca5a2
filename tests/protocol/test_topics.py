"""Topic names: built and read in one place, as docs/reference/wire.md has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.errors import ConfigError, MessageError
from har_edge.mqtt.memory import matches
from har_edge.protocol.split_training import SplitLevel
from har_edge.protocol.topics import (
    MAX_ID_LENGTH,
    RETAINED,
    RETAINED_OF_TRAINING,
    Kind,
    Topics,
    TrainingTopics,
    check_id,
    check_node_name,
    is_id,
)
from har_edge.protocol.training import TrainingLevel

TOPICS, TRAINING = Topics("har", "demo"), TrainingTopics("har", "demo")
ids = st.from_regex(r"[a-zA-Z0-9_-]{1,128}", fullmatch=True)

BUILT = [
    (TOPICS.window("subject7", "chest"), "har/v1/demo/window/subject7/chest", Kind.WINDOW, ("subject7", "chest")),
    (TOPICS.activation(3, 0, "s"), "har/v1/demo/act/3/0/s", Kind.ACTIVATION, ("3", "0", "s")),
    (TOPICS.result("s"), "har/v1/demo/result/s", Kind.RESULT, ("s",)),
    (TOPICS.status("stage-0"), "har/v1/demo/node/stage-0/status", Kind.STATUS, ("stage-0", "status")),
    (TOPICS.heartbeat("pi"), "har/v1/demo/beat/pi", Kind.HEARTBEAT, ("pi",)),
    (TOPICS.plan(), "har/v1/demo/plan", Kind.PLAN, ()),
    (TOPICS.slice("ab12"), "har/v1/demo/slice/ab12", Kind.SLICE, ("ab12",)),
    (TOPICS.chunk("ab12", 3), "har/v1/demo/chunk/ab12/3", Kind.CHUNK, ("ab12", "3")),
    (TRAINING.slice("ab12"), "har/v1/demo/file/ab12", Kind.TRAINING_FILE, ("ab12",)),
    (TRAINING.chunk("ab12", 3), "har/v1/demo/part/ab12/3", Kind.TRAINING_CHUNK, ("ab12", "3")),
]


@pytest.mark.parametrize(("built", "text", "kind", "levels"), BUILT, ids=[case[2].value for case in BUILT])
def test_topics_are_built_and_read_back(built: str, text: str, kind: Kind, levels: tuple[str, ...]) -> None:
    assert built == text
    read = TOPICS.read(built)
    assert (read.kind, read.levels, read.retained) == (kind, levels, kind in RETAINED)


def test_the_page_lists_every_kind_with_its_retain_flag() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "wire.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(window|act|result|node|beat|plan|signature|slice|chunk|file|part)"
        r"[^|]*\|[^|]*\|[^|]*\| (\d) +\| (yes|no) ",
        page,
        re.MULTILINE,
    )
    assert {kind: (qos, retained) for kind, qos, retained in rows} == {
        kind.value: ("1", "yes" if kind in RETAINED else "no") for kind in Kind if kind is not Kind.TRAINING
    }
    rows = re.findall(r"^\| `train/<run>/(\w+)[^|]*\|[^|]*\|[^|]*\| (\d) +\| (yes|no) ", page, re.MULTILINE)
    assert {level: (qos, retained) for level, qos, retained in rows} == {
        level.value: ("1", "yes" if level.value in RETAINED_OF_TRAINING else "no")
        for level in (*TrainingLevel, *SplitLevel)
    }


@pytest.mark.parametrize("what", [*TrainingLevel, *SplitLevel], ids=lambda what: what.value)
def test_topics_of_a_training_are_built_and_read_back(what: TrainingLevel | SplitLevel) -> None:
    for worker in (None, "pi"):
        read = TOPICS.read(TOPICS.training("night", what.value, worker))
        assert (read.kind, read.levels) == (Kind.TRAINING, ("night", what.value, *([worker] if worker else [])))
        assert read.retained is (what.value in RETAINED_OF_TRAINING)
    assert TOPICS.training("+", "job") == "har/v1/demo/train/+/job"


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        ("har/v1/other/plan", "topic 'har/v1/other/plan' came; expected one below 'har/v1/demo/'"),
        ("har/v2/demo/plan", "expected one below 'har/v1/demo/'"),
        ("", "topic '' came"),
        ("har/v1/demo", "expected one below"),
        (
            "har/v1/demo/",
            "has the kind ''; expected one of window, act, result, node, beat, plan, signature, slice, chunk, train",
        ),
        ("har/v1/demo/windows/s/c", "has the kind 'windows'"),
        ("har/v1/demo/window/s", "is malformed; expected 2 ids after 'window'"),
        ("har/v1/demo/window/s/c/d", "is malformed; expected 2 ids after 'window'"),
        ("har/v1/demo/window//c", "is malformed"),
        ("har/v1/demo/window/a b/c", "is malformed"),
        ("har/v1/demo/window/ä/c", "is malformed"),
        ("har/v1/demo/train/r", "is malformed; expected 2 or 3 ids after 'train'"),
        ("har/v1/demo/plan/x", "expected 0 ids after 'plan'"),
        ("har/v1/demo/result/" + "x" * (MAX_ID_LENGTH + 1), "expected 1 ids after 'result'"),
    ],
)
def test_other_topics_are_refused(topic: str, text: str) -> None:
    with pytest.raises(MessageError, match=re.escape(text)):
        TOPICS.read(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "ä", "a.b", "a\n", "x" * 129, "$SYS"])
def test_names_that_cannot_stand_in_a_topic(name: str) -> None:
    assert not is_id(name)
    with pytest.raises(
        ConfigError, match=r"stream is .*; expected 1 to 128 letters, digits, '_' or '-'; choose another"
    ):
        check_id("stream", name)
    with pytest.raises(ConfigError, match="base of the topics is"):
        Topics(name, "demo")
    with pytest.raises(ConfigError, match="name of the pipeline is"):
        Topics("har", name)


@given(ids, ids, ids, ids)
def test_every_id_survives(base: str, pipeline: str, stream: str, source: str) -> None:
    topics = Topics(base, pipeline)
    assert topics.read(topics.window(stream, source)).levels == (stream, source)


@given(ids, ids)
def test_filters_take_their_own_kind_only(stream: str, source: str) -> None:
    filters = {
        Kind.WINDOW: TOPICS.window("+", "+"),
        Kind.ACTIVATION: TOPICS.activation("+", "+", "+"),
        Kind.RESULT: TOPICS.result("+"),
        Kind.STATUS: TOPICS.status("+"),
        Kind.PLAN: TOPICS.plan(),
        Kind.SLICE: TOPICS.slice("+"),
    }
    topics = {
        Kind.WINDOW: TOPICS.window(stream, source),
        Kind.ACTIVATION: TOPICS.activation(1, 2, stream),
        Kind.RESULT: TOPICS.result(stream),
        Kind.STATUS: TOPICS.status(source),
        Kind.PLAN: TOPICS.plan(),
        Kind.SLICE: TOPICS.slice(stream),
    }
    for kind, topic in topics.items():
        assert [taken for taken, text in filters.items() if matches(text, topic)] == [kind]


def test_a_node_may_have_any_name_but_that_of_the_coordinator() -> None:
    assert check_node_name("coordinator-1") == "coordinator-1"
    with pytest.raises(ConfigError, match="'coordinator', which is that of the coordinator; choose another"):
        check_node_name("coordinator")
    with pytest.raises(ConfigError, match="name of the node is 'a/b'; expected 1 to 128"):
        check_node_name("a/b")
