"""Where commands find the broker, its certificates and passwords."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from har_edge.cli.arguments import options, values
from har_edge.cli.main import main
from har_edge.config.pipeline_config import BrokerConfig
from har_edge.errors import ConfigError
from har_edge.mqtt.address import read_address


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_broker(parser)
    return parser.parse_args(words)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ca", "cert", "key", "password"):
        (tmp_path / name).write_text(name)
        monkeypatch.setenv(f"HAR_EDGE_{name.upper()}_FILE", str(tmp_path / name))
    monkeypatch.delenv("HAR_EDGE_PASSWORD", raising=False)
    return tmp_path


def test_certificates_and_password_come_from_the_environment(files: Path) -> None:
    address = options.find_address(parse("--broker", "mqtts://box"), BrokerConfig(), Path())
    assert (address.ca_file, address.cert_file, address.key_file) == (files / "ca", files / "cert", files / "key")
    assert address.password == "password"


def test_options_come_before_the_environment_and_that_before_the_pipeline_file(files: Path) -> None:
    (files / "other").write_text("other")
    args = parse("--broker", "mqtts://box", "--ca-file", str(files / "other"))
    address = options.find_address(args, BrokerConfig(ca_file="mine", key_file="mine"), files)
    assert (address.ca_file, address.key_file) == (files / "other", files / "key")


def test_a_broker_without_encryption_needs_no_certificate_of_the_environment(files: Path) -> None:
    address = options.find_address(parse("--broker", "mqtt://box"), BrokerConfig(), Path())
    assert (address.ca_file, address.key_file, address.password) == (None, None, "password")


BIG = "9" * 400


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["sensor", "--windows", BIG], "expected a whole number above 0, and at most 2147483647"),
        (["demo", "--windows", "99999999999999999999"], "expected a whole number above 0, and at most 2147483647"),
        (["sensor", "--give-up", BIG], "expected a whole number from 0 to 2147483647"),
        (["sensor", "--in-flight", "9" * 5000], "expected a whole number from 0 to 2147483647"),
        (["sensor", "--batch", "9" * 5000], "expected 1 to 1024 windows a message"),
        (["sensor", "--speed", "1e-320"], "'1e-320' is no speed; expected a factor from 0.0001 to 1000000, or max"),
        (["stage", "--threads", "99999999999", "--index", "0"], "expected 1 to 256 threads"),
        (["slice", "int8", "--threads", "99999999999"], "expected 1 to 256 threads"),
        (["slice", "int8", "--threads", "0"], "'0' came; expected 1 to 256 threads"),
        (["node", "--threads", "257"], "expected 1 to 256 threads"),
        (["node", "--cache-bytes", BIG], "expected bytes above 0, and at most 4611686018427387904"),
        (["train", "--seed", "99999999999"], "expected a whole number from 0 to 4294967295"),
        (["train", "--seed", "-1"], "'-1' came; expected a whole number from 0 to 4294967295"),
        (["broker", "--port", "9" * 5000], "is no port; expected 1 to 65535"),
        (["broker", "--embedded", "--host", "\u00fc.."], "is no host; expected an address or a name to listen on"),
        (["broker", "--embedded", "--host", "a" * 64], "is no host; expected an address or a name to listen on"),
        (["slice", "int8", "--at", "3,3"], "'3,3' came; expected operator indices that rise, each once, such as 4,9"),
        (["slice", "int8", "--at", "5,2"], "'5,2' came; expected operator indices that rise, each once, such as 4,9"),
    ],
)
def test_absurd_values_are_refused_with_what_is_expected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], text: str
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as caught:
        main(words)
    said = " ".join(capsys.readouterr().err.split())
    assert caught.value.code == 2 and text in said


def test_values_at_the_bounds_are_taken() -> None:
    assert values.positive("2147483647") == 2**31 - 1 and values.natural("0") == 0 and values.threads("256") == 256
    assert values.speed("1e-4") == 1e-4 and values.speed("1000000") == 1e6 and values.speed("max") is None
    assert values.operator_indices("4,9") == [4, 9] and values.size_bytes(str(4 * 2**30)) == 4 * 2**30
    for host in ("0.0.0.0", "::1", "fe80::1%eth0", "b\u00fcro.local"):
        assert values.host(host) == host


@pytest.mark.parametrize(
    ("option", "name"), [("--stream=x", "--stream"), ("--timestamps", "--timestamps"), ("--queue=1", "--queue")]
)
def test_options_of_a_device_need_a_device(capsys: pytest.CaptureFixture[str], option: str, name: str) -> None:
    assert main(["sensor", option]) == 2
    assert f"{name} came without --live FILE" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["mqtt://\u00fc..", f"mqtt://{'a' * 64}", "mqtt://a\0b"])
def test_a_host_that_cannot_be_looked_up_is_no_broker(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected mqtt://HOST"):
        read_address(url)
