"""A node takes part in the trainings that it hears of, each once, and ends those that are taken away."""

from __future__ import annotations

import msgspec

from har_edge.mqtt.bus import Delivery
from har_edge.protocol.events import decode
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import TrainingFile, TrainingJob, encode_training
from har_edge.runtime.node.trainings import MAX_TRAININGS, Trainings

TOPICS = Topics("har", "har")
FILE = TrainingFile("a" * 64, 1)
JOB = TrainingJob(run="r", author="one", started=1.7e9, graph=FILE, spec=FILE, batch=8, parameters=4, shape=(2,))


class Handle:
    """Notes what is asked of it."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.said, self.alive = job, list[str](), True
        self.after: object = None

    def start(self, after: object = None) -> None:
        self.said.append("start")
        self.after = after

    def stop(self) -> None:
        self.said.append("stop")

    def join(self, timeout_s: float) -> None:
        self.alive = False


class Node:
    """The trainings of a node, and every handle that it made."""

    def __init__(self) -> None:
        self.made: list[Handle] = []
        self.trainings = Trainings(TOPICS, self._start)

    def _start(self, job: TrainingJob) -> Handle:
        self.made.append(Handle(job))
        return self.made[-1]

    def hear(self, run: str, payload: bytes) -> None:
        self.trainings.handle(decode(Delivery(TOPICS.training(run, "job"), payload, (0, 0)), TOPICS))


def test_a_job_starts_once_and_ends_when_it_is_taken_away() -> None:
    node = Node()
    node.hear("r", encode_training(JOB))
    node.hear("r", encode_training(JOB))  # after a reconnection the broker sends what is retained again
    assert [one.said for one in node.made] == [["start"]] and list(node.trainings.handles) == ["r"]
    node.hear("r", b"")
    assert node.made[0].said == ["start", "stop"] and node.trainings.handles == {}


def test_another_server_of_the_run_begins_it_anew() -> None:
    node = Node()
    node.hear("r", encode_training(JOB))
    node.hear("r", encode_training(msgspec.structs.replace(JOB, author="two")))
    assert [one.said for one in node.made] == [["start", "stop"], ["start"]]
    assert node.made[1].job.author == "two" and node.made[1].after is node.made[0]


def test_a_run_begins_anew_only_when_its_last_thread_has_ended() -> None:
    node = Node()
    node.hear("r", encode_training(JOB))
    node.hear("r", b"")
    node.hear("other", encode_training(msgspec.structs.replace(JOB, run="other")))
    node.hear("r", encode_training(msgspec.structs.replace(JOB, author="two")))
    assert [one.after for one in node.made] == [None, None, node.made[0]]
    node.made[2].alive = False
    node.hear("r", b"")
    node.hear("r", encode_training(msgspec.structs.replace(JOB, author="three")))
    assert node.made[3].after is node.made[0]  # the only one that still computes
    node.made[0].alive = False
    node.hear("r", encode_training(msgspec.structs.replace(JOB, author="four")))
    assert node.made[4].after is node.made[3]


def test_what_is_no_job_harms_nothing_and_too_many_are_left_out() -> None:
    node = Node()
    node.hear("r", b"no job")
    assert node.made == []
    for number in range(MAX_TRAININGS + 1):
        node.hear(f"r{number}", encode_training(msgspec.structs.replace(JOB, run=f"r{number}")))
    assert len(node.made) == MAX_TRAININGS
    node.trainings.leave(1.0)
    assert all(one.said == ["start", "stop"] and not one.alive for one in node.made)


def test_the_filter_takes_jobs_of_every_run() -> None:
    assert Node().trainings.filters == ["har/v1/har/train/+/job", "har/v1/har/train/+/split"]
