"""Where commands find the broker, its certificates and passwords."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from har_edge.cli import options
from har_edge.planning.pipeline import BrokerConfig


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
