"""Brokers on emulated devices, each for what the stages there send to others."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from har_edge.config.pipeline import Pipeline, load_pipeline
from har_edge.config.pipeline_config import FILE_NAME
from har_edge.emulation import cgroups
from har_edge.emulation.testbed import Testbed
from har_edge.errors import ConfigError
from har_edge.mqtt.broker.launcher import start_mosquitto
from har_edge.resources import find_folder

PORT = 1884


@contextlib.contextmanager
def carry_brokers(testbed: Testbed, pipeline: Pipeline, devices: Sequence[str]) -> Iterator[Pipeline]:
    """Run a Mosquitto on the device of each stage that sends to others; yield the pipeline that sends through them.

    The pipeline is a copy under another name, so that both may run side by side. Stage i runs on the i-th device. A
    broker takes its device's link and share of the processor, as on a real one.
    Raises ConfigError where the pipeline names brokers already.
    """
    if pipeline.flows:
        raise ConfigError(f"{pipeline.folder / FILE_NAME} names brokers already; expected a folder without [flows]")
    senders = [index for index in range(len(pipeline.manifest.slices)) if pipeline.wiring(index).flows]
    hosts = {name: testbed.emulation.host(name) for name in dict.fromkeys(devices[index] for index in senders)}
    base = testbed.emulation.folder / "own-brokers"
    with contextlib.ExitStack() as stack:
        for name, host in hosts.items():
            with testbed.inside(name):
                broker = start_mosquitto(_config(), base / name, host=host.address, port=PORT)
            stack.callback(broker.stop)
            cgroups.attach(testbed.emulation.groups_of(name), broker.process.pid)
        flows = {str(index): f"mqtt://{hosts[devices[index]].address}:{PORT}" for index in senders}
        yield _rerouted(pipeline, base / f"{pipeline.config.name}-own", flows)


def _config() -> Path:
    return find_folder("brokers") / "mosquitto.conf"


def _rerouted(pipeline: Pipeline, folder: Path, flows: dict[str, str]) -> Pipeline:
    """Return a copy of a pipeline in another folder and under another name, whose file names these brokers."""
    shutil.copytree(pipeline.folder, folder)
    lines = [f'"{level}" = "{url}"' for level, url in flows.items()]
    file, name = folder / FILE_NAME, pipeline.config.name
    text = file.read_text(encoding="utf-8").replace(f'name = "{name}"', f'name = "{name}-own"', 1)
    file.write_text("\n".join([text, "[flows]", *lines, ""]), encoding="utf-8")
    return load_pipeline(folder)
