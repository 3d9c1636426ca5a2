"""Who holds a port, by what Linux says."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from pathlib import Path

import pytest

from har_edge.errors import BrokerError
from har_edge.mqtt.broker.launcher import check_free
from har_edge.mqtt.broker.ports import Listener, explain_taken, find_listener

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def row(address: str, *, state: str = "0A", uid: int = os.geteuid(), inode: int = 77) -> str:
    return f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  {uid}  0 {inode} 1 0\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc in which nothing listens."""
    (tmp_path / "net").mkdir()
    for name in ("tcp", "tcp6"):
        (tmp_path / "net" / name).write_text(HEAD)
    return tmp_path


def add_process(proc: Path, pid: int, name: str, *, socket: int | None = None, group: str = "0::/") -> None:
    (proc / str(pid) / "fd").mkdir(parents=True)
    (proc / str(pid) / "comm").write_text(f"{name}\n")
    (proc / str(pid) / "cgroup").write_text(f"{group}\n")
    if socket is not None:
        (proc / str(pid) / "fd" / "4").symlink_to(f"socket:[{socket}]")


@needs_proc
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_this_process_is_found_by_its_socket(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        taken = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"no {host} here")
    with taken:
        port = taken.getsockname()[1]
        found = find_listener(port)
        assert found is not None
        assert (found.pid, found.address) == (os.getpid(), host)
        assert found.user == pwd.getpwuid(os.geteuid()).pw_name
        assert found.program == Path("/proc/self/comm").read_text().strip()
        assert found.is_local_only is (host != "0.0.0.0")
    assert find_listener(port) is None


def test_a_service_is_named(proc: Path) -> None:
    # Port 1883 on 127.0.0.1 as Linux writes it on a little-endian machine.
    (proc / "net" / "tcp").write_text(HEAD + row("0100007F:075B", state="01") + row("0100007F:075B", inode=81))
    add_process(proc, 5, "other", socket=77)
    add_process(proc, 812, "mosquitto", socket=81, group="0::/system.slice/mosquitto.service")
    found = find_listener(1883, proc)
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert found == Listener("127.0.0.1", user, "mosquitto", 812, "mosquitto.service")
    assert explain_taken("0.0.0.0", 1883, found).splitlines() == [
        "port 1883 on 0.0.0.0 is not free: mosquitto (process 812, service mosquitto.service), for this machine only "
        "(127.0.0.1), listens there. Either",
        "  listen elsewhere: --port 1884 (and where --directory is given, another one)",
        "  or stop it for good: sudo systemctl disable --now mosquitto",
        "  or, if it is a broker, use it: export HAR_EDGE_BROKER=mqtt://127.0.0.1:1883",
        "  (what har_edge needs of its settings: brokers/README.md)",
    ]


def test_control_groups_of_version_1_name_the_service_too(proc: Path) -> None:
    (proc / "net" / "tcp6").write_text(HEAD + row("0" * 32 + ":075B"))
    add_process(
        proc, 9, "x", socket=77, group="4:memory:/system.slice/x.service\n1:name=systemd:/system.slice/x.service"
    )
    found = find_listener(1883, proc)
    assert found is not None and (found.address, found.service) == ("::", "x.service")


def test_without_the_rights_to_look_the_only_process_of_its_user_is_taken(proc: Path) -> None:
    (proc / "net" / "tcp").write_text(HEAD + row("00000000:075B"))
    add_process(proc, 12, "mosquitto")
    found = find_listener(1883, proc)
    assert found is not None and (found.address, found.program, found.pid) == ("0.0.0.0", "mosquitto", 12)
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert "  or stop it (kill 12), and start this again" in explain_taken("::", 1883, found).splitlines()
    add_process(proc, 13, "bash")  # now it may be either
    found = find_listener(1883, proc)
    assert found == Listener("0.0.0.0", user)
    assert explain_taken("::", 1883, found).splitlines()[:3] == [
        f"port 1883 on :: is not free: a process of the user {user} listens there. Either",
        "  listen elsewhere: --port 1884 (and where --directory is given, another one)",
        "  or stop it, and start this again",
    ]
    assert "mqtt://[::1]:1883" in explain_taken("::", 1883, found)


def test_the_process_of_another_user_takes_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    found = Listener("0.0.0.0", "root", "mosquitto", 12)
    assert "  or stop it (sudo kill 12), and start this again" in explain_taken("::", 1883, found).splitlines()


def test_a_user_without_a_name(proc: Path) -> None:
    (proc / "net" / "tcp").write_text(HEAD + row("00000000:075B", uid=987654321))
    found = find_listener(1883, proc)
    assert found == Listener("0.0.0.0", None) and str(found) == "another process"


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert find_listener(1883, tmp_path / "nowhere") is None
    assert explain_taken("127.0.0.1", 65535, None).splitlines()[:2] == [
        "port 65535 on 127.0.0.1 is not free: another process listens there. Either",
        "  listen elsewhere: --port 65534 (and where --directory is given, another one)",
    ]


def test_an_address_that_is_not_of_this_machine_is_no_taken_port() -> None:
    with pytest.raises(BrokerError, match=r"cannot listen on port 1883 of 203\.0\.113\.7: .*; give an address of this"):
        check_free("203.0.113.7", 1883)
