"""The whole pipeline on this machine, for `demo` and `evaluate --mqtt`: broker, stages, sensors."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.timing import RESULT_SESSION_S

if TYPE_CHECKING:
    from har_edge.cluster.cluster import Cluster
    from har_edge.config.catalog import FoundModel
    from har_edge.config.task import Task


def check_client(args: argparse.Namespace) -> None:
    """Raise ConfigError, before any other work, where the MQTT client asked for is missing."""
    from har_edge.mqtt.connect import ClientLibrary, MqttVersion, choose_client

    choose_client(ClientLibrary(args.client or "auto"), MqttVersion(args.protocol or "5"))


@contextlib.contextmanager
def open_cluster(
    args: argparse.Namespace,
    found: FoundModel,
    *,
    stages: int,
    cuts: Sequence[int] | None = None,
    split: str | None = None,
    task: Task,
    reducers: Mapping[str, str] = MappingProxyType({}),
    delegate: str | None = None,
) -> Iterator[Cluster]:
    """Start a broker (unless --broker names one), cut the model, connect; on exit stop everything that was started."""
    from har_edge.cluster.cluster import Cluster
    from har_edge.config.pipeline_config import BrokerConfig
    from har_edge.mqtt.bus import Session
    from har_edge.runtime.slicing import prepare

    with contextlib.ExitStack() as stack:
        # Else SIGTERM ends this process alone, and leaves broker, stages and sensors behind.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _on_terminate))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-")))
        described = _start_broker(args, folder, stack)
        name = f"local-{secrets.token_hex(4)}"
        settings = BrokerConfig(url=args.broker, protocol=args.protocol or "5", client=args.client or "auto")
        pipeline = prepare(
            found.path,
            task,
            folder / "slices",
            stages=stages,
            cuts=cuts,
            split=split,
            name=name,
            broker=settings,
            reducers=reducers,
            delegate=delegate,
        )
        session = Session(f"{name}-watch", receive_max=4096, expiry_s=RESULT_SESSION_S)
        bus = options.connect(args, pipeline, session)
        stack.callback(bus.close, forget=True)
        address = options.find_address(args, pipeline.config.broker, pipeline.folder)
        cluster = Cluster(pipeline, address, described=described, connection=_broker_options(args), bus=bus)
        yield stack.enter_context(cluster)


def start_nodes(
    cluster: Cluster,
    args: argparse.Namespace,
    names: Sequence[str],
    *,
    speed: float | None,
    windows: int | None = None,
    batch: int = 1,
) -> None:
    """Start the stages, wait until they are ready, then one sensor a source, or one of all where these are grouped."""
    from har_edge.config.pipeline import check_batch
    from har_edge.protocol.topics import ALL_SOURCES

    check_batch(cluster.pipeline, batch)
    sensor = ["--no-notice", "--subjects", ",".join(names), "--speed", "max" if speed is None else str(speed)]
    sensor += ["--batch", str(batch)]
    if windows:
        sensor += ["--windows", str(windows)]
    if args.data:
        sensor += ["--data", str(args.data)]
    cluster.start_stages()
    pipeline = cluster.pipeline
    cluster.start_sensors([ALL_SOURCES] if pipeline.grouped else list(pipeline.task.inputs), sensor)


def _on_terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _start_broker(args: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> str:
    """Start a broker unless one was named; return what to call it."""
    if args.broker:
        return f"the one at {args.broker}"
    from har_edge.cluster.broker import start_broker
    from har_edge.mqtt.broker.embedded import LIMITS
    from har_edge.mqtt.broker.launcher import find_mosquitto

    if find_mosquitto() is None:
        print(f"Mosquitto is not installed: using the embedded broker; {LIMITS}")
    broker = start_broker(folder)
    stack.callback(broker.stop)
    args.broker = broker.address.url
    return broker.description


def _broker_options(args: argparse.Namespace) -> list[str]:
    """Return the options that make the other processes connect as this one does."""
    named = {
        "--broker": args.broker,
        "--username": args.username,
        "--password-file": args.password_file,
        "--ca-file": args.ca_file,
        "--cert-file": args.cert_file,
        "--key-file": args.key_file,
        "--client": args.client,
        "--protocol": args.protocol,
    }
    return [text for option, value in named.items() if value for text in (option, str(value))]
