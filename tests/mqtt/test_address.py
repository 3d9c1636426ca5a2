"""Where the broker is: URLs, credentials, files."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import pytest

from har_edge.errors import BrokerError, ConfigError
from har_edge.mqtt.address import PASSWORD_VARIABLE, USERNAME_VARIABLE, Address, read_address
from har_edge.mqtt.clients.transport import tls_context


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(USERNAME_VARIABLE, raising=False)
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "shown"),
    [
        ("mqtt://pi", "pi", 1883, False, "mqtt://pi:1883"),
        ("mqtt://pi:2000/", "pi", 2000, False, "mqtt://pi:2000"),
        ("mqtts://broker.example", "broker.example", 8883, True, "mqtts://broker.example:8883"),
        ("mqtt://[::1]:99", "::1", 99, False, "mqtt://[::1]:99"),
        ("mqtt://joe@pi", "pi", 1883, False, "mqtt://pi:1883"),
    ],
)
def test_urls(url: str, host: str, port: int, tls: bool, shown: str) -> None:
    address = read_address(url)
    assert (address.host, address.port, address.tls, address.url) == (host, port, tls, shown)


@pytest.mark.parametrize(
    "url",
    ["", "pi", "pi:1883", "http://pi", "ws://pi", "mqtt://", "mqtt://:1883", "mqtt://pi:0", "mqtt://pi:70000", "mqtt://pi:x",
     "mqtt://pi/topic", "mqtt://pi?x=1", "mqtt:/pi", "mqtt://[::1"],
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"broker is '.*'; expected mqtt://HOST\[:PORT\] or mqtts://HOST\[:PORT\]"):
        read_address(url)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"broker URL for pi holds a password.*HAR_EDGE_PASSWORD.*--pass") as caught:
        read_address("mqtt://joe:hunter2@pi")
    assert "hunter2" not in str(caught.value)


def test_where_user_and_password_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_bytes(" s p ä\r\n".encode())
    monkeypatch.setenv(USERNAME_VARIABLE, "environment")
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    assert read_address("mqtt://pi").username == "environment"
    assert read_address("mqtt://joe@pi").username == "joe"
    assert read_address("mqtt://joe@pi", username="jane").username == "jane"
    assert read_address("mqtt://pi").password == "secret"
    assert read_address("mqtt://pi", password_file=file).password == " s p ä"


def test_the_password_never_shows() -> None:
    assert "hunter2" not in repr(Address("pi", 1883, password="hunter2"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_unreadable_password_files(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read the password file .*; give a text file with one line"):
        read_address("mqtt://pi", password_file=file)


def test_certificates(tmp_path: Path) -> None:
    file = tmp_path / "ca.crt"
    with pytest.raises(ConfigError, match=r"ca\.crt is no file; expected a certificate or key in PEM form"):
        read_address("mqtts://pi", ca_file=file)
    file.touch()
    with pytest.raises(ConfigError, match="certificates came for 'mqtt://pi', which is not encrypted; use mqtts://"):
        read_address("mqtt://pi", ca_file=file)
    assert read_address("mqtts://pi", ca_file=file, cert_file=file, key_file=file).ca_file == file


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_an_encrypted_key_asks_for_nothing_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL itself would ask at /dev/tty, and a service would wait for ever."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:secret", "-subj", "/CN=stage"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    address = Address("broker", 8883, tls=True, ca_file=certificate, cert_file=certificate, key_file=key)
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    with pytest.raises(BrokerError, match=f"the key {key} is encrypted, and there is no terminal"):
        tls_context(address)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(BrokerError, match="there is no terminal at which to ask for its passphrase; decrypt it"):
        tls_context(address)
