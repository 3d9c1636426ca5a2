"""The devices file: what it may say, and what it takes from profiles."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from har_edge.errors import ConfigError
from har_edge.planner.devices import BrokerLink, SensorMessages, load_devices, make_devices
from har_edge.planner.profile import (
    VERSION,
    LinkCost,
    MemoryCost,
    MessageCost,
    MessageRate,
    Profile,
    SegmentCost,
    cached_profiles,
    load_profile,
    profile_path,
    store_profile,
)

SEGMENTS = (SegmentCost(0, 2, 3e-3, True, ()), SegmentCost(2, 5, 5e-3, True, ()))
PROFILE = Profile(
    version=VERSION,
    device="here",
    machine="Linux",
    model="m.tflite",
    model_sha256="ab" * 32,
    threads=1,
    segments=SEGMENTS,
    overhead_s=1e-3,
    memory=MemoryCost(50_000_000, 4_000_000, 56_000_000, 2_000_000),
    message=MessageCost(2e-4, 1e-9, "Mosquitto"),
)
FULL = "link_bytes_per_s = 1e6\nlatency_s = 0.002\n"


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def file(text: str) -> Path:
        path = tmp_path / "devices.toml"
        path.write_text(text)
        return path

    return file


def test_a_speed_scales_the_profile_and_the_rest_is_as_written(write) -> None:  # type: ignore[no-untyped-def]
    path = write(f'[[device]]\nname = "pi"\nspeed = 0.5\nmemory_bytes = 60_000_000\n{FULL}')
    ((device,), remarks) = make_devices(load_devices(path), path, PROFILE)
    kind = device.kind
    assert device.name == "pi" and remarks == []
    assert kind.work_s == pytest.approx((4e-3, 8e-3)) and kind.overhead_s == 2e-3
    assert (kind.message_s, kind.message_byte_s) == (4e-4, 2e-9)
    assert (kind.link_bytes_per_s, kind.latency_s, kind.memory_bytes) == (1e6, 0.002, 60_000_000)
    assert (kind.base_bytes, kind.growth) == (50_000_000, 3.0)  # 6 MB at the peak for 2 MB of tensors


def test_a_message_costs_less_with_less_work_before_it(write) -> None:  # type: ignore[no-untyped-def]
    shorter = (MessageRate(0.0, 2e-5, 1e-10), MessageRate(2e-3, 1e-4, 5e-10), MessageRate(0.1, 9.0, 9.0))
    message = MessageCost(2e-4, 1e-9, "Mosquitto", shorter)
    path = write(f'[[device]]\nname = "pi"\nspeed = 0.5\n{FULL}')
    profile = msgspec.structs.replace(PROFILE, whole_s=8e-3, message=message)
    ((device,), _) = make_devices(load_devices(path), path, profile)
    after = device.kind.message_after
    assert after(0.0) == pytest.approx((4e-5, 2e-10))
    assert after(2e-3) == pytest.approx((1.2e-4, 6e-10))  # half way to 4 ms, which are 2 ms of the profile's device
    assert after(4e-3) == pytest.approx((2e-4, 1e-9))
    assert after(10e-3) == pytest.approx((3e-4, 1.5e-9))
    assert after(16e-3) == after(1.0) == pytest.approx((4e-4, 2e-9))  # the whole model; longer work is no work of it


def test_a_message_cost_that_is_written_down_holds_for_any_work(write) -> None:  # type: ignore[no-untyped-def]
    message = MessageCost(2e-4, 1e-9, "Mosquitto", (MessageRate(0.0, 2e-5, 1e-10),))
    path = write(f'[[device]]\nname = "pi"\nmessage_s = 0.001\n{FULL}')
    ((device,), _) = make_devices(load_devices(path), path, msgspec.structs.replace(PROFILE, message=message))
    assert device.kind.message_after(0.0) == (1e-3, 1e-9)


def test_weights_come_as_fast_as_the_profile_measured(write) -> None:  # type: ignore[no-untyped-def]
    path = write(f'[[device]]\nname = "pi"\nspeed = 0.5\n{FULL}')
    ((device,), _) = make_devices(load_devices(path), path, msgspec.structs.replace(PROFILE, weight_bytes_per_s=1e10))
    assert device.kind.weight_byte_s == pytest.approx(2e-10)
    ((device,), _) = make_devices(load_devices(path), path, PROFILE)
    assert device.kind.weight_byte_s == 0.0


def test_measured_segments_add_up_to_the_whole_and_a_switched_link_is_told(write) -> None:  # type: ignore[no-untyped-def]
    path = write(f'[[device]]\nname = "pi"\nduplex = true\n{FULL}')
    whole = msgspec.structs.replace(PROFILE, whole_s=4e-3)
    ((device,), _) = make_devices(load_devices(path), path, whole)
    assert device.kind.work_s == pytest.approx((1e-3, 2e-3)) and device.kind.duplex
    guessed = msgspec.structs.replace(SEGMENTS[1], measured=False)  # of a part that the whole says nothing certain of
    ((device,), _) = make_devices(
        load_devices(path), path, msgspec.structs.replace(whole, segments=(SEGMENTS[0], guessed))
    )
    assert device.kind.work_s == pytest.approx((2e-3, 4e-3))


def test_the_broker_s_link_limits_only_with_a_rate(write) -> None:  # type: ignore[no-untyped-def]
    device = f'[[device]]\nname = "pi"\n{FULL}'
    assert load_devices(write(device)).broker == BrokerLink(None, duplex=True)
    found = load_devices(write(f"{device}[broker]\nlink_bytes_per_s = 11_750_000\nduplex = false\n")).broker
    assert found == BrokerLink(11_750_000, duplex=False)
    with pytest.raises(ConfigError, match=r"link_bytes_per_s of the broker is 0\.0; expected a number above 0"):
        load_devices(write(f"{device}[broker]\nlink_bytes_per_s = 0\n"))


def test_equal_devices_are_numbered_and_sensors_may_send_together(write) -> None:  # type: ignore[no-untyped-def]
    path = write(f'sensors = "together"\n[[device]]\nname = "pi"\ncount = 3\n{FULL}')
    file = load_devices(path)
    devices, _ = make_devices(file, path, PROFILE)
    assert [device.name for device in devices] == ["pi-1", "pi-2", "pi-3"] and len({d.kind for d in devices}) == 1
    assert file.sensors is SensorMessages.TOGETHER


def test_an_own_profile_brings_its_link(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    own = msgspec.structs.replace(PROFILE, device="pi", overhead_s=0.0, link=LinkCost(0.008, 3e6))
    store_profile(own, tmp_path / "pi.json")
    path = write('[[device]]\nname = "pi"\nprofile = "pi.json"\n')
    ((device,), _) = make_devices(load_devices(path), path, PROFILE)
    assert device.kind.work_s == (3e-3, 5e-3)
    assert (device.kind.link_bytes_per_s, device.kind.latency_s) == (3e6, 0.004)


def test_the_link_of_one_device_is_not_that_of_another(write) -> None:  # type: ignore[no-untyped-def]
    linked = msgspec.structs.replace(PROFILE, link=LinkCost(0.008, 3e6))
    path = write('[[device]]\nname = "here"\n')
    assert make_devices(load_devices(path), path, linked)[0][0].kind.link_bytes_per_s == 3e6
    path = write('[[device]]\nname = "there"\n')
    with pytest.raises(ConfigError, match="there has no link_bytes_per_s, and no profile of it has measured it; give"):
        make_devices(load_devices(path), path, linked)


def test_memory_that_nobody_measured_counts_tensors_alone_and_says_so(write) -> None:  # type: ignore[no-untyped-def]
    path = write(f'[[device]]\nname = "pi"\nmemory_bytes = 1000\n{FULL}')
    ((device,), remarks) = make_devices(load_devices(path), path, msgspec.structs.replace(PROFILE, memory=None))
    assert (device.kind.base_bytes, device.kind.growth) == (0, 1.0)
    assert remarks == ["no profile measured memory for pi: their limits count the tensors of a slice alone"]


def test_a_message_cost_that_nobody_knows_is_asked_for(write) -> None:  # type: ignore[no-untyped-def]
    silent = msgspec.structs.replace(PROFILE, message=None)
    path = write(f'[[device]]\nname = "pi"\n{FULL}')
    with pytest.raises(ConfigError, match="pi has no message_s"):
        make_devices(load_devices(path), path, silent)
    path = write(f'[[device]]\nname = "pi"\nmessage_s = 0.0\n{FULL}')
    assert make_devices(load_devices(path), path, silent)[0][0].kind.message_s == 0.0


def test_a_profile_of_another_model_is_refused(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store_profile(msgspec.structs.replace(PROFILE, model_sha256="0" * 64), tmp_path / "pi.json")
    path = write('[[device]]\nname = "pi"\nprofile = "pi.json"\n')
    with pytest.raises(
        ConfigError, match=r"the profile pi\.json of pi is of m\.tflite with other operators or weights"
    ):
        make_devices(load_devices(path), path, PROFILE)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("device = []", "no device; expected at least one"),
        ("", "missing required field `device`"),
        ('[[device]]\nname = "a"\ncolour = 3', "unknown field `colour`"),
        (
            '[[device]]\nname = "a"\n[[device]]\nname = "a"',
            "the name a comes twice; give each device a name of its own",
        ),
        ('[[device]]\nname = "a"\ncount = 2\n[[device]]\nname = "a-2"', "the name a-2 comes twice"),
        ('[[device]]\nname = "a"\ncount = 0', "count of a is 0; expected 1 to 256"),
        (
            '[[device]]\nname = "a"\ncount = 200\n[[device]]\nname = "b"\ncount = 200',
            "400 devices; expected at most 256",
        ),
        ('[[device]]\nname = ""', "a device has no name"),
        ('[[device]]\nname = "a"\nspeed = 0.0', "speed of a is 0.0; expected a number above 0"),
        ('[[device]]\nname = "a"\nspeed = nan', "speed of a is nan; expected a number above 0"),
        ('[[device]]\nname = "a"\nlatency_s = -1.0', "latency_s of a is -1.0; expected 0 or more seconds"),
        ('[[device]]\nname = "a"\nlink_bytes_per_s = inf', "link_bytes_per_s of a is inf; expected a number above 0"),
        ('[[device]]\nname = "a"\nspeed = 2.0\nprofile = "x"', "a has both speed and profile"),
        ('sensors = "far"\n[[device]]\nname = "a"', "Invalid enum value 'far'"),
        ("[[device", "see docs/reference/devices-file.md for every key"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(write, text: str, error: str) -> None:  # type: ignore[no-untyped-def]
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_devices(path)
    assert error in str(caught.value) and str(caught.value).startswith(str(path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot read nowhere\.toml: No such file or directory; expected a devices"):
        load_devices(Path("nowhere.toml"))


def test_a_profile_is_kept_and_found_by_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = profile_path("here", PROFILE.model_sha256, 1)
    assert path == tmp_path / "har-edge" / "profiles" / "here-abababababababab-1.json"
    store_profile(PROFILE, path)
    assert load_profile(path) == PROFILE and PROFILE.bounds == (0, 2, 5)
    (path.parent / "old.json").write_text('{"version": 0}')
    assert cached_profiles("here") == [PROFILE] and cached_profiles("there") == []
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": 9}, "has version 9, expected 1"),
        ({"segments": []}, "is no profile of a whole model"),
        ({"segments": [{"start": 0, "stop": 2, "seconds": 1, "measured": True, "work": []},
                       {"start": 3, "stop": 4, "seconds": 1, "measured": True, "work": []}]}, "is no profile of"),
        ({"overhead_s": -1.0}, "expected segments one after the other, and figures of 0 or above"),
        ({"link": {"round_trip_s": 0.1, "bytes_per_s": 0.0}}, "figures of 0 or above"),
        ({"colour": 1}, "unknown field `colour`"),
    ],
)  # fmt: skip
def test_a_profile_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], error: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(PROFILE) | changes))
    with pytest.raises(ConfigError, match=error):
        load_profile(path)


def test_a_profile_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; make it with 'har-edge profile MODEL'"):
        load_profile(tmp_path / "p.json")
    with pytest.raises(ConfigError, match="cannot write the profile"):
        store_profile(PROFILE, Path("/proc/nowhere/p.json"))
