"""What roles need, beside the access list that brokers/README.md tells to write."""

from __future__ import annotations

import re

import pytest

from har_edge.monitor.permissions import PUBLISHES, READS, Role, _harmless, can_see, permissions_of
from har_edge.mqtt.memory import matches
from har_edge.protocol.topics import Kind, Topics
from har_edge.resources import find_folder

TOPICS = Topics("har", "har")


def listed(role: Role) -> list[tuple[str, str]]:
    """Return the rights of a user in the access list of the README: word and filter."""
    text = (find_folder("brokers") / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^ *user {role.value}\n((?: *topic .*\n)+)", text, re.MULTILINE)
    assert found is not None, role
    return [(right, pattern) for right, pattern in re.findall(r"topic (\w+) (\S+)", found[1])]


@pytest.mark.parametrize("role", list(Role))
def test_the_access_list_permits_what_each_role_needs_and_nobody_else_the_plan(role: Role) -> None:
    rights = listed(role)
    for right in permissions_of({role}):
        topic, _ = _harmless(TOPICS, right.kind)
        words = {word for word, pattern in rights if matches(pattern, topic)}
        assert not right.publishes or words & {"write", "readwrite"}, (role, right.kind)
        assert not right.reads or words & {"read", "readwrite"}, (role, right.kind)
    writers = {word for word, pattern in rights if matches(pattern, TOPICS.plan())}
    assert bool(writers & {"write", "readwrite"}) == (role is Role.COORDINATOR)


def test_all_roles_together_need_every_kind_of_topic_both_ways() -> None:
    # Access lists of before know nothing of training and signatures: doctor asks for none of it.
    training = {Kind.TRAINING, Kind.TRAINING_FILE, Kind.TRAINING_CHUNK, Kind.SIGNATURE}
    assert {right.kind for right in permissions_of(Role) if right.publishes and right.reads} == set(Kind) - training
    assert permissions_of([]) == [] and set(PUBLISHES) == set(READS) == set(Role)


def test_only_together_may_two_roles_see_more() -> None:
    assert can_see({Role.OPERATOR}, (Kind.RESULT, Kind.CHUNK), (Kind.WINDOW,))
    assert not can_see({Role.WATCHER}, (Kind.CHUNK,)) and not can_see({Role.NODE}, (), (Kind.WINDOW,))
    assert can_see({Role.NODE, Role.SENSOR}, (Kind.CHUNK,), (Kind.WINDOW,)) and not can_see((), (Kind.PLAN,))


@pytest.mark.parametrize("role", list(Role))
def test_what_is_advised_is_a_line_of_the_access_list_or_less(role: Role) -> None:
    permitted = {(right, pattern.replace("/+/", "/har/", 1)) for right, pattern in listed(role)}
    for right in permissions_of({role}):
        _, word, pattern = right.line(TOPICS).split()
        assert {(word, pattern), ("readwrite", pattern)} & permitted, (role, right.line(TOPICS))


def test_a_stage_reads_windows_and_does_not_send_them() -> None:
    lines = {right.kind: right.line(TOPICS) for right in permissions_of({Role.STAGE})}
    assert lines == {
        Kind.WINDOW: "topic read har/v1/har/window/#",
        Kind.ACTIVATION: "topic readwrite har/v1/har/act/#",
        Kind.RESULT: "topic write har/v1/har/result/+",
        Kind.STATUS: "topic readwrite har/v1/har/node/+/status",
    }
