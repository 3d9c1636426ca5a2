"""brokers/secure.conf with the files that brokers/README.md tells how to make, by the commands that stand there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from har_edge.cli.main import main
from har_edge.errors import BrokerError, ConfigError
from har_edge.mqtt.address import Address, neighbour_address, read_address
from har_edge.mqtt.broker.launcher import Mosquitto, find_mosquitto, start_mosquitto
from har_edge.mqtt.broker.own import OwnBrokerKind, OwnBrokerSettings, start_own
from har_edge.mqtt.bus import Bus, Delivery, PublishOutcome, Session, Will
from har_edge.mqtt.certificate import common_name
from har_edge.mqtt.clients.transport import FinalRefusal
from har_edge.mqtt.connect import ClientLibrary, open_bus
from har_edge.protocol.artifacts import MAX_CHUNK_BYTES, MAX_CHUNKS
from har_edge.protocol.topics import Topics
from har_edge.resources import find_folder
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.artifacts import clear, encode_chunks, fetch

BROKERS = find_folder("brokers")
TOPICS = Topics("har", "har")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the README's commands leave behind."""
    missing = [tool for tool in ("openssl", "mosquitto_passwd") if shutil.which(tool) is None]
    if missing or find_mosquitto() is None:
        pytest.skip(f"needs Mosquitto and openssl; missing: {missing}")
    folder = tmp_path_factory.mktemp("secure")
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    text = (BROKERS / "README.md").read_text(encoding="utf-8")
    blocks = [
        block.replace("\n   ", "\n") for block in re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    ]
    script = "set -eu\n" + "\n".join(re.sub(r"^   ", "", block) for block in blocks)
    environment = os.environ | {"BROKER_NAME": "localhost", "BROKER_IP": "127.0.0.1"}
    subprocess.run(["bash", "-c", script], cwd=folder, env=environment, check=True, capture_output=True, timeout=60)
    for file in folder.iterdir():
        file.chmod(0o644)  # the broker of this test may run as another user
    return folder


def start(secrets: Path, directory: Path, extra: str = "") -> Mosquitto:
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    config = directory / "secure.conf"
    shipped = (BROKERS / "secure.conf").read_text(encoding="utf-8")
    config.write_text(shipped.replace("/etc/har-edge", str(secrets)), encoding="utf-8")
    return start_mosquitto(config, directory, extra=extra)


@pytest.fixture(scope="module")
def broker(secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with start(secrets, tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(params=[ClientLibrary.PAHO, ClientLibrary.NATIVE], ids=lambda client: client.value)
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Bus]]:
    if request.param is ClientLibrary.NATIVE:
        pytest.importorskip("mqtt5")
    buses: list[Bus] = []

    def connect(address: Address, name: str, **options: object) -> Bus:
        buses.append(open_bus(address, Session(f"{request.param.value}-{name}", **options), request.param))  # type: ignore[arg-type]
        return buses[-1]

    yield connect
    for bus in buses:
        bus.close(forget=True)


def address(broker: Mosquitto, secrets: Path, role: str, host: str = "127.0.0.1") -> Address:
    url = f"mqtts://{host}:{broker.address.port}"
    password = secrets / f"{role}.password"
    return read_address(url, username=role, password_file=password, ca_file=secrets / "ca.crt")


def until(done: Callable[[], object], *buses: Bus, seconds: float = 10.0) -> list[Delivery]:
    came: list[Delivery] = []
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not done after {seconds} s; came: {came}"
        for bus in buses:
            came += bus.poll(0.01)
    return came


def publish(bus: Bus, topic: str, *others: Bus) -> tuple[PublishOutcome, list[Delivery]]:
    outcomes: list[PublishOutcome] = []
    bus.publish(topic, topic.encode(), on_outcome=outcomes.append)
    came = until(lambda: outcomes, bus, *others)
    return outcomes[0], came


def test_every_role_can_do_its_work(broker: Mosquitto, secrets: Path, connect: Callable[..., Bus]) -> None:
    sensor, stage, watcher = (connect(address(broker, secrets, role), role) for role in ("sensor", "stage", "watcher"))
    stage.subscribe([TOPICS.window("+", "chest"), TOPICS.activation(1, 0, "+"), TOPICS.status("stage-0")])
    watcher.subscribe([TOPICS.result("+"), TOPICS.status("+")])
    sensor.subscribe([TOPICS.result("+"), TOPICS.status("sensor-chest")])
    until(lambda: stage.connected and watcher.connected and sensor.connected, stage, watcher, sensor)
    names = {id(sensor): "sensor", id(stage): "stage", id(watcher): "watcher"}
    sent = [
        (sensor, TOPICS.window("subject7", "chest"), {"stage"}),
        (stage, TOPICS.activation(1, 0, "subject7"), {"stage"}),
        (stage, TOPICS.result("subject7"), {"watcher", "sensor"}),
        (stage, TOPICS.status("stage-0"), {"watcher", "stage"}),
        (sensor, TOPICS.status("sensor-chest"), {"watcher", "sensor"}),
    ]
    got: dict[str, set[str]] = {}
    for bus, topic, readers in sent:
        outcome, came = publish(bus, topic)
        assert outcome is PublishOutcome.ACKED
        if came:
            got[topic] = {names[id(bus)]}
        deadline = time.monotonic() + 5
        while got.get(topic, set()) != readers and time.monotonic() < deadline:
            for reader in (sensor, stage, watcher):
                for delivery in reader.poll(0.01):
                    got.setdefault(delivery.topic, set()).add(names[id(reader)])
        assert got[topic] == readers


# What each role of a deployment takes and gives: its filters, and its topics with the roles that read them.
NAME = "0123456789abcdef" * 4
FILTERS = {
    "sensor": [TOPICS.result("+"), TOPICS.status("sensor-1"), TOPICS.plan(), TOPICS.slice(NAME)],
    "node": [
        f"$share/9-0/{TOPICS.window('+', 'chest')}",
        f"$share/9-1/{TOPICS.activation(9, 0, '+')}",
        TOPICS.status("pi-1"),
        TOPICS.heartbeat("pi-1"),
        TOPICS.plan(),
        TOPICS.slice(NAME),
        TOPICS.chunk(NAME, "+"),
    ],
    "coordinator": [TOPICS.status("+"), TOPICS.heartbeat("+"), TOPICS.plan(), TOPICS.slice("+"), TOPICS.result("+")],
    "watcher": [TOPICS.result("+"), TOPICS.status("+"), TOPICS.heartbeat("+"), TOPICS.plan()],
    "operator": [TOPICS.result("+"), TOPICS.status("+"), TOPICS.heartbeat("+"), TOPICS.plan(), TOPICS.chunk(NAME, "+")],
}
EVERYBODY = set(FILTERS)
SENT = [
    ("sensor", TOPICS.window("s", "chest"), {"node"}),
    ("node", TOPICS.activation(9, 0, "s"), {"node"}),
    ("node", TOPICS.result("s"), EVERYBODY - {"node"}),
    ("node", TOPICS.status("pi-1"), EVERYBODY - {"sensor"}),
    ("node", TOPICS.heartbeat("pi-1"), EVERYBODY - {"sensor"}),
    ("sensor", TOPICS.status("sensor-1"), EVERYBODY - {"node"}),
    ("coordinator", TOPICS.status("coordinator"), {"coordinator", "watcher", "operator"}),
    ("coordinator", TOPICS.heartbeat("coordinator"), {"coordinator", "watcher", "operator"}),
    ("coordinator", TOPICS.plan(), EVERYBODY),
    ("coordinator", TOPICS.slice(NAME), {"sensor", "node", "coordinator"}),
    ("coordinator", TOPICS.chunk(NAME, 0), {"node", "operator"}),
    ("coordinator", TOPICS.window("_probe-1", "chest"), {"node"}),
    ("operator", TOPICS.window("_probe-2", "chest"), {"node"}),
]


def test_every_role_of_a_deployment_can_do_its_work(
    broker: Mosquitto, secrets: Path, connect: Callable[..., Bus]
) -> None:
    buses = {role: connect(address(broker, secrets, role), f"deployed-{role}") for role in FILTERS}
    for role, bus in buses.items():
        bus.subscribe(FILTERS[role])
    until(lambda: all(bus.connected for bus in buses.values()), *buses.values())
    got: dict[str, set[str]] = {}
    for sender, topic, _ in SENT:
        outcomes: list[PublishOutcome] = []
        buses[sender].publish(topic, topic.encode(), on_outcome=outcomes.append)
        _gather(buses, got, lambda outcomes=outcomes: outcomes)
        assert outcomes == [PublishOutcome.ACKED], topic
    expected = {topic: readers for _, topic, readers in SENT}
    _gather(buses, got, lambda: got == expected)


def _gather(buses: dict[str, Bus], got: dict[str, set[str]], done: Callable[[], object]) -> None:
    """Note who receives what until something holds."""
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline, f"not done after 10 s; got: {got}"
        for role, bus in buses.items():
            for delivery in bus.poll(0.01):
                bus.acknowledge(delivery)
                got.setdefault(delivery.topic, set()).add(role)


@pytest.mark.parametrize("role", ["node", "sensor", "operator"])
def test_a_slice_comes_from_the_coordinator(
    broker: Mosquitto, secrets: Path, connect: Callable[..., Bus], role: str, tmp_path: Path
) -> None:
    content = os.urandom(2_500_000)
    sha256 = hashlib.sha256(content).hexdigest()
    giver = connect(address(broker, secrets, "coordinator"), f"gives-{role}")
    messages = encode_chunks(TOPICS, content)
    for one in messages:
        giver.publish(one.topic, one.payload, retain=one.retain)
    until(lambda: not giver.unsent, giver)
    taker, store = connect(address(broker, secrets, role), f"takes-{role}", receive_max=4), Store(tmp_path)
    fetch(taker, TOPICS, [sha256], store, lambda: False, timeout_s=10)
    assert store.path(sha256).read_bytes() == content
    for one in clear(TOPICS, sha256, len(messages) - 1):
        giver.publish(one.topic, one.payload, retain=one.retain)
    until(lambda: not giver.unsent, giver)
    late = connect(address(broker, secrets, role), f"late-{role}")
    late.subscribe([TOPICS.slice(sha256), TOPICS.chunk(sha256, "+")])
    until(lambda: late.connected, late)
    assert list(late.poll(0.2)) == []


@pytest.mark.parametrize("config", ["mosquitto.conf", "secure.conf"])
def test_the_brokers_take_any_slice_that_nodes_take(config: str) -> None:
    text = (BROKERS / config).read_text()
    limits = {key: int(value) for key, value in re.findall(r"^(max_\w+) (\d+)$", text, re.MULTILINE)}
    assert limits["max_packet_size"] >= MAX_CHUNK_BYTES + 4096
    assert limits["max_queued_messages"] >= MAX_CHUNKS


@pytest.mark.parametrize(
    ("role", "topic"),
    [
        ("sensor", TOPICS.result("subject7")),
        ("sensor", TOPICS.activation(1, 0, "subject7")),
        ("sensor", TOPICS.heartbeat("pi-1")),
        ("stage", TOPICS.window("subject7", "chest")),
        ("watcher", TOPICS.result("subject7")),
        ("watcher", TOPICS.status("stage-0")),
        ("watcher", TOPICS.window("_probe-1", "chest")),
        ("node", TOPICS.window("subject7", "chest")),
        ("operator", TOPICS.result("subject7")),
        ("operator", TOPICS.status("pi-1")),
        ("operator", TOPICS.heartbeat("pi-1")),
        ("coordinator", TOPICS.result("subject7")),
        ("coordinator", TOPICS.activation(1, 0, "subject7")),
        *(
            (role, topic)
            for role in ("sensor", "node", "stage", "watcher", "operator")
            for topic in (TOPICS.plan(), TOPICS.slice(NAME), TOPICS.chunk(NAME, 0))
        ),
    ],
)
def test_nobody_may_publish_what_is_not_theirs(
    broker: Mosquitto, secrets: Path, connect: Callable[..., Bus], role: str, topic: str
) -> None:
    outcome, _ = publish(connect(address(broker, secrets, role), f"bad-{role}"), topic)
    assert outcome is PublishOutcome.REFUSED


def test_mosquitto_grants_a_forbidden_subscription_and_delivers_nothing(
    broker: Mosquitto, secrets: Path, connect: Callable[..., Bus]
) -> None:
    """The README warns of it; should a newer Mosquitto refuse instead, the node ends with a clear text."""
    watcher, sensor = (connect(address(broker, secrets, role), f"deaf-{role}") for role in ("watcher", "sensor"))
    try:
        watcher.subscribe([TOPICS.window("+", "+")])
        until(lambda: watcher.connected, watcher)
    except BrokerError as error:
        assert "refused the subscription to har/v1/har/window/+/+" in str(error)
        return
    _, came = publish(sensor, TOPICS.window("subject7", "chest"), watcher)
    assert came == [] and list(watcher.poll(0.2)) == []


def test_a_name_in_the_certificate_is_as_good_as_the_address(
    broker: Mosquitto, secrets: Path, connect: Callable[..., Bus]
) -> None:
    bus = connect(address(broker, secrets, "stage", host="localhost"), "named")
    assert publish(bus, TOPICS.result("subject7"))[0] in {PublishOutcome.ACKED, PublishOutcome.NO_SUBSCRIBERS}


def test_large_messages_pass_tls(broker: Mosquitto, secrets: Path, connect: Callable[..., Bus]) -> None:
    sensor, stage = (connect(address(broker, secrets, role), f"large-{role}") for role in ("sensor", "stage"))
    stage.subscribe([TOPICS.window("+", "arm")])
    until(lambda: stage.connected, stage)
    payloads = [os.urandom(size) for size in (4_000_000, 10, 16_384, 4_000_000)]
    for payload in payloads:
        sensor.publish(TOPICS.window("s", "arm"), payload)
    came: list[Delivery] = []
    until(lambda: len(came) == 4 or came.extend([*stage.poll(0.01), *sensor.poll(0.01)]), seconds=20)
    assert [delivery.payload for delivery in came] == payloads


def test_an_authority_that_is_not_the_brokers(
    broker: Mosquitto, secrets: Path, connect: Callable[..., Bus], tmp_path: Path
) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=stranger -keyout k -out stranger.crt"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    known = address(broker, secrets, "sensor")
    text = r"certificate of the broker at mqtts://127\.0\.0\.1:\d+ is not to be trusted: .*; name the authority"
    for ca_file in (tmp_path / "stranger.crt", None):
        with pytest.raises(BrokerError, match=text):
            connect(replace(known, ca_file=ca_file), "x")


def test_a_name_that_is_not_in_the_certificate(broker: Mosquitto, secrets: Path, connect: Callable[..., Bus]) -> None:
    known = replace(address(broker, secrets, "sensor"), host="127.0.0.2")
    with pytest.raises(BrokerError, match=r"no broker at|IP address mismatch, .*and the broker by the name in its"):
        connect(known, "x")


def test_encryption_on_one_side_only(broker: Mosquitto, secrets: Path, connect: Callable[..., Bus]) -> None:
    known = address(broker, secrets, "sensor")
    with pytest.raises(BrokerError, match=r"without an answer to CONNECT \(it may want mqtts://\)"):
        connect(replace(known, tls=False, ca_file=None), "x")


def test_tls_to_a_broker_without_it(mosquitto: Mosquitto, secrets: Path, connect: Callable[..., Bus]) -> None:
    plain = replace(mosquitto.address, tls=True, ca_file=secrets / "ca.crt")
    with pytest.raises(BrokerError, match=r"(no TLS with|no broker at) .*mqtts://127\.0\.0\.1"):
        connect(plain, "x")


@pytest.mark.parametrize(("user", "password"), [("sensor", "wrong"), ("nobody", "x"), (None, None)])
def test_wrong_credentials_end_the_command(
    broker: Mosquitto, secrets: Path, connect: Callable[..., Bus], user: str | None, password: str | None
) -> None:
    known = replace(address(broker, secrets, "sensor"), username=user, password=password)
    text = (
        r"refused the connection: not authorized; check the user, and the password in HAR_EDGE_PASSWORD or --password-"
    )
    with pytest.raises(FinalRefusal, match=text) as caught:
        connect(known, "x")
    assert password is None or password not in str(caught.value).replace("--password-file", "")


def test_the_password_may_come_from_the_environment(
    broker: Mosquitto, secrets: Path, connect: Callable[..., Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAR_EDGE_USERNAME", "stage")
    monkeypatch.setenv("HAR_EDGE_PASSWORD", (secrets / "stage.password").read_text().strip())
    known = read_address(f"mqtts://127.0.0.1:{broker.address.port}", ca_file=secrets / "ca.crt")
    assert publish(connect(known, "environment"), TOPICS.result("s"))[0] is not PublishOutcome.REFUSED


def test_a_node_finds_its_successor_with_the_rights_of_its_role(
    broker: Mosquitto, secrets: Path, connect: Callable[..., Bus]
) -> None:
    from har_edge.mqtt.bus import TakenOver
    from har_edge.protocol.leases import status_lease
    from har_edge.protocol.status import NodeStatus, State, encode_status

    topic = TOPICS.status("stage-9")
    where = address(broker, secrets, "stage")
    leases = [status_lease(topic, f"instance-{number}", float(number)) for number in (1, 2)]
    first = connect(where, "stage-9", lease=leases[0], will=Will(topic, b"lost"))
    second = connect(where, "stage-9", lease=leases[1])
    birth = NodeStatus(node="stage-9", role="stage", state=State.READY, instance="instance-2", started=2.0)
    second.publish(topic, encode_status(birth), retain=True)
    until(lambda: second.unsent == 0, second)
    with pytest.raises(TakenOver):
        until(lambda: False, first)


def test_certificates_instead_of_passwords(
    secrets: Path, connect: Callable[..., Bus], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = re.search(r"```\n(require_certificate .*?)```", (BROKERS / "README.md").read_text(), re.DOTALL)
    assert lines is not None
    with start(secrets, tmp_path_factory.mktemp("certificates"), extra=lines[1]) as broker:
        url = f"mqtts://127.0.0.1:{broker.address.port}"
        with pytest.raises(BrokerError, match=r"--cert-file and --key-file"):
            connect(read_address(url, ca_file=secrets / "ca.crt"), "without")
        files = {"cert_file": secrets / "stage.crt", "key_file": secrets / "stage.key"}
        bus = connect(read_address(url, ca_file=secrets / "ca.crt", **files), "with")
        assert publish(bus, TOPICS.result("s"))[0] is PublishOutcome.NO_SUBSCRIBERS
        assert publish(bus, TOPICS.window("s", "chest"))[0] is PublishOutcome.REFUSED
        bus.close()


def test_the_doctor_takes_the_name_in_a_certificate_for_the_user(
    secrets: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stage of brokers/README.md needs nothing that its access list does not give, and is not told so."""
    readme = (BROKERS / "README.md").read_text()
    lines = re.search(r"```\n(require_certificate .*?)```", readme, re.DOTALL)
    typed = re.search(r"^\$ (har-edge doctor --broker mqtts://.*--cert-file operator.crt.*)$", readme, re.MULTILINE)
    assert lines is not None and typed is not None
    with start(secrets, tmp_path_factory.mktemp("certificates"), extra=lines[1]) as broker:
        command = typed[1].replace("NAME:8883", f"127.0.0.1:{broker.address.port}").replace("operator", "stage")
        options = [str(secrets / word) if word.endswith((".crt", ".key")) else word for word in command.split()[1:]]
        code = main([*options, "--broker-only", "--json"])
        seen = {one["check"]: one for one in msgspec.json.decode(capsys.readouterr().out)["findings"]}
    assert code == 0 and {check: one["verdict"] for check, one in seen.items()} == {
        "broker": "ok", "mqtt": "ok", "credentials": "ok", "settings": "ok", "topic window": "ok", "topic act": "ok",
        "topic result": "ok", "topic node": "ok", "behaviour": "not reached",
    }  # fmt: skip
    assert seen["credentials"]["said"] == (
        "the certificate of stage may connect; that is its user where the broker takes names from certificates"
    )
    assert seen["topic window"]["said"] == "may read (granted; nothing came that would prove it)"


def test_the_doctor_names_tls_where_the_address_is_plain(broker: Mosquitto, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--broker", f"mqtt://127.0.0.1:{broker.address.port}", "--broker-only", "--json"]) == 1
    report = msgspec.json.decode(capsys.readouterr().out)
    (found,) = (one for one in report["findings"] if one["check"] == "mqtt")
    assert report["first_wrong"] == "mqtt"
    assert found["said"] == f"127.0.0.1:{broker.address.port} speaks TLS, and mqtt:// does not"
    assert found["mend"].startswith(f"`--broker mqtts://127.0.0.1:{broker.address.port}`, with --ca-file FILE")


def test_the_name_in_a_certificate_is_read(secrets: Path, tmp_path: Path) -> None:
    assert common_name(secrets / "stage.crt") == "stage" and common_name(secrets / "ca.crt") == "har_edge authority"
    named = tmp_path / "named"
    subjects = {"/O=lab/CN=Küche 7/OU=x": "Küche 7", "/O=lab": None, f"/CN={'n' * 60}": "n" * 60}
    for subject, name in subjects.items():
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-utf8", "-subj", subject]
        subprocess.run(
            [*command, "-keyout", f"{named}.key", "-out", f"{named}.crt"], check=True, capture_output=True, timeout=60
        )
        assert common_name(named.with_suffix(".crt")) == name


@pytest.mark.parametrize("size", [0, 1, 3, 20, 200])
def test_a_certificate_that_is_cut_off_is_a_clear_error(secrets: Path, tmp_path: Path, size: int) -> None:
    der = ssl.PEM_cert_to_DER_cert((secrets / "stage.crt").read_text())
    (tmp_path / "cut.crt").write_text(ssl.DER_cert_to_PEM_cert(der[:size]))
    with pytest.raises(ConfigError, match=r"cannot read the certificate .*cut.crt: .*; expected one in PEM form"):
        common_name(tmp_path / "cut.crt")
    (tmp_path / "cut.crt").write_text("no certificate")
    with pytest.raises(ConfigError, match="expected one in PEM form"):
        common_name(tmp_path / "cut.crt")


def test_certificates_that_are_none(
    broker: Mosquitto, secrets: Path, connect: Callable[..., Bus], tmp_path: Path
) -> None:
    (tmp_path / "none.crt").write_text("no certificate")
    known = replace(address(broker, secrets, "sensor"), cert_file=tmp_path / "none.crt", key_file=tmp_path / "none.crt")
    with pytest.raises(BrokerError, match=r"cannot use the certificates for mqtts://.*; expected PEM files"):
        connect(known, "x")


def test_a_node_carries_a_broker_with_the_users_and_certificates_of_the_central_one(
    broker: Mosquitto, secrets: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("own")
    folder.chmod(0o755)
    config = folder / "secure.conf"
    config.write_text((BROKERS / "secure.conf").read_text(encoding="utf-8").replace("/etc/har-edge", str(secrets)))
    central = address(broker, secrets, "stage")
    wanted = OwnBrokerSettings(OwnBrokerKind.MOSQUITTO, folder / "own", advertise="localhost", config=config)
    own = start_own(wanted, central)
    try:
        assert own.url == f"mqtts://localhost:{own.address.port}"
        neighbour = neighbour_address(address(broker, secrets, "stage"), own.url)
        taker = open_bus(neighbour, Session("taker"))
        taker.subscribe([TOPICS.activation(1, 0, "+")])
        deadline = time.monotonic() + 10
        while not taker.connected:
            taker.poll(0.02)
            assert time.monotonic() < deadline
        taker.close()
        with pytest.raises(FinalRefusal, match="not authorized"):
            open_bus(replace(neighbour, username=None, password=None), Session("stranger"))
    finally:
        own.stop()
