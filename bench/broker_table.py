"""Measure every broker that is installed and write the tables of docs/reference/brokers.md.

    python bench/broker_table.py             # prints them
    python bench/broker_table.py --write     # puts them into docs/reference/brokers.md, between its marks

`har-edge doctor --broker-only` makes the same measurements at a broker that runs already.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from launchers import Kind, NotInstalled, launch

from har_edge.monitor.broker_behaviour import HEADER, promises, row
from har_edge.mqtt.address import Address
from har_edge.mqtt.broker.launcher import Mosquitto, start_mosquitto
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.clients.transport import OtherVersion, Unanswered
from har_edge.mqtt.connect import MqttVersion, open_bus, speaks_older_only
from har_edge.mqtt.measure.broker_probe import UNSUPPORTED_VERSION, probe_broker
from har_edge.mqtt.measure.conformance import BrokerMeasurement, measure

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "brokers.md"
PREFIX = "har/v1/measured/"
BACKLOG = 3000
# Settings for the advice of doctor: what of a backlog comes with each, beside Debian's own.
SETTINGS = (
    "",
    "max_inflight_messages 0",
    "max_queued_messages 100000",
    "max_inflight_messages 0\nmax_queued_messages 100000",
)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write them into {PAGE.name}")
    args = parser.parse_args()
    tables = {"brokers": "\n".join(_brokers()), "settings": "\n".join(_settings())}
    for name, table in tables.items():
        print(f"{name}:\n{table}\n")
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        for name, table in tables.items():
            page = _put(page, name, table)
        PAGE.write_text(page, encoding="utf-8")


def _put(page: str, name: str, table: str) -> str:
    """Return the page with a table between its marks."""
    begin, end = f"<!-- {name}: bench/broker_table.py -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{PAGE} lacks the marks of {name}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def _brokers() -> Iterator[str]:
    yield from _lines(HEADER)
    said: list[str] = []
    for kind in Kind:
        with tempfile.TemporaryDirectory(prefix="har-edge-table-") as folder:
            Path(folder).chmod(0o755)  # Mosquitto, started by root, becomes a user of its own
            try:
                with launch(kind, Path(folder)) as broker:
                    found = look(broker.addresses[-1])
            except NotInstalled as missing:
                said.append(f"| {kind.value} | not measured: {missing} |")
                continue
        yield "| " + " | ".join(row(broker.version, found)) + " |"
        said.append(f"| {broker.version} | {'; '.join(promises(found))} |")
    yield from ("", "| broker | what har_edge promises there |", "|---|---|", *said)


def look(address: Address) -> BrokerMeasurement:
    """Measure a broker with the protocol that nodes would speak with it."""
    try:
        protocol = MqttVersion.V311 if probe_broker(address).code == UNSUPPORTED_VERSION else MqttVersion.V5
    except (Unanswered, OtherVersion) as error:
        protocol = MqttVersion.V311 if speaks_older_only(address, error) else MqttVersion.V5
    return measure(
        lambda session: open_bus(address, session, protocol=protocol), PREFIX, mqtt5=protocol is MqttVersion.V5
    )


def _settings() -> Iterator[str]:
    """Yield what of a backlog comes to a client that was away, and to one that is there and acknowledges nothing."""
    yield from _lines(("added to Debian's settings", f"away: kept of {BACKLOG}", f"slow: kept of {BACKLOG}"))
    for extra in SETTINGS:
        with tempfile.TemporaryDirectory(prefix="har-edge-table-") as folder:
            Path(folder).chmod(0o755)
            config = Path(folder) / "table.conf"
            config.write_text(f"allow_anonymous true\n{extra}\n")
            with start_mosquitto(config, Path(folder) / "data") as broker:
                words = " and ".join(f"`{line}`" for line in extra.splitlines()) or "nothing"
                yield f"| {words} | {_away(broker)} | {_slow(broker)} |"


def _away(broker: Mosquitto) -> int:
    name = Session("away", expiry_s=60)
    _ready(broker, name).close()
    _send(broker)
    return len(_take(open_bus(broker.address, name)))


def _slow(broker: Mosquitto) -> int:
    bus = _ready(broker, Session("slow", expiry_s=60))
    _send(broker)
    return len(_take(bus))


def _ready(broker: Mosquitto, session: Session) -> Bus:
    bus = open_bus(broker.address, session)
    bus.subscribe(["backlog"])
    while not bus.connected:
        bus.poll(0.02)
    return bus


def _send(broker: Mosquitto) -> None:
    sender = open_bus(broker.address, Session("sender", clean_start=True))
    for number in range(BACKLOG):
        sender.publish("backlog", b"%d" % number)
    while sender.unsent:
        sender.poll(0.02)
    sender.close()


def _take(bus: Bus) -> set[bytes]:
    came: set[bytes] = set()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        for delivery in bus.poll(0.05):
            bus.acknowledge(delivery)
            came.add(delivery.payload)
            deadline = time.monotonic() + 2
    bus.close(forget=True)
    return came


def _lines(cells: Sequence[str]) -> tuple[str, str]:
    return "| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)


if __name__ == "__main__":
    main()
