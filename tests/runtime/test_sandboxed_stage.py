"""A stage whose slice runs in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from har_edge.errors import MessageError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sandbox import SandboxedInterpreter
from har_edge.mqtt.bus import Delivery
from har_edge.runtime.build import build_sensor, build_setup
from har_edge.runtime.stage.shard import make_stage
from tests.runtime.rig import result_of, windows_of
from tests.runtime.test_delegate import cut


def test_slices_in_sandboxes_give_the_same_results_and_survive_the_end_of_their_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[SandboxedInterpreter] = []
    begin = SandboxedInterpreter.__init__
    monkeypatch.setattr(
        SandboxedInterpreter,
        "__init__",
        lambda self, *args, **named: (started.append(self), begin(self, *args, **named))[1],
    )
    pipeline = cut(tmp_path)
    caplog.set_level(logging.INFO)
    sensor = build_sensor(pipeline, list(pipeline.task.inputs), combine=True)
    answers = []
    for boxed in (False, True):
        stages = [
            make_stage(build_setup(pipeline, index, sandbox=boxed), clock=lambda: 0.0, monotonic=time.monotonic)
            for index in range(2)
        ]
        found = []
        for number, window in enumerate(windows_of(pipeline, "s", 3)):
            if boxed and number == 1:
                os.kill(started[0]._process._popen.pid, signal.SIGSEGV)
            outgoing = list(sensor.handle([window], [float(number)]))
            for stage in stages:
                deliveries = [Delivery(one.topic, one.payload, (1, number)) for one in outgoing]
                outgoing = [made for one in deliveries for made in stage.handle(one)]
            found += [(one.seq, one.label, one.confidence) for one in result_of(outgoing)]
        answers.append(found)
    assert answers[0] == answers[1] and [seq for seq, _, _ in answers[0]] == [0, 1, 2]
    assert len(started) == 2 and "runs in a process of its own: memory of" in caplog.text
    assert "the process that runs it failed: SIGSEGV ended it; starting another one" in caplog.text
    for runner in started:
        runner.close()


def test_values_that_end_the_process_cost_their_window_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a MessageError does: it is dropped, counted and acknowledged, and the next window is answered."""
    pipeline = cut(tmp_path)
    setup = build_setup(pipeline, 0, sandbox=True)
    runner = setup.run.__self__  # type: ignore[attr-defined]
    good = {port.name: np.ones((1, *port.shape[1:]), port.dtype) for port in runner.inputs}
    expected = Interpreter((tmp_path / pipeline.manifest.slices[0].file).read_bytes()).run(good)
    run = runner._run

    def poisoned(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if any((array == 13).all() for array in values.values()):
            os.kill(
                runner._process._popen.pid if runner._process else runner._start() and runner._process._popen.pid, 11
            )
        return run(values)

    monkeypatch.setattr(SandboxedInterpreter, "_run", lambda self, values: poisoned(values))
    bad = {name: np.full_like(array, 13) for name, array in good.items()}
    for _ in range(2):
        with pytest.raises(MessageError, match="the model failed twice with these values: SIGSEGV ended it"):
            setup.run(bad)
        for name, array in setup.run(good).items():
            np.testing.assert_array_equal(array, expected[name])
    runner.close()
