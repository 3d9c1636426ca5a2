"""One broker a folder."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from har_edge.errors import BrokerError, ConfigError
from har_edge.mqtt.broker.launcher import find_mosquitto, free_port, start_mosquitto
from har_edge.mqtt.broker.lock import FILE_NAME, locked
from har_edge.resources import closed_to, find_folder

CONFIG = find_folder("brokers") / "mosquitto.conf"


def test_a_second_holder_is_told_of_the_first_and_one_after_it_is_let_in(tmp_path: Path) -> None:
    with locked(tmp_path, "the broker on port 1"):
        began = time.monotonic()
        with (
            pytest.raises(
                BrokerError, match=rf"^the broker on port 1 keeps its files in {tmp_path}: two brokers in one"
            ),
            locked(tmp_path, "the broker on port 2", 0.2),
        ):
            pass
        assert time.monotonic() - began > 0.2
        assert (tmp_path / FILE_NAME).read_text() == "the broker on port 1\n"
    with locked(tmp_path, "2", 0.0):
        assert (tmp_path / FILE_NAME).read_text() == "2\n"


def test_whoever_inherits_the_lock_holds_it_until_the_end(tmp_path: Path) -> None:
    with locked(tmp_path, "the first") as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    try:
        with pytest.raises(BrokerError, match="the first keeps its files"), locked(tmp_path, "the second", 0.0):
            pass
    finally:
        child.kill()
        child.wait()
    with locked(tmp_path, "the second", 0.0):
        pass


@pytest.mark.slow
@pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
def test_a_second_broker_in_a_folder_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    with start_mosquitto(CONFIG, tmp_path / "shared") as first:
        written = (tmp_path / "shared" / "mosquitto.conf").read_text()
        said = rf"the broker on port {first.address.port} of 127\.0\.0\.1 keeps its files in .*shared: .*--directory"
        with pytest.raises(BrokerError, match=said):
            start_mosquitto(CONFIG, tmp_path / "shared", port=free_port("127.0.0.1"))
        assert (tmp_path / "shared" / "mosquitto.conf").read_text() == written
        first.check()
    with start_mosquitto(CONFIG, tmp_path / "shared") as second:
        second.check()


@pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
@pytest.mark.parametrize("name", ["password_file", "acl_file", "cafile", "certfile", "keyfile"])
def test_a_file_that_a_configuration_names_and_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    config = tmp_path / "secure.conf"
    config.write_text(f"allow_anonymous false\n{name} {tmp_path}/none\n")
    said = rf"secure\.conf names the {name} {tmp_path}/none, which is not there, or .*brokers/README\.md"
    with pytest.raises(ConfigError, match=said):
        start_mosquitto(config, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_what_a_user_may_read(tmp_path: Path) -> None:
    file = tmp_path / "closed" / "key"
    file.parent.mkdir()
    file.write_text("")
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    file.chmod(0o400)
    me, group = os.geteuid(), file.stat().st_gid
    assert closed_to(file, me) is None and closed_to(file, me + 1, [group]) == file == closed_to(file, None)
    file.chmod(0o440)
    assert closed_to(file, me + 1, [group]) is None and closed_to(file, None) == file
    file.chmod(0o444)
    assert closed_to(file, None) is None
    file.parent.chmod(0o700)
    assert closed_to(file, None) == file.parent and closed_to(file, me) is None
