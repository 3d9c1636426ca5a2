"""A probe through a deployment: a broker in memory, clocks of its own; for the rest see tests/cli/test_status.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from har_edge.config.pipeline import Pipeline
from har_edge.monitor.observer import Observer
from har_edge.monitor.probe_run import MOST_SWITCHES, ProbeRun, last_seen
from har_edge.mqtt.bus import Delivery, Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol import wire
from har_edge.protocol.deployment import VERSION, Deployment, Generation, Placement
from har_edge.protocol.topics import PROBE
from har_edge.runtime.artifact_store import Store
from tests.runtime.deployed import EPOCH, TOPICS, Said, generation, report

SAID = Said()
WALL = 1_700_000_000.0


class ProbeScenario:
    """A trial on a broker in memory, and somebody who sees the windows that it sends."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        broker = MemoryBroker()
        self.bus, self.other = broker.connect(Session("trial")), broker.connect(Session("stages"))
        self.observer, self.pipeline = Observer(TOPICS, 0.0), pipeline
        self.trial = ProbeRun(self.bus, TOPICS, self.observer, Store(folder), broker.connect, 5.0)
        self.bus.subscribe(self.observer.filters)
        self.other.subscribe([TOPICS.window("+", "+")])

    def plan(self, *epochs: int, current: int, node: str = "a") -> None:
        placements = tuple(Placement(k, node) for k in range(len(self.pipeline.manifest.slices)))
        generations = tuple(Generation(epoch, self.pipeline.manifest, placements) for epoch in epochs)
        deployed = Deployment(VERSION, 1, "c", 1.0, self.pipeline.config, current, {}, generations)
        self.observer.handle(SAID.plan(deployed), 0.0, WALL)

    def windows(self) -> list[wire.Message]:
        """Return the windows that came since the last look."""
        self.bus.poll(0.0)
        return [wire.decode(one.payload) for one in self.other.poll(0.0)]

    def answer(self, stream: str) -> Delivery:
        return SAID.result(0, WALL, 0.1, stream)


@pytest.fixture
def scenario(cut, tmp_path: Path) -> ProbeScenario:
    return ProbeScenario(cut("int8", 4, 9), tmp_path)


def test_the_answer_to_the_probe_ends_it_and_no_other_does(scenario: ProbeScenario) -> None:
    scenario.plan(EPOCH, current=EPOCH)
    scenario.trial.send(1.0, WALL)
    sent = scenario.windows()
    assert {(one.epoch, one.seq) for one in sent} == {(EPOCH, 0)} and len(sent) == len(scenario.pipeline.task.inputs)
    (stream,) = {one.stream for one in sent}
    assert stream.startswith(PROBE)
    scenario.trial.handle(scenario.answer("subject1"), 1.1)
    scenario.trial.handle(scenario.answer(f"{PROBE}other"), 1.1)
    assert scenario.trial.under_way and scenario.trial.view is None
    scenario.trial.handle(scenario.answer(stream), 1.25)
    view = scenario.trial.view
    assert view is not None and view.answered and view.seconds == pytest.approx(0.25) and not scenario.trial.under_way


def test_another_probe_follows_when_sensors_switch_but_not_for_ever(scenario: ProbeScenario) -> None:
    scenario.plan(EPOCH, current=EPOCH)
    scenario.trial.send(1.0, WALL)
    scenario.windows()
    for number in range(1, MOST_SWITCHES + 1):
        scenario.plan(EPOCH + number, current=EPOCH + number)
        scenario.trial.tick(1.0 + number, WALL)
        assert {one.epoch for one in scenario.windows()} == {EPOCH + number}
    scenario.plan(EPOCH + 9, current=EPOCH + 9)
    scenario.trial.tick(9.0, WALL)
    assert scenario.windows() == [] and scenario.trial.view is not None
    assert scenario.trial.view.where == "its epoch has gone from the plan"


def test_without_an_epoch_it_says_what_is_awaited(scenario: ProbeScenario) -> None:
    scenario.trial.send(1.0, WALL)
    assert scenario.trial.view is not None and "there is no plan" in scenario.trial.view.where
    scenario.plan(EPOCH, current=0)
    scenario.trial.send(1.0, WALL)
    assert scenario.trial.view.where == f"epoch {EPOCH} gets ready: stage 0 on a: that node does not answer"


def test_a_probe_that_nobody_answers_is_given_up_in_time(scenario: ProbeScenario) -> None:
    scenario.plan(EPOCH, current=EPOCH)
    scenario.trial.send(1.0, WALL)
    scenario.windows()
    scenario.trial.tick(5.9, WALL)
    assert scenario.trial.under_way
    scenario.trial.tick(6.1, WALL)
    assert scenario.trial.view is not None and not scenario.trial.view.answered


def test_the_last_stage_that_handled_a_window_is_named() -> None:
    placed = generation("a", "b", "c")
    keys = [(name, EPOCH, stage, 0) for stage, name in enumerate("abc")]
    before = dict(zip(keys, (5, 5, 5), strict=True))

    def seen(*windows: int) -> str:
        told = {key: report(key[2], windows=count, waiting=1) for key, count in zip(keys, windows, strict=True)}
        return last_seen(placed, before, told)

    assert seen(6, 5, 5).startswith(
        "stage 0 on a was the last to handle a window; stage 1 on b handled none since: 0 mess"
    )
    assert "1 windows wait for parts" in seen(6, 5, 5)
    assert seen(5, 5, 5).startswith("no stage handled a window; stage 0 on a handled none since")
    assert seen(6, 6, 6) == "stage 2 on c handled windows, but no answer came: see whether it may publish results"
