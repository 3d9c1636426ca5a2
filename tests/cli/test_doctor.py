"""`har-edge doctor` and the broker: each flaw really made, with brokers of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from har_edge.cli.main import main
from har_edge.config.message_sizes import largest_message
from har_edge.mqtt.broker.embedded import EmbeddedBroker
from har_edge.mqtt.broker.launcher import Mosquitto, find_mosquitto, free_port, start_mosquitto
from har_edge.resources import find_folder
from har_edge.runtime.slicing import prepare
from tests.mqtt.old_broker import Manner, OldBroker
from tests.runtime.test_odd_models import TASK
from tests.tflite import models

CONFIG = find_folder("brokers") / "mosquitto.conf"
needs_mosquitto = pytest.mark.skipif(
    find_mosquitto() is None or shutil.which("mosquitto_passwd") is None, reason="Mosquitto is not installed"
)
Report = dict[str, dict[str, str]]


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str | None, Report]]:
    """Return a function that runs the command and returns what is wrong first, and all findings by name."""

    def run(url: str, *options: str) -> tuple[str | None, Report]:
        code = main(["doctor", "--json", "--broker", url, "--cache", str(tmp_path / "cache"), *options])
        seen = msgspec.json.decode(capsys.readouterr().out)
        assert code == (0 if seen["healthy"] else 1)
        return seen["first_wrong"], {finding["check"]: finding for finding in seen["findings"]}

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Start a Mosquitto with other settings; all are stopped in the end."""
    brokers: list[Mosquitto] = []
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)

    def start(extra: str = "", without: str = "") -> Mosquitto:
        config = tmp_path / "given.conf"
        lines = CONFIG.read_text().splitlines()
        config.write_text("\n".join(line for line in lines if not without or not line.startswith(without)) + "\n")
        brokers.append(start_mosquitto(config, tmp_path / f"broker-{len(brokers)}", extra=extra))
        return brokers[-1]

    yield start
    for broker in brokers:
        broker.stop()


@pytest.fixture
def guarded(tmp_path: Path, start: Callable[..., Mosquitto]) -> Callable[[str], tuple[str, list[str]]]:
    """Return a function that starts a broker with one user and this access list; it returns URL and credentials."""

    def make(acl: str, user: str = "anna") -> tuple[str, list[str]]:
        passwords, access, password = (tmp_path / name for name in ("passwords", "acl", "password"))
        passwords.touch()
        password.write_text("secret\n")
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, "secret"], check=True, capture_output=True)
        access.write_text(f"user {user}\n{acl}\n")
        for file in (passwords, access):
            file.chmod(0o644)
        broker = start(f"password_file {passwords}\nacl_file {access}", without="allow_anonymous")
        return broker.address.url, ["--username", user, "--password-file", str(password)]

    return make


def test_no_broker(doctor: Callable[..., tuple[str | None, Report]]) -> None:
    port = free_port("127.0.0.1")
    first, seen = doctor(f"mqtt://127.0.0.1:{port}")
    assert first == "broker" and f"no broker at mqtt://127.0.0.1:{port}" in seen["broker"]["said"]
    assert "har-edge broker" in seen["broker"]["mend"]
    assert {finding["verdict"] for check, finding in seen.items() if check != "broker"} == {"not reached"}


@needs_mosquitto
def test_a_wrong_password(
    doctor: Callable[..., tuple[str | None, Report]], guarded: Callable[..., tuple[str, list[str]]], tmp_path: Path
) -> None:
    url, options = guarded("topic readwrite #")
    (tmp_path / "password").write_text("wrong\n")
    first, seen = doctor(url, *options)
    assert first == "credentials" and seen["credentials"]["said"] == "the broker does not let user anna in"
    assert "--password-file" in seen["credentials"]["mend"] and seen["permissions"]["verdict"] == "not reached"


ALL_BUT = "\n".join(
    f"topic readwrite har/v1/+/{kind}/#" for kind in ("window", "result", "node", "beat", "slice", "chunk")
)


@pytest.mark.slow
@needs_mosquitto
@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("topic read har/v1/+/act/#", "the broker refused a message on har/v1/har/act/0/0/"),
        ("topic write har/v1/+/act/#", "har/v1/har/act/0/0/"),
        ("", "the broker refused a message on har/v1/har/act/0/0/"),
    ],
)
def test_a_list_that_forbids_one_topic(
    doctor: Callable[..., tuple[str | None, Report]], guarded: Callable[..., tuple[str, list[str]]], act: str, said: str
) -> None:
    url, options = guarded(f"{ALL_BUT}\ntopic readwrite har/v1/+/plan\n{act}")
    first, seen = doctor(url, *options)
    assert first == "topic act" and said in seen["topic act"]["said"]
    if "write" in act:
        assert (
            "delivers nothing there" in seen["topic act"]["said"]
            or "refused the subscription" in seen["topic act"]["said"]
        )
    assert "name the role of anna with --role" in seen["topic act"]["mend"]
    assert [
        check for check, finding in seen.items() if check.startswith("topic") and finding["verdict"] == "wrong"
    ] == [first]


@pytest.mark.slow
@needs_mosquitto
@pytest.mark.parametrize(
    ("user", "options", "kind", "line"),
    [
        ("stage", [], "window", "permit stage `topic read har/v1/har/window/#` in the access list"),
        ("anna", ["--role", "stage"], "window", "permit anna `topic read har/v1/har/window/#` in the access list"),
        ("anna", ["--role", "stage"], "result", "permit anna `topic write har/v1/har/result/+` in the access list"),
        ("node", [], "act", "permit node `topic readwrite har/v1/har/act/#` in the access list"),
    ],
)
def test_no_more_is_advised_than_the_role_needs(
    doctor: Callable[..., tuple[str | None, Report]],
    guarded: Callable[..., tuple[str, list[str]]],
    user: str,
    options: list[str],
    kind: str,
    line: str,
) -> None:
    """What the list forbids, seen by refused messages; a forbidden subscription may be granted and deliver nothing."""
    lines = {"window": "read har/v1/+/window/#", "act": "readwrite har/v1/+/act/#", "result": "write har/v1/+/result/+"}
    url, credentials = guarded("\n".join(f"topic {rule}" for name, rule in lines.items() if name != kind), user=user)
    _, seen = doctor(url, *credentials, *options)
    told = seen[f"topic {kind}"]
    if told["verdict"] == "wrong":
        assert line in told["mend"]
    else:
        assert kind == "window" and "nothing came that would prove it" in told["said"]


@pytest.mark.slow
@needs_mosquitto
def test_nobody_is_told_to_open_the_broker_to_clients_without_a_user(
    doctor: Callable[..., tuple[str | None, Report]], start: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    access = tmp_path / "acl"
    access.write_text("topic read har/v1/+/result/+\n")
    access.chmod(0o644)
    broker = start(f"acl_file {access}")
    first, seen = doctor(broker.address.url)
    assert seen["credentials"]["said"] == "a client without user may connect" and first == "topic window"
    mends = [one["mend"] for check, one in seen.items() if check.startswith("topic") and one["verdict"] == "wrong"]
    assert set(mends) == {
        "give the name of a user who may (--username and --password-file, or --cert-file and --key-file)"
    }


@pytest.mark.slow
@needs_mosquitto
def test_the_name_of_the_user_chooses_the_role(
    doctor: Callable[..., tuple[str | None, Report]], guarded: Callable[..., tuple[str, list[str]]]
) -> None:
    """With the access list of brokers/README.md, a watcher lacks nothing; what cannot be proven is said."""
    acl = "\n".join(f"topic read har/v1/+/{rest}" for rest in ("result/+", "node/+/status", "plan", "beat/+"))
    url, options = guarded(acl, user="watcher")
    first, seen = doctor(url, *options)
    assert first == "coordinator"
    assert {check for check in seen if check.startswith("topic")} == {
        "topic result",
        "topic node",
        "topic beat",
        "topic plan",
    }
    assert "nothing came that would prove it" in seen["topic beat"]["said"] and seen["topic beat"]["verdict"] == "ok"


@pytest.mark.slow
@needs_mosquitto
@pytest.mark.parametrize(
    ("setting", "value", "said", "mend"),
    [
        ("max_packet_size", "100000", "packets of at most 100000 bytes", "max_packet_size 67112960"),
        ("max_inflight_messages", "20", "takes 20 messages at once", "max_inflight_messages 0"),
        ("retain_available", "false", "permits no retained messages", "permit retained messages"),
    ],
)
def test_settings_that_do_not_admit_slices(
    doctor: Callable[..., tuple[str | None, Report]],
    start: Callable[..., Mosquitto],
    setting: str,
    value: str,
    said: str,
    mend: str,
) -> None:
    broker = start(f"{setting} {value}", without=setting)
    first, seen = doctor(broker.address.url, "--role", "watcher")
    assert first == "settings" and said in seen["settings"]["said"] and mend in seen["settings"]["mend"]


@pytest.mark.slow
@needs_mosquitto
def test_slices_whose_messages_are_larger_than_the_broker_takes(
    doctor: Callable[..., tuple[str | None, Report]], start: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    path = tmp_path / "wide.tflite"
    path.write_bytes(models.wide(3000))  # 480 kB
    needed = largest_message(prepare(path, TASK, tmp_path / "slices", stages=2, cuts=[2]).manifest)
    broker = start("max_packet_size 400000", without="max_packet_size")
    _, seen = doctor(broker.address.url, "--config", str(tmp_path / "slices"))
    assert (seen["settings"]["verdict"], seen["folder"]["verdict"]) == ("ok", "wrong")
    said = f"messages of these slices take up to {needed} bytes, and the broker takes 400000 at most"
    assert seen["folder"]["said"] == said and f"max_packet_size {needed}`" in seen["folder"]["mend"]


@pytest.mark.slow
@pytest.mark.parametrize("manner", Manner)
def test_a_broker_that_speaks_no_mqtt_5(
    doctor: Callable[..., tuple[str | None, Report]], embedded: EmbeddedBroker, manner: Manner
) -> None:
    with OldBroker(embedded.address, manner) as old:
        first, seen = doctor(old.address.url)
    assert seen["mqtt"]["verdict"] == "ok" and "no MQTT 5, so nodes use 3.1.1" in seen["mqtt"]["said"], seen["mqtt"]
    assert first == "coordinator", seen  # the broker is good enough; nobody runs a pipeline


@needs_mosquitto
def test_encryption_where_there_is_none(
    doctor: Callable[..., tuple[str | None, Report]], start: Callable[..., Mosquitto]
) -> None:
    url = start().address.url.replace("mqtt://", "mqtts://")
    first, seen = doctor(url)
    assert first == "mqtt" and url in seen["mqtt"]["said"] and "8883" in seen["mqtt"]["mend"]
