"""What a device may use, as text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.emulation.limits import Device, Layout, Limits, equal_devices, read_cpu, read_layout, read_rate, read_size
from har_edge.errors import ConfigError


@given(st.integers(8, 4 * 10**7))
def test_a_rate_is_read_in_powers_of_ten(kbit: int) -> None:
    assert read_rate(f"{kbit}kbit") == kbit * 1000
    assert read_rate(f"{kbit / 1000:.6f}MBIT") == kbit * 1000


@pytest.mark.parametrize(("text", "expected"), [("94mbit", 94_000_000), ("1.5mbit", 1_500_000), ("1gbit", 10**9)])
def test_rates(text: str, expected: int) -> None:
    assert read_rate(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("1g", 2**30), ("512m", 2**29), ("2048k", 2**21), ("1048576", 2**20)])
def test_sizes(text: str, expected: int) -> None:
    assert read_size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "94", "94mb", "94 mbit", "-1mbit", "1kbit", "41gbit", "1e3mbit", "mbit", "94mbit\n"]
)
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a rate such as 94mbit \(kbit, mbit, gbit; 8kbit to 40gbit\)"):
        read_rate(text)


@pytest.mark.parametrize("text", ["", "1t", "1gb", "100k", "0", "-1g"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a size such as 512m \(k, m, g; 1m or more\)"):
        read_size(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "0.001"])
def test_a_share_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cpu is .*; expected 0.01 or more cores, such as 0.2"):
        read_cpu(text)


def test_a_share_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cpu is 'half'; expected cores such as 0\.2"):
        read_cpu("half")


def test_equal_devices_are_numbered_from_one() -> None:
    assert [device.name for device in equal_devices(3, Limits(cpu=0.5)).devices] == ["device-1", "device-2", "device-3"]


@pytest.mark.parametrize("count", [0, 255])
def test_the_number_of_devices_is_bounded(count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} devices came; expected 1 to 254"):
        equal_devices(count, Limits())


@pytest.mark.parametrize("name", ["host", "broker", "localhost", "", "-a", "a b", "a/b", "../a", "a" * 33, "ä", "a\n"])
def test_a_name_that_cannot_be_a_host_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected up to 32 letters, digits, - and _, and none of host, broker"):
        Layout((Device(name, Limits()),))


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="two devices are named 'a'; give each a name of its own"):
        Layout((Device("a", Limits()), Device("a", Limits())))


def test_a_file_names_unequal_devices(tmp_path: Path) -> None:
    file = tmp_path / "bed.toml"
    file.write_text(
        '[broker]\nlink = "1gbit"\n[[devices]]\nname = "pi-a"\ncpu = 0.2\nmemory = "1g"\n[[devices]]\nlink = "10mbit"\n'
    )
    layout = read_layout(file, Limits(cpu=0.5, link_bits_per_s=94_000_000))
    assert layout.broker == Limits(link_bits_per_s=10**9)
    assert layout.devices == (
        Device("pi-a", Limits(0.2, 94_000_000, 2**30)),
        Device("device-2", Limits(0.5, 10_000_000, None)),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[devices]\n", "line 1"),
        ("devices = 3\n", r"Expected `array`, got `int` - at `\$.devices`"),
        ("[[devices]]\nspeed = 3\n", "unknown field `speed`"),
        ('[[devices]]\nlink = "fast"\n', "'fast' came; expected a rate such as 94mbit"),
        ("[[devices]]\ncpu = 0\n", "cpu is 0; expected 0.01 or more cores"),
        ('[[devices]]\nname = "host"\n', "device name 'host'; expected"),
        ("devices = []\n", "0 devices came; expected 1 to 254"),
        ('[broker]\nname = "b"\n[[devices]]\n', r"unknown field `name` - at `\$.broker`"),
        ("", "missing required field `devices`"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bed.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"^{file}: .*{said}"):
        read_layout(file, Limits())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file or directory; expected a TOML file with"):
        read_layout(tmp_path / "bed.toml", Limits())


def test_limits_print() -> None:
    assert Limits(0.2, 94_000_000, 2**30).text == "cpu 0.2, link 94 Mbit/s, memory 1.1 GB"
    assert Limits().text == "cpu unlimited, link unlimited, memory unlimited"
