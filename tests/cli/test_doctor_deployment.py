"""`har-edge doctor` on a broker that is fine: every flaw of a deployment really made, the first named with its mend."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec
import pytest

from har_edge.protocol.status import StagePhase, State
from har_edge.protocol.topics import Topics
from tests.cli.deployed import Stand
from tests.cli.fleet import Fleet, Running
from tests.runtime.deployed import CARD, Said, report


@dataclass
class Told:
    """What the command said, as JSON."""

    healthy: bool
    first_wrong: str | None
    findings: list[dict[str, str]]

    def of(self, check: str) -> dict[str, str]:
        return next(finding for finding in self.findings if finding["check"] == check)


@pytest.fixture
def stand(fleet: Fleet) -> Stand:
    return Stand(fleet)


def told(stand: Stand, *options: str) -> Told:
    running = stand.run("doctor", "--json", "--timeout", "2", *options)
    lines = [line for line in running.output.splitlines() if line.startswith("{")]
    assert lines, running.output
    seen = msgspec.json.decode(lines[0], type=Told)
    assert running.wait() == (0 if seen.healthy else 1)
    return seen


def test_nothing_is_wrong_and_every_check_says_so(stand: Stand) -> None:
    stand.fleet.stages()
    stand.everything()
    running: Running = stand.run("doctor", COLUMNS="80")
    assert running.wait() == 0 and "nothing is wrong" in running.output, running.output
    said = [line for line in running.output.splitlines() if not line.startswith("note: ")]  # whole, off a terminal
    assert max(map(len, said)) <= 80
    assert not re.search(r"^(wrong|not reached)", running.output, re.M)
    for check in ("broker", "mqtt", "credentials", "settings", "coordinator", "nodes", "clocks", "versions", "plan"):
        assert re.search(rf"^ok +{check} ", running.output, re.M), (check, running.output)
    for kind in ("window", "act", "result", "node", "beat", "plan", "slice", "chunk"):
        assert re.search(rf"^ok +topic {kind} +may publish and read", running.output, re.M), (kind, running.output)
    assert re.search(r"^ok +flow +a probe window went through in \d", running.output, re.M)


def test_trying_permissions_leaves_nothing_behind_and_changes_no_plan(stand: Stand) -> None:
    stand.everything()
    before = stand.retained()
    stand.run("doctor", "--timeout", "1")
    assert stand.retained() == before and stand.fleet.topics.plan() in before


def test_no_nodes(stand: Stand) -> None:
    stand.status("coordinator", "coordinator")
    seen = told(stand)
    assert seen.first_wrong == "nodes" and seen.of("nodes")["said"].startswith("none")
    assert seen.of("clocks")["verdict"] == seen.of("versions")["verdict"] == "not reached"


def test_nodes_of_another_pipeline_are_named_with_the_options_that_mend_it(stand: Stand) -> None:
    stand.status("coordinator", "coordinator")
    other = Said(Topics("lab", f"{stand.fleet.name}x")).status("pi-9")
    stand.say(other.topic, other.payload)
    found = told(stand).of("nodes")
    stand.say(other.topic, b"")
    assert f"pi-9 with --base lab --pipeline {stand.fleet.name}x" in found["said"]
    assert f"--base har --pipeline {stand.fleet.name}" in found["mend"]


def test_no_coordinator(stand: Stand) -> None:
    seen = told(stand)
    assert seen.first_wrong == "coordinator" and "none was ever seen" in seen.of("coordinator")["said"]
    assert "har-edge coordinator --model MODEL" in seen.of("coordinator")["mend"]


def test_no_plan(stand: Stand) -> None:
    stand.statuses()
    seen = told(stand)
    assert seen.first_wrong == "plan" and seen.of("plan")["said"].startswith("there is no plan; the coordinator says")
    assert {seen.of(check)["verdict"] for check in ("slices", "stages", "sensors", "flow")} == {"not reached"}


def test_a_chunk_that_is_missing(stand: Stand) -> None:
    stand.everything()
    chunk = next(one for one in stand.files() if "/chunk/" in one.topic)
    stand.say(chunk.topic, b"")
    seen = told(stand)
    assert seen.first_wrong == "slices" and seen.of("slices")["said"] == "slice-0.tflite: 0 of 1 chunks came"
    assert seen.of("flow")["verdict"] == "not reached"


def test_a_chunk_that_is_forged(stand: Stand) -> None:
    stand.everything()
    chunk = next(one for one in stand.files() if "/chunk/" in one.topic)
    stand.say(chunk.topic, bytes(len(chunk.payload)))
    seen = told(stand)
    assert seen.first_wrong == "slices" and "forged or corrupt" in seen.of("slices")["said"]
    assert f"-r -n -t {stand.fleet.topics.prefix}slice/" in seen.of("slices")["mend"]


def test_a_stage_that_does_not_run(stand: Stand) -> None:
    stand.everything()
    stand.reports["pi-2"] = [report(1, StagePhase.FAILED, epoch=stand.epoch, detail="no space left")]
    seen = told(stand)
    assert seen.first_wrong == "stages" and seen.of("stages")["said"] == "stage 1 on pi-2 has failed: no space left"


def test_a_probe_that_is_lost(stand: Stand) -> None:
    stand.everything()  # the nodes say that their stages run, but no process does
    seen = told(stand)
    assert (
        seen.first_wrong == "flow" and "a probe window did not come back: no stage listens" in seen.of("flow")["said"]
    )


def test_a_clock_that_is_wrong(stand: Stand) -> None:
    stand.everything()
    stand.ahead_s = 7.0
    seen = told(stand)
    assert seen.first_wrong == "clocks" and "pi-1 by +7.00 s" in seen.of("clocks")["said"]
    assert "timedatectl set-ntp true" in seen.of("clocks")["mend"]


def test_a_node_of_an_older_protocol_and_a_sensor_of_another_epoch(stand: Stand) -> None:
    stand.everything()
    stand.status("pi-2", device=msgspec.structs.replace(CARD, protocol=0))
    stand.status("sensor-chest", "sensor", epoch=5)
    seen = told(stand)
    assert seen.first_wrong == "versions" and "pi-2 speak another protocol" in seen.of("versions")["said"]
    assert seen.of("sensors")["said"] == f"not sending to epoch {stand.epoch}: sensor-chest"


def test_nodes_that_hang(stand: Stand) -> None:
    stand.everything()
    stand.nodes = ()
    seen = told(stand)
    assert seen.first_wrong == "nodes" and "pi-1, pi-2, pi-3 do not beat" in seen.of("nodes")["said"]


def test_a_node_that_hangs_while_others_go_on_is_what_is_wrong(stand: Stand) -> None:
    stand.everything()
    stand.status("coordinator", "coordinator", State.READY, instance="coordinator-1", counters={"asked": 3})
    stand.nodes = ("pi-2", "pi-3")
    seen = told(stand)
    assert seen.first_wrong == "missing" and seen.of("nodes")["said"] == "pi-2, pi-3: 2 are there, 3 were asked for"
    assert seen.of("missing")["said"] == (
        "pi-1: no beat for 1.50 s or longer, so hung or cut off; 2 nodes are left, fewer than the 3 that were asked for"
    )
    assert seen.of("clocks")["verdict"] == "ok"  # the others are looked at all the same


def test_a_node_that_was_killed_is_what_is_wrong_and_one_that_left_is_not(stand: Stand) -> None:
    stand.fleet.stages()
    stand.everything()
    stand.status("pi-8", state=State.STOPPED)
    seen = told(stand)
    assert seen.healthy and seen.of("nodes")["said"] == "pi-1, pi-2, pi-3 (left on purpose: pi-8)"
    stand.status("pi-9", state=State.LOST)
    ended = stand.run("doctor", "--timeout", "3")
    told_last = ended.output.partition("\nfirst wrong: ")[2].splitlines()
    assert ended.wait() == 1 and told_last[0] == (
        "missing: pi-9: gone without leaving (killed, or the device is off); 3 nodes are left"
    ), ended.output
    clear = f"har-edge doctor --clear --pipeline {stand.fleet.name} --broker {stand.fleet.address.url}"
    assert f"`{clear}`" in told_last[1] and told_last[1].startswith("mend: ")
    assert stand.run("doctor", "--clear").wait() == 0
    assert told(stand).healthy


def test_a_sensor_that_was_killed_is_noted(stand: Stand) -> None:
    stand.everything()
    stand.status("sensor-chest", "sensor", State.LOST)
    seen = told(stand)
    assert seen.of("sensors")["verdict"] == "note" and seen.of("sensors")["said"] == (
        "sensor-chest: gone without leaving (killed, or the device is off); no other is connected"
    )


def test_who_may_not_see_something_is_told_so_and_not_that_it_is_wrong(stand: Stand) -> None:
    stand.everything()
    seen = told(stand, "--role", "watcher")
    assert seen.healthy and seen.of("slices")["verdict"] == seen.of("flow")["verdict"] == "not reached"
    assert "not for the eyes of a watcher" in seen.of("slices")["said"]


def test_where_there_is_no_plan_none_is_made(stand: Stand) -> None:
    stand.fleet.bus.subscribe([stand.fleet.topics.plan()])
    plans: list[bytes] = []
    poll = stand.fleet.bus.poll

    def watch(timeout_s: float) -> list[object]:
        came = [*poll(timeout_s)]
        plans.extend(one.payload for one in came if one.topic == stand.fleet.topics.plan())
        return [one for one in came if one.topic != stand.fleet.topics.plan()]

    stand.fleet.bus.poll = watch  # type: ignore[method-assign,assignment]
    seen = told(stand)
    assert plans == [] and "not tried: no plan is there" in seen.of("topic plan")["said"]
