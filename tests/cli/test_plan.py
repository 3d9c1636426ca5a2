"""The `profile` and `plan` commands: what they print, keep and refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from har_edge.cli.main import main
from har_edge.cli.reports.bars import bar
from har_edge.cli.reports.shared_layers import draw_blocks, draw_mermaid
from har_edge.mqtt.broker.launcher import Mosquitto
from har_edge.planner.plan import Plan
from har_edge.planner.profile import MessageCost, PackingFigures, Profile, load_profile, profile_path, store_profile
from har_edge.planner.simulation import Simulator
from har_edge.planner.split_model import SplitOperator, SplitTensor
from har_edge.planner.split_plan import SplitCandidate
from har_edge.tflite.manifest import load_manifest
from har_edge.tflite.model import read_model
from har_edge.tflite.split.plan import Block, SplitMethod
from har_edge.tflite.split.plan_file import load_plan
from har_edge.tflite.split.program import split_model
from har_edge.units import duration, size
from tests.cli.test_second_data_set import write_model
from tests.planner.split_models import Window, chain_model, costs_of
from tests.tflite import models
from tests.tflite.split.layers import Layers

Run = Callable[..., tuple[int, str, str]]
DEVICES = """
[[device]]
name = "fast"
link_bytes_per_s = 1e7
latency_s = 0.001

[[device]]
name = "slow"
count = 2
speed = 0.25
link_bytes_per_s = 1e6
latency_s = 0.002
"""


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with a cache of its own; return exit code, standard output and standard error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(models.skip())
    return path


@pytest.fixture
def profile(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile in round numbers: 4 ms a segment beyond the 1 ms of a run, 0.1 ms a message."""
    from har_edge.cli.commands import profile as command
    from har_edge.runtime.profiling import Timing, make_profile

    monkeypatch.setattr(command, "device_name", lambda asked: asked or "here")
    loaded = read_model(model)
    timing = Timing((0, 1, 2, 3, 4, 5), dict.fromkeys(range(5), 5e-3), 21e-3, 1e-3, ())
    made = msgspec.structs.replace(make_profile(loaded, "here", timing), message=MessageCost(1e-4, 0.0, "made up"))
    path = tmp_path / "profile.json"
    store_profile(made, path)
    store_profile(made, profile_path("here", loaded.sha256, 1))
    return path


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    path = tmp_path / "devices.toml"
    path.write_text(DEVICES)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
def test_a_profile_is_measured_once_and_kept(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "own.json"
    code, text, _ = run("profile", str(model), "--device", "bench-1", "--out", str(out))
    assert code == 0
    assert text.startswith("model.tflite on bench-1 (") and "[4, 5)" in text and "whole model" in text
    assert "processor time to send or receive" in text
    assert "note: the link was not measured: name the broker with --broker" in text
    made = load_profile(out)
    assert load_profile(profile_path("bench-1", made.model_sha256, 1)) == made
    assert made.message is not None and made.link is None and len(made.segments) == 5
    code, text, _ = run("profile", str(model), "--device", "bench-1", "--json")
    assert code == 0 and msgspec.json.decode(text, type=Profile) == made
    code, text, _ = run("profile", str(model), "--device", "bench-1")
    assert "note: measured before; --again measures anew" in text


@pytest.mark.slow
def test_a_named_broker_adds_the_link(run: Run, model: Path, profile: Path, mosquitto: Mosquitto) -> None:
    code, text, _ = run("profile", str(model), "--device", "here", "--broker", mosquitto.address.url)
    assert code == 0 and "there and back" in text
    kept = load_profile(profile_path("here", read_model(model).sha256, 1))
    assert kept.link is not None and kept.link.round_trip_s > 0 and kept.link.bytes_per_s > 0
    assert kept.message is not None and kept.message.broker == mosquitto.address.url
    assert kept.segments == load_profile(profile).segments  # the rest stays as it was


def test_estimates_are_marked(run: Run, model: Path, profile: Path) -> None:
    path = profile_path("here", read_model(model).sha256, 1)
    kept = load_profile(path)
    part = msgspec.structs.replace(kept.segments[1], measured=False)
    from har_edge.planner.profile import Fit

    store_profile(
        msgspec.structs.replace(kept, segments=(kept.segments[0], part, *kept.segments[2:]), fit=Fit(4, 0.2)), path
    )
    _, text, _ = run("profile", str(model), "--device", "here")
    assert "~5.00 ms" in text
    assert "1 of 5 times are estimates (~), by least squares on 4 measured segments" in text
    assert "the median error is 20%" in text


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("nothing",), "no model 'nothing'"),
        (("int8", "--device", "a/b"), "--device is 'a/b'; expected 1 to 128 letters"),
        (("int8", "--broker", "somewhere"), "broker is 'somewhere'; expected mqtt://HOST"),
        (("int8", "--broker", "mqtt://127.0.0.1:1"), "127.0.0.1:1"),
    ],
)
def test_what_cannot_be_profiled_says_why_before_it_is_measured(
    run: Run, options: tuple[str, ...], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from har_edge.cli.commands import profile as command

    monkeypatch.setattr(command, "_measure", None)
    code, _, err = run("profile", *options)
    assert code == 2 and error in err


def test_a_plan_is_a_table_with_reasons(run: Run, model: Path, devices: Path, profile: Path) -> None:
    code, text, _ = run("plan", str(model), "--devices", str(devices), "--replicas", "1", "--no-split")
    assert code == 0
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["stage", "operators", "device"]
    assert any("fast" in line and "█" in line for line in lines)
    assert any(line.split()[-2:] == ["ratio", "bar"] for line in lines)
    assert "no plan of whole layers has a smaller bottleneck: proven" in text
    assert "this plan" in text and "one device: fast" in text and "3 slices of equal time, devices in order" in text
    assert f"cut it with: har-edge slice {model} --at " in text


def test_a_plan_as_json_and_in_a_file(run: Run, model: Path, devices: Path, profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    code, text, _ = run("plan", str(model), "--devices", str(devices), "--json", "--out", str(out))
    assert code == 0
    report = json.loads(text)
    plan = msgspec.json.decode(out.read_bytes(), type=Plan)
    assert msgspec.convert(report["plan"], Plan) == plan
    assert {*plan.devices, *plan.spare} == {"fast", "slow-1", "slow-2"}
    assert plan.stages[0].start == 0 and plan.stages[-1].stop == 5
    # Of three devices the two slow ones hold up a fast one that takes turns with them.
    assert all(
        row["bottleneck_s"] is None or row["bottleneck_s"] >= plan.bottleneck_s for row in report["alternatives"]
    )


def test_latency_wants_one_fast_device(run: Run, model: Path, devices: Path, profile: Path) -> None:
    _, text, _ = run("plan", str(model), "--devices", str(devices), "--objective", "latency")
    assert "1 stage on 1 of 3 devices" in text and "not used: slow-1, slow-2" in text
    assert "no plan of whole layers has a smaller latency: proven" in text and "cut it with" not in text
    assert "nothing to cut: the whole model runs on fast" in text


def test_replicas_are_named_with_what_they_need(run: Run, model: Path, tmp_path: Path, profile: Path) -> None:
    path = tmp_path / "equal.toml"
    path.write_text('[[device]]\nname = "pi"\ncount = 5\nlink_bytes_per_s = 1e7\nlatency_s = 0.001\n')
    _, text, _ = run("plan", str(model), "--devices", str(path), "--replicas", "5")
    assert "pi-1 and 4 more" in text and "note: devices that take turns at a stage need a shared subscription" in text
    assert "no replicas" in text


def test_a_named_profile_must_be_of_the_model(run: Run, devices: Path, profile: Path) -> None:
    code, _, err = run("plan", "int8", "--devices", str(devices), "--profile", str(profile))
    assert code == 2 and "is the profile of model.tflite, not of har-int8.tflite; profile this model" in err


def test_a_model_never_profiled_is_estimated_from_others_or_refused(
    run: Run, tmp_path: Path, devices: Path, profile: Path, model: Path
) -> None:
    other = tmp_path / "other.tflite"
    other.write_bytes(models.chain())
    code, text, _ = run("plan", str(other), "--devices", str(devices))
    assert code == 0
    assert "note: other.tflite was never measured here: profile it for a plan to rely on" in text
    assert "4 of 4 segments are estimated by regression on 5 others" in text
    profile_path("here", read_model(model).sha256, 1).unlink()
    code, _, err = run("plan", str(other), "--devices", str(devices))
    assert code == 2 and "no profile of other.tflite on this device (here); make one with 'har-edge profile'" in err


@pytest.mark.slow
def test_prices_without_xnnpack_are_apart_from_those_with_it(
    run: Run, model: Path, devices: Path, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from har_edge.cli.commands import profile as command

    monkeypatch.setattr(command, "measure_through_broker", lambda *_: (MessageCost(1e-4, 0.0, "made up"), None))
    code, _, err = run("plan", str(model), "--devices", str(devices), "--delegate", "none")
    assert code == 2 and "no profile of model.tflite on this device (here) without XNNPACK" in err
    assert "make one with 'har-edge profile --delegate none'" in err
    code, text, _ = run("profile", str(model), "--device", "here", "--delegate", "none")
    assert code == 0 and text.startswith("model.tflite on here (") and "threads: 1, delegate none" in text
    path = profile_path("here", read_model(model).sha256, 1, "none")
    made = load_profile(path, "none")
    assert made.computed_by == "none" and made.segments != load_profile(profile).segments
    assert load_profile(profile_path("here", made.model_sha256, 1)) == load_profile(profile)  # as it was
    _, text, _ = run("profile", str(model), "--device", "here", "--delegate", "none")
    assert "note: measured before; --again measures anew" in text
    plan = ("plan", str(model), "--devices", str(devices))
    _, text, _ = run(*plan, "--delegate", "none", "--json")
    whole = json.loads(text)["plan"]
    assert sum(stage["compute_s"] for stage in whole["stages"]) < 1e-3  # a tiny model, not the made-up 21 ms
    assert run(*plan, "--delegate", "none", "--profile", str(path))[0] == 0
    for options, named, who in (((), path, "none"), (("--delegate", "none"), profile, "xnnpack")):
        code, _, err = run(*plan, *options, "--profile", str(named))
        assert code == 2 and f"was measured with --delegate {who}, but" in err
    own = tmp_path / "own.toml"
    own.write_text(f'[[device]]\nname = "a"\nprofile = "{path}"\nlink_bytes_per_s = 1e7\nlatency_s = 0.001\n')
    code, _, err = run("plan", str(model), "--devices", str(own))
    assert code == 2 and "was measured with --delegate none, but xnnpack will compute" in err
    assert run("plan", str(model), "--devices", str(own), "--delegate", "none")[0] == 0


def test_a_plan_without_xnnpack_is_cut_and_checked_so(
    run: Run, model: Path, devices: Path, profile: Path, tmp_path: Path
) -> None:
    made = msgspec.structs.replace(load_profile(profile), delegate="none")
    path = tmp_path / "none.json"
    store_profile(made, path)
    options = ("--devices", str(devices), "--replicas", "1", "--delegate", "none", "--profile", str(path), "--no-split")
    code, text, _ = run("plan", str(model), *options)
    assert code == 0 and f"cut it with: har-edge slice {model} --delegate none --at " in " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[[device]]\nname = "a"\ncolour = 1', "unknown field `colour`"),
        (DEVICES + '[[device]]\nname = "fast"', "the name fast comes twice"),
        (
            '[[device]]\nname = "a"\nmemory_bytes = 10\nlink_bytes_per_s = 1e6\nlatency_s = 0.0',
            "model.tflite is too large for all devices together",
        ),
        ('[[device]]\nname = "a"', "a has no link_bytes_per_s"),
    ],
)
def test_what_is_wrong_with_the_devices_is_named(
    run: Run, model: Path, tmp_path: Path, profile: Path, text: str, error: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    code, out, err = run("plan", str(model), "--devices", str(path))
    assert (code, out) == (2, "") and err.startswith("error: ") and error in err


def test_figures_are_readable() -> None:
    assert [duration(s) for s in (0.0, 2.1e-6, 0.0123, 0.9999, 1.5, 75.0)] == [
        "0 s", "2.10 µs", "12.3 ms", "1.00 s", "1.50 s", "75.0 s",
    ]  # fmt: skip
    assert [size(n) for n in (0, 999, 1000, 53_200_000, 2_000_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "53.2 MB",
        "2.0 GB",
    ]
    assert [bar(v, 4.0, 2) for v in (0.0, 1.0, 3.0, 4.0, 9.0)] == ["", "▌", "█▌", "██", "██"]
    assert bar(1.0, 0.0) == ""


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Convolutions over 24 rows; each takes a second, and messages nearly nothing."""
    layers = Layers(0, (1, 24, 6, 3))
    x = layers.x
    for _ in range(4):
        x = layers.conv(x, 4)
    path = tmp_path / "network.tflite"
    path.write_bytes(layers.build(layers.scores(x)))
    return path


@pytest.fixture
def slow(network: Path, tmp_path: Path) -> Path:
    from har_edge.runtime.profiling import Timing, make_profile

    loaded = read_model(network)
    timing = Timing((0, 1, 2, 3, 4, 5), {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 2e-3}, 4.002, 1e-3, ())
    made = msgspec.structs.replace(make_profile(loaded, "here", timing), message=MessageCost(1e-4, 0.0, "made up"))
    path = tmp_path / "slow.json"
    store_profile(made, path)
    return path


def equal_devices(tmp_path: Path, count: int, rate: float, broker: float | None = None) -> Path:
    path = tmp_path / "equal.toml"
    text = f'[[device]]\nname = "pi"\ncount = {count}\nlink_bytes_per_s = {rate}\nlatency_s = 0.001\nduplex = true\n'
    path.write_text(text + (f"[broker]\nlink_bytes_per_s = {broker}\n" if broker else ""))
    return path


def test_devices_share_layers_for_the_latency_of_one_window(
    run: Run, network: Path, slow: Path, tmp_path: Path
) -> None:
    devices, out, drawing = equal_devices(tmp_path, 4, 1e7), tmp_path / "plan.json", tmp_path / "plan.mmd"
    options = ["--devices", str(devices), "--profile", str(slow), "--objective", "latency", "--out", str(out)]
    code, text, err = run("plan", str(network), *options, "--drawing", str(drawing))
    assert code == 0 and err == ""
    assert "1 stage on 4 of 4 devices" in text and "a pi-1, b pi-2, c pi-3, d pi-4" in text
    assert "aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd" in text
    assert "whole layers only" not in text and "one device: pi-1" in text  # the best of these is one device
    assert "the largest message has" in text
    assert f"cut it with: har-edge slice {network} --plan {out} --out DIR" in text
    plan, file = msgspec.json.decode(out.read_bytes(), type=Plan), load_plan(out)
    (group,) = file.stages
    assert group.split is not None and group.devices == ("pi-1", "pi-2", "pi-3", "pi-4")
    assert plan.stages[0].split == group.split and plan.max_payload_bytes == file.max_payload_bytes > 0
    layout = split_model(read_model(network), [group.split])
    assert len(layout.programs) == 4 and plan.latency_s < 1.5
    chart = drawing.read_text()
    assert chart.startswith("flowchart TD\n") and "source -->|" in chart and "--> result" in chart


@pytest.mark.parametrize(("objective", "devices"), [("latency", 3), ("throughput", 6)])
def test_slice_cuts_what_plan_wrote(
    run: Run, network: Path, slow: Path, tmp_path: Path, objective: str, devices: int
) -> None:
    file, out, folder = equal_devices(tmp_path, devices, 1e7), tmp_path / "plan.json", tmp_path / "slices"
    options = ["--devices", str(file), "--profile", str(slow), "--replicas", "1", "--objective", objective]
    assert run("plan", str(network), *options, "--out", str(out))[0] == 0
    code, _, err = run("slice", str(network), "--plan", str(out), "--out", str(folder))
    assert code == 0, err
    plan, manifest = load_plan(out), load_manifest(folder)
    spans = [(group.start, group.stop) for group in plan.stages for _ in group.devices]
    assert [(entry.start, entry.stop) for entry in manifest.slices] == spans and len(spans) == devices
    assert any(entry.steps for entry in manifest.slices)
    code, text, _ = run("slice", str(network), "--check", "--slices", str(folder))
    assert code == 0 and "equal" in text


def test_a_slow_link_is_named_as_the_limit(run: Run, network: Path, slow: Path, tmp_path: Path) -> None:
    devices = equal_devices(tmp_path, 4, 1e8, broker=2e4)
    _, text, _ = run("plan", str(network), "--devices", str(devices), "--profile", str(slow), "--objective", "latency")
    told = " ".join(text.split())
    assert "the link of the broker's host is the limit: at 300 Mbit/s this plan would be" in told


def test_packing_is_used_where_it_gains(run: Run, network: Path, slow: Path, tmp_path: Path) -> None:
    devices = equal_devices(tmp_path, 4, 1e8, broker=2e4)
    known = load_profile(slow)
    figures = (PackingFigures("zstd", 2.0, 1e-9, "made up"), PackingFigures("f2", 1.9, 1.0, "made up"))
    store_profile(msgspec.structs.replace(known, packings=figures), slow)
    options = ["plan", str(network), "--devices", str(devices), "--profile", str(slow), "--objective", "latency"]
    plain = msgspec.convert(json.loads(run(*options, "--json")[1])["plan"], Plan)
    packed = msgspec.convert(json.loads(run(*options, "--json", "--pack", "f2", "--pack", "zstd")[1])["plan"], Plan)
    assert plain.packing is msgspec.UNSET and packed.packing == "zstd"  # f2 takes the processor seconds a byte
    assert packed.latency_s < plain.latency_s and packed.broker_bytes < plain.broker_bytes
    _, text, _ = run(*options, "--pack", "zstd")
    assert "--pack zstd --out DIR" in " ".join(text.split())
    code, _, err = run(*options, "--pack", "q8")
    assert code == 2 and "the profile has no figures for it (it has zstd, f2)" in " ".join(err.split())


def test_each_tensor_travels_in_the_way_that_is_best_for_it(
    run: Run, network: Path, slow: Path, tmp_path: Path
) -> None:
    devices, out, folder = equal_devices(tmp_path, 4, 1e8, broker=2e4), tmp_path / "plan.json", tmp_path / "slices"
    figures = (PackingFigures("zstd", 2.0, 1e-9, "made up"), PackingFigures("f2", 2.2, 1e-9, "made up"))
    store_profile(msgspec.structs.replace(load_profile(slow), packings=figures), slow)
    options = ["plan", str(network), "--devices", str(devices), "--profile", str(slow), "--objective", "latency"]
    lossless = msgspec.convert(json.loads(run(*options, "--pack", "auto", "--json")[1])["plan"], Plan)
    assert lossless.packing is msgspec.UNSET and set(lossless.packings.values()) == {"zstd"}  # nothing else was allowed
    _, text, _ = run(*options, "--pack", "auto", "--pack", "f2", "--out", str(out))
    told = " ".join(text.split())
    assert "note: activations travel as f2 before operator" in told and "--pack auto --out DIR" in told
    packings = load_plan(out).packings
    assert set(packings.values()) == {"f2"}
    code, text, _ = run("slice", str(network), "--plan", str(out), "--pack", "auto", "--out", str(folder))
    assert code == 0 and "rounded activations change answers" in " ".join(text.split())
    sent = {spec.of: spec.packing for entry in load_manifest(folder).slices for spec in entry.outputs if spec.packing}
    assert sent == packings
    code, text, _ = run("slice", str(network), "--plan", str(out), "--out", str(tmp_path / "plain"))
    assert code == 0 and "on the way, and this folder none: add --pack auto" in " ".join(text.split())
    code, _, err = run("slice", str(network), "--at", "2", "--pack", "auto", "--out", str(tmp_path / "other"))
    assert code == 2 and "--pack auto came; expected it alone and with --plan FILE" in " ".join(err.split())


def test_a_plan_names_the_devices_that_should_carry_brokers(
    run: Run, network: Path, slow: Path, tmp_path: Path
) -> None:
    devices, out = equal_devices(tmp_path, 3, 1e8, broker=2e4), tmp_path / "plan.json"
    options = ["plan", str(network), "--devices", str(devices), "--profile", str(slow), "--objective", "latency"]
    central = msgspec.convert(json.loads(run(*options, "--json")[1])["plan"], Plan)
    code, text, err = run(*options, "--own-brokers", "--out", str(out))
    told = " ".join(text.split())
    assert code == 0, err
    plan, file = msgspec.json.decode(out.read_bytes(), type=Plan), load_plan(out)
    assert plan.latency_s < central.latency_s and plan.broker_bytes < central.broker_bytes
    assert file.brokers == plan.brokers and set(plan.brokers.values()) <= {"pi-1", "pi-2", "pi-3"}
    assert all(plan.stages[0].devices[int(number)] == name for number, name in file.brokers.items())
    assert "note: flows go through the brokers of devices: those of slice" in told
    assert "the same blocks, all through the central broker" in told
    _, text, _ = run("slice", str(network), "--plan", str(out), "--out", str(tmp_path / "cut"))
    assert "the plan sends flows through brokers of devices (those of slice" in " ".join(text.split())
    code, _, err = run(*options, "--own-brokers", "--no-split")
    assert code == 2 and "--own-brokers came with --no-split" in " ".join(err.split())


@pytest.mark.parametrize(("objective", "goal"), [("throughput", "bottleneck"), ("latency", "latency")])
def test_a_plan_with_parities_says_what_the_better_one_without_is(
    run: Run, network: Path, slow: Path, tmp_path: Path, objective: str, goal: str
) -> None:
    devices, drawing = equal_devices(tmp_path, 3, 100.0), tmp_path / "plan.mmd"
    options = ["--devices", str(devices), "--profile", str(slow), "--objective", objective, "--float-parity"]
    code, text, err = run("plan", str(network), *options, "--replicas", "1", "--drawing", str(drawing))
    told = " ".join(text.split())
    assert code == 0, err
    smaller = rf": a {goal} ([0-9.]+)% smaller, with [12] devices? and a [a-z]+ of [^:]*: (.*?parity costs)"
    found = re.search(smaller, told)
    assert found is not None and float(found[1]) > 50, told
    assert found[2] == "the difference is what the parity costs" and "1 devices" not in told
    assert "nearly as much" not in told and "was not found" not in told
    assert f"note: every layer is shared, with a parity: {drawing} shows its stages" in told


def profile_of(name: str, path: Path, seconds: float) -> Path:
    from har_edge.config.catalog import find_model
    from har_edge.inference.segment_timing import segment_bounds
    from har_edge.runtime.profiling import Timing, make_profile

    model = read_model(find_model(name).path)
    bounds = tuple(segment_bounds(model))
    each = dict.fromkeys(range(len(bounds) - 1), seconds)
    timing = Timing(bounds, each, seconds * len(each), seconds / 100, ())
    made = make_profile(model, "here", timing)
    store_profile(msgspec.structs.replace(made, message=MessageCost(1e-4, 0.0, "made up")), path)
    return path


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_a_model_with_several_inputs_is_shared_where_that_is_faster(run: Run, tmp_path: Path, objective: str) -> None:
    """Each shard of the first block takes its rows of all three inputs."""
    devices, out, slow = equal_devices(tmp_path, 4, 1e7), tmp_path / "plan.json", tmp_path / "slow.json"
    options = ["--devices", str(devices), "--profile", str(profile_of("int8", slow, 0.1)), "--objective", objective]
    code, _, err = run("plan", "int8", *options, "--out", str(out))
    assert code == 0, err
    plan = msgspec.json.decode(out.read_bytes(), type=Plan)
    assert plan.is_split and plan.stages[0].start == 0
    code, text, err = run("slice", "int8", "--plan", str(out), "--out", str(tmp_path / "slices"), "--check")
    assert code == 0 and "equal, bit for bit" in " ".join(text.split()), err


def test_a_plan_that_shares_no_layers_says_that_whole_ones_are_faster(run: Run, tmp_path: Path) -> None:
    devices, fast = equal_devices(tmp_path, 3, 1e6), tmp_path / "fast.json"
    options = ["--devices", str(devices), "--profile", str(profile_of("int8", fast, 1e-5)), "--objective", "latency"]
    _, text, _ = run("plan", "int8", *options)
    told = " ".join(text.split())
    assert "no way to share layers was found that is faster than whole ones" in told
    assert "one device is faster" in told and "cannot be shared" not in told


def test_a_model_without_a_place_where_one_tensor_crosses_is_not_shared(run: Run, tmp_path: Path) -> None:
    layers = Layers(0, (1, 12, 12, 3))
    path = tmp_path / "one.tflite"
    path.write_bytes(layers.build(layers.conv(layers.x, 8)))
    devices, slow = equal_devices(tmp_path, 3, 1e7), tmp_path / "slow.json"
    _, text, err = run("plan", str(path), "--devices", str(devices), "--profile", str(profile_of(str(path), slow, 1.0)))
    told = " ".join(text.split())
    assert "layers cannot be shared here: the planner shares them up to places where one tensor crosses" in told, err


def test_one_device_is_faster_where_messages_cost_more(run: Run, network: Path, slow: Path, tmp_path: Path) -> None:
    devices = equal_devices(tmp_path, 4, 100.0)
    _, text, _ = run("plan", str(network), "--devices", str(devices), "--profile", str(slow), "--objective", "latency")
    assert "one device is faster" in text and "1 stage on 1 of 4 devices" in text


def test_layers_stay_whole_where_sharing_gains_less_than_predictions_are_off_by(
    run: Run, network: Path, slow: Path, tmp_path: Path
) -> None:
    options = ["--profile", str(slow), "--replicas", "1", "--objective", "latency"]
    _, text, _ = run("plan", str(network), "--devices", str(equal_devices(tmp_path, 3, 150.0)), *options)
    told = " ".join(text.split())
    found = re.search(r"shared layers: a latency ([0-9.]+)% smaller, with 2 devices and a bottleneck of [^:]*: ", told)
    assert found is not None and 0 < float(found[1]) < 5, told
    assert "less than predictions are off by, so that layers stay whole" in told
    assert "1 stage on 1 of 3 devices" in told and "one device is faster" not in told
    _, text, _ = run("plan", str(network), "--devices", str(equal_devices(tmp_path, 3, 300.0)), *options)
    assert re.search("1 stage on [23] of 3 devices", text) and "layers stay whole" not in " ".join(text.split())


def test_no_split_plans_whole_layers(run: Run, network: Path, slow: Path, tmp_path: Path) -> None:
    devices, drawing = equal_devices(tmp_path, 4, 1e7), tmp_path / "plan.mmd"
    options = ["--devices", str(devices), "--profile", str(slow), "--replicas", "1", "--no-split"]
    _, text, _ = run("plan", str(network), *options, "--json")
    plan = msgspec.convert(json.loads(text)["plan"], Plan)
    assert not plan.is_split and len(plan.stages) == 4
    assert all("split" not in stage for stage in json.loads(text)["plan"]["stages"])
    out = tmp_path / "plan.json"
    code, text, err = run("plan", str(network), *options, "--drawing", str(drawing), "--out", str(out))
    assert code == 0 and err == "" and msgspec.json.decode(out.read_bytes(), type=Plan) == plan
    assert f"note: no layer is shared in this plan: {drawing} shows its stages" in " ".join(text.split())
    chart, spans = drawing.read_text(), [(stage.start, stage.stop - 1) for stage in plan.stages]
    assert [f'n{i}["operators {a} to {b}<br/>pi-{i + 1}"]' in chart for i, (a, b) in enumerate(spans)] == [True] * 4
    assert [line.strip().split(" ")[0] for line in chart.splitlines() if "-->" in line] == [
        "source", "n0", "n1", "n2", "n3",
    ]  # fmt: skip
    assert chart.splitlines()[-1].endswith("result") and "source -->|" in chart


@pytest.mark.parametrize("options", [(), ("--no-split",), ("--objective", "latency")])
def test_every_plan_pays_for_the_link_of_the_broker(
    run: Run, network: Path, slow: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    devices = equal_devices(tmp_path, 4, 1e8, broker=100.0)
    command = ["plan", str(network), "--devices", str(devices), "--profile", str(slow), *options]
    report = json.loads(run(*command, "--json")[1])
    plan = msgspec.convert(report["plan"], Plan)
    source = read_model(network).main.tensors[read_model(network).main.inputs[0]].bytes
    busy = (source + 128 + 256) / 100  # the window leaves with its envelope, and so does the result
    assert plan.bottleneck_s == plan.broker_s == pytest.approx(busy) and plan.devices == ("pi-1",) and plan.proven
    assert plan.broker_bytes == 2 * (source + 128 + 256)
    rows = {row["name"]: row for row in report["alternatives"]}
    assert rows["one device: pi-1"]["bottleneck_s"] == pytest.approx(busy)
    assert rows["4 slices of equal time, devices in order"]["bottleneck_s"] > 1.5 * busy
    key, value = ("latency_s", plan.latency_s) if "latency" in options else ("bottleneck_s", plan.bottleneck_s)
    assert all(row[key] >= value * (1 - 1e-9) for row in rows.values())
    text = " ".join(run(*command)[1].split())
    assert "at the link of the broker's host, at most" in text and "proven" in text


def test_one_device_is_preferred_where_others_gain_next_to_nothing(
    run: Run, model: Path, tmp_path: Path, profile: Path
) -> None:
    path = tmp_path / "equal.toml"
    # A window takes 21.2 ms of one device; the link lets one through every 21.1 ms.
    taken = read_model(model).main.tensors[read_model(model).main.inputs[0]].bytes + 128 + 256
    path.write_text(
        '[[device]]\nname = "pi"\ncount = 2\nlink_bytes_per_s = 1e7\nlatency_s = 0.001\n'
        f"[broker]\nlink_bytes_per_s = {taken / 21.1e-3}\n"
    )
    text = " ".join(run("plan", str(model), "--devices", str(path))[1].split())
    assert "1 stage on 1 of 2 devices: a window every 21.2 ms at the slowest stage" in text
    assert "at least 2 devices: a bottleneck 0.5% smaller, with 2 devices" in text and "proven" not in text


def test_one_device_is_no_plural(run: Run, model: Path, tmp_path: Path, profile: Path) -> None:
    path = tmp_path / "equal.toml"
    path.write_text('[[device]]\nname = "pi"\ncount = 2\nlink_bytes_per_s = 1e7\nlatency_s = 0.001\n')
    text = run("plan", str(model), "--devices", str(path))[1]
    assert "at most 1 device " in text and "at most 1 devices" not in text


def test_the_command_to_cut_takes_names_with_spaces(run: Run, model: Path, devices: Path, profile: Path) -> None:
    odd = model.with_name("my model.tflite")
    odd.write_bytes(model.read_bytes())
    text = run("plan", str(odd), "--devices", str(devices), "--replicas", "1", "--no-split")[1]
    assert f"cut it with: har-edge slice '{odd}' --at " in text


def test_throughput_shares_the_heaviest_stage(run: Run, network: Path, slow: Path, tmp_path: Path) -> None:
    devices = equal_devices(tmp_path, 6, 1e7)
    options = ["--devices", str(devices), "--profile", str(slow), "--replicas", "1", "--json"]
    _, text, _ = run("plan", str(network), *options)
    report = json.loads(text)
    plan = msgspec.convert(report["plan"], Plan)
    assert plan.is_split and plan.bottleneck_s < 4.002 / 5
    (whole,) = [row for row in report["alternatives"] if row["name"] == "whole layers only"]
    assert whole["bottleneck_s"] == pytest.approx(1.0, rel=0.02)


def test_rows_of_one_device_alone_are_whole() -> None:
    layer, dense = SplitOperator("CONV_2D", (0,), 1, 1000, linear=True), SplitOperator("ADD", (1,), 2, 500)
    picture = SplitTensor(8, 1, 800)
    costs = costs_of(chain_model([layer, layer, dense], [picture] * 3 + [SplitTensor(0, 2, 8)], [Window(1, 3, 1)] * 3))
    blocks = (Block(0, 1, SplitMethod.ROWS, (0, 4, 8)), Block(1, 2, SplitMethod.ROWS, (0, 8, 8)))
    blocks = (*blocks, Block(2, 3, SplitMethod.WHOLE, (0, 1, 1)))
    candidate = SplitCandidate(costs, blocks, False, Simulator(costs, border_first=False).forecast(blocks))
    assert [line.split()[2] for line in draw_blocks(candidate)[1:4]] == ["rows", "whole", "whole"]
    chart = draw_mermaid(candidate)
    assert '"operators 0 to 0, rows"' in chart and '"operators 1 to 1, whole"' in chart and 'n1_0["pi-0"]' in chart


def test_a_profile_without_recordings_packs_activations_of_random_inputs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest names a stream, of which there are no recordings; nothing of the measurement is lost."""
    from har_edge.mqtt.broker import launcher

    monkeypatch.setattr(launcher, "find_mosquitto", lambda: None)
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    path = write_model(tmp_path / "fans")
    code, text, err = run("profile", str(path), "--device", "bench-1")
    assert code == 0 and err == ""
    told = " ".join(text.split())
    assert "packing was measured on random inputs, for want of recordings of 'machine.toml'" in told
    kept = load_profile(profile_path("bench-1", read_model(path).sha256, 1))
    assert len(kept.segments) > 1 and kept.packing("zstd") is not None
    assert {one.data for one in kept.packings or ()} == {"random inputs, for want of recordings of 'machine.toml'"}
    (path.parent / "machine.toml").unlink()
    code, text, _ = run("profile", str(path), "--device", "bench-1", "--again")
    assert code == 0 and "packing was not measured: " in text and "machine.toml" in text
    assert load_profile(profile_path("bench-1", read_model(path).sha256, 1)).packings == ()


def test_a_plan_with_parities_is_cut_and_checked_without_any_one_device(
    run: Run, network: Path, slow: Path, tmp_path: Path
) -> None:
    devices, out = equal_devices(tmp_path, 4, 1e7), tmp_path / "plan.json"
    options = ["--devices", str(devices), "--profile", str(slow), "--objective", "latency", "--out", str(out)]
    code, _, err = run("plan", str(network), *options, "--parity")
    assert (
        code == 2
        and "sums up floats" in " ".join(err.split())
        and "(of a plan: --float-parity)" in " ".join(err.split())
        and not out.exists()
    )
    code, text, err = run("plan", str(network), *options, "--float-parity")
    told = " ".join(text.split())
    assert code == 0, err
    assert "may be away or late" in told and "the price: a device more" in told and "without parity" in told
    assert "nearly as much" not in told and "no layer is shared" not in told
    code, text, err = run("slice", str(network), "--plan", str(out), "--out", str(tmp_path / "slices"), "--check")
    told = " ".join(text.split())
    assert code == 0 and "without each of" in told, err
    assert "parity of floats: the last bits of an answer depend on which shard is late" in told
    assert "computes the parity of 4 output channels" in told
    code, _, err = run("plan", str(network), *options, "--float-parity", "--no-split")
    assert code == 2 and "--parity came with --no-split, --pack or --own-brokers" in " ".join(err.split())
