"""Shards on emulated devices that send each other rows through brokers on these devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from har_edge.config.catalog import find_model
from har_edge.emulation.limits import BROKER, Device, Layout, Limits
from har_edge.emulation.testbed import Testbed
from har_edge.errors import ConfigError
from har_edge.experiments.emulation import run_stages
from har_edge.experiments.model_under_test import make_windows
from har_edge.experiments.own_brokers import PORT, carry_brokers
from har_edge.runtime.slicing import prepare
from tests.emulation.machine import require_machine


def test_rows_do_not_cross_the_link_of_the_central_broker(tmp_path: Path) -> None:
    require_machine()
    found = find_model("int8")
    split = "rows:0-3@2 whole:3-9@2 rows:9-11@2 whole:11-17@2"
    pipeline = prepare(found.path, found.entry.task, tmp_path / "slices", stages=2, split=split)
    devices = ["device-1", "device-2"]
    layout = Layout(tuple(Device(name, Limits(cpu=0.5)) for name in devices))
    codes = make_windows(pipeline, 1)[0]
    with Testbed(layout) as testbed:
        sent = []
        with carry_brokers(testbed, pipeline, devices) as own:
            hosts = [testbed.emulation.host(name).address for name in devices]
            assert own.flows == {str(index): f"mqtt://{host}:{PORT}" for index, host in enumerate(hosts)}
            assert own.config.name == f"{pipeline.config.name}-own" and not pipeline.flows
            with pytest.raises(ConfigError, match="names brokers already"), carry_brokers(testbed, own, devices):
                pass
            for one in (pipeline, own):
                with run_stages(testbed, one, devices) as stages:
                    stages.ask(codes)
                    before = _sent(testbed)
                    for _ in range(20):
                        stages.ask(codes)
                    sent.append(_sent(testbed) - before)
        central, away = sent
        assert away < 0.9 * central


def _sent(testbed: Testbed) -> int:
    """Return the bytes that have left the central broker's host."""
    process = testbed.run(BROKER, ["cat", "/proc/net/dev"], stdout=-1)
    text = process.communicate()[0].decode()
    return sum(int(line.split()[9]) for line in text.splitlines()[2:] if not line.lstrip().startswith("lo:"))
