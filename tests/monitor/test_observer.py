"""What an observer makes of plan, statuses, beats and results, with clocks of its own."""

from __future__ import annotations

import msgspec
import pytest

from har_edge.monitor.observer import Observer, longest_way, percentile
from har_edge.monitor.snapshot import HopView, ProbeView, Snapshot, encode_snapshot
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.cluster_state import MAX_NODES
from har_edge.protocol.status import NodeStatus, StagePhase, State, StreamCount, encode_status
from tests.runtime.deployed import CARD, EPOCH, TOPICS, Said, deployment, generation, manifest, report

SAID = Said()
WALL = 1_700_000_000.0


def observe(*deliveries: Delivery, now: float = 0.0) -> Observer:
    observer = Observer(TOPICS, 0.0)
    for delivery in deliveries:
        observer.handle(delivery, now, WALL + now)
    return observer


def test_a_plan_names_every_stage_whether_its_node_speaks_of_it_or_not() -> None:
    observer = observe(
        SAID.plan(deployment(generation("a", "b", "a"))),
        SAID.status("a"),
        SAID.beat("a", WALL, report(0), report(2, StagePhase.FETCHING, detail="2 of 3 chunks")),
    )
    seen = observer.snapshot(1.0, WALL)
    assert [(one.stage, one.node, one.phase, one.detail) for one in seen.stages] == [
        (0, "a", "running", ""),
        (1, "b", "unreported", ""),
        (2, "a", "fetching", "2 of 3 chunks"),
    ]
    assert (seen.plan, seen.revision, seen.epoch, seen.model) == ("current", 7, EPOCH, "model.tflite")
    assert [(one.epoch, one.phase, one.cuts) for one in seen.epochs] == [(EPOCH, "current", ((0, 1), (1, 2), (2, 3)))]


def test_epochs_stand_beside_each_other_while_one_takes_over() -> None:
    both = deployment(
        generation("a", "b", "c"),
        generation("b", "a", "c", epoch=EPOCH + 1),
        generation("a", "a", "a", epoch=EPOCH - 1),
    )
    seen = observe(SAID.plan(both)).snapshot(1.0, WALL)
    assert [(one.epoch, one.phase) for one in seen.epochs] == [
        (EPOCH - 1, "draining"),
        (EPOCH, "current"),
        (EPOCH + 1, "preparing"),
    ]
    assert len(seen.stages) == 9


def test_a_stage_that_runs_beside_the_plan_is_shown_as_such() -> None:
    plan = SAID.plan(deployment(generation("a", "a", "a")))
    seen = observe(plan, SAID.beat("b", WALL, report(1, epoch=EPOCH - 1))).snapshot(1.0, WALL)
    assert [(one.node, one.epoch, one.planned) for one in seen.stages if one.node == "b"] == [("b", EPOCH - 1, False)]


def test_rate_service_and_queue_are_those_of_the_windows_of_the_last_seconds() -> None:
    observer = observe(SAID.plan(deployment(generation("a", "a", "a"))))
    reports = [(0, 0, 0.0), (2, 10, 0.010), (4, 40, 0.030)]  # seconds, windows so far, service since the last beat
    for second, windows, service_s in reports:
        one = report(0, windows=windows, service_s=service_s, queue_s=2 * service_s, queued=3, busy=0.5)
        observer.handle(SAID.beat("a", WALL + second, one), second, WALL + second)
    stage = observer.snapshot(4.0, WALL).stages[0]
    assert stage.rate == pytest.approx(40 / 4)
    assert stage.service_s == pytest.approx((10 * 0.010 + 30 * 0.030) / 40)
    assert stage.queue_s == pytest.approx(2 * (10 * 0.010 + 30 * 0.030) / 40)
    assert (stage.queued, stage.busy) == (3, pytest.approx(0.5))
    restarted = report(0, windows=1)
    observer.handle(SAID.beat("a", WALL + 5, restarted, instance="a-2"), 5.0, WALL + 5)
    assert observer.snapshot(5.0, WALL).stages[0].rate is None


def test_the_clock_of_a_node_is_told_by_the_beat_that_was_fastest() -> None:
    observer = observe(SAID.status("a"))
    for number, (sent, came) in enumerate([(0.0, 0.4), (1.0, 1.01), (2.0, 2.3)]):
        observer.handle(SAID.beat("a", WALL + sent + 5.0, number=number), came, WALL + came)
    (node,) = observer.snapshot(2.5, WALL).nodes
    assert node.ahead_s == pytest.approx(4.99, abs=1e-6) and node.beat_age_s == pytest.approx(0.2)


def test_who_is_alive_depends_on_status_and_beats() -> None:
    observer = observe(
        SAID.status("beats"),
        SAID.beat("beats", WALL),
        SAID.status("hangs"),
        SAID.status("gone", state=State.LOST),
        SAID.status("left", state=State.STOPPED),
        SAID.status("chest", "sensor"),
    )
    observer.handle(SAID.beat("beats", WALL + 9), 9.0, WALL + 9)
    alive = {node.name: node.alive for node in observer.snapshot(10.0, WALL).nodes}
    assert alive == {"beats": True, "hangs": False, "gone": False, "left": False, "chest": True}
    assert not observer.is_alive("never-heard-of", 10.0)


def test_latencies_are_percentiles_of_answers_to_people_not_to_probes() -> None:
    observer = observe(*(SAID.result(k, WALL, k / 100) for k in range(1, 101)), SAID.result(0, WALL, 99.0, "_probe-1"))
    flow = observer.snapshot(5.0, WALL).flow
    assert (flow.results, flow.p50_s, flow.p95_s, flow.p99_s) == (
        100,
        pytest.approx(0.5),
        pytest.approx(0.95),
        pytest.approx(0.99),
    )
    assert flow.rate == pytest.approx(100 / 5)


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert [percentile([1.0, 2.0, 3.0], share) for share in (0.01, 0.5, 0.99)] == [1.0, 2.0, 3.0]
    assert percentile([], 0.5) is None


def test_what_the_hops_do_not_explain_of_the_latency_is_elsewhere() -> None:
    stages = [report(k, windows=5, service_s=0.01 * (k + 1), queue_s=0.001) for k in range(3)]
    plan = SAID.plan(deployment(generation("a", "a", "a")))
    flow = observe(plan, SAID.beat("a", WALL, *stages), SAID.result(0, WALL, 0.1)).snapshot(1.0, WALL).flow
    assert [hop.stage for hop in flow.hops] == [0, 1, 2]
    assert flow.elsewhere_s == pytest.approx(0.1 - 0.06 - 0.003, abs=1e-6)


def test_the_longest_of_two_branches_counts() -> None:
    forked = manifest((("x",), ("a",)), (("z",), ("b",)), (("a", "b"), ("y",)))
    hops = {0: HopView(0, 0.0, 1.0), 1: HopView(1, 0.5, 1.0), 2: HopView(2, 0.0, 1.0)}
    assert longest_way(forked, hops) == (1, 2)


def test_losses_are_counted_once_a_node() -> None:
    observer = observe(
        SAID.status("a", counters={"given_up": 3, "rejected": 2}),
        SAID.beat("a", WALL, report(0, lost=3, errors=2)),
        SAID.status("chest", "sensor", counters={"dropped": 4, "resent": 6, "rejected": 1}),
        SAID.status("old", state=State.STOPPED, counters={"dropped": 100, "resent": 3}),
        Delivery(TOPICS.heartbeat("a"), b"{", (1, 1)),
    )
    counts = observer.snapshot(1.0, WALL).counts
    assert (counts.lost, counts.errors, counts.dropped, counts.resent, counts.unusable) == (
        3,
        3,
        4,
        9,
        1,
    )


def test_windows_that_sensors_sent_are_told_by_stream_and_lost_ones_are_counted_once_a_stream() -> None:
    def says(node: str, state: State = State.READY, **streams: StreamCount) -> Delivery:
        status = NodeStatus(node, "sensor", state, "i", 1.0, streams=streams)
        return Delivery(TOPICS.status(node), encode_status(status), (1, 1), retained=True)

    arm = says("arm", s=StreamCount(1, 5.0, 10, 7, 2), t=StreamCount(1, 5.0, 4))
    chest = says("chest", s=StreamCount(2, 5.0, 10, 8, 1))
    gone = says("gone", u=StreamCount(3, 5.0, 9, 5, 1)), says("gone", State.LOST)
    seen = observe(arm, chest, *gone).snapshot(1.0, WALL)
    assert [(one.stream, one.node, one.alive, one.sent, one.answered, one.open, one.lost) for one in seen.sent] == [
        ("s", "arm", True, 10, 7, 1, 2),
        ("s", "chest", True, 10, 8, 1, 1),
        ("t", "arm", True, 4, None, 0, 0),
        ("u", "gone", False, 9, 5, 0, 4),  # three were open when it went: nobody sends them again
    ]
    assert seen.counts.unanswered == 2 + 4


def test_ready_is_what_a_probe_says_and_nothing_else() -> None:
    observer = observe(SAID.plan(deployment(generation("a", "a", "a"))))
    assert not observer.snapshot(0.0, WALL).ready
    assert not observer.snapshot(0.0, WALL, ProbeView(False, None, EPOCH, "stage 1")).ready
    assert observer.snapshot(0.0, WALL, ProbeView(True, 0.1, EPOCH, "")).ready


@pytest.mark.parametrize(
    "delivery",
    [
        Delivery(TOPICS.plan(), b'{"version": 9}', (1, 1)),
        Delivery(TOPICS.status("a"), b"[" * 100_000, (1, 1)),
        Delivery(TOPICS.status("a"), SAID.status("b").payload, (1, 1)),
        Delivery(TOPICS.status("a"), b" " * 2_000_000, (1, 1)),
        SAID.status("a", counters={"dropped": 10**30}),
        Delivery(TOPICS.heartbeat("a"), SAID.beat("b", WALL).payload, (1, 1)),
        SAID.beat("a", -1.0),
        SAID.beat("a", 1e300),
        SAID.beat("a", WALL, *(report(k) for k in range(257))),
        SAID.beat("a", WALL, report(0, windows=10**30)),
        SAID.beat("a", WALL, report(0, service_s=-1.0)),
        Delivery(TOPICS.result("s"), b"\xff", (1, 1)),
        Delivery("elsewhere/entirely", b"", (1, 1)),
    ],
    ids=lambda delivery: delivery.topic[-20:],
)
def test_what_is_unusable_is_counted_and_changes_nothing(delivery: Delivery) -> None:
    observer = observe(delivery)
    seen = observer.snapshot(1.0, WALL)
    assert seen.counts.unusable == 1 and seen.nodes == () and seen.stages == () and seen.flow.results == 0


def test_a_plan_that_cannot_be_read_says_so() -> None:
    seen = observe(Delivery(TOPICS.plan(), b"{}", (1, 1))).snapshot(1.0, WALL)
    assert seen.plan.startswith("what came is no plan")


def test_a_plan_that_was_cleared_is_none() -> None:
    plan = SAID.plan(deployment(generation("a", "a", "a")))
    assert observe(plan, Delivery(TOPICS.plan(), b"", (1, 1))).snapshot(1.0, WALL).plan == "none"


def test_names_without_number_do_not_fill_the_memory() -> None:
    observer = observe(*(SAID.status(f"n{k}") for k in range(MAX_NODES + 5)))
    assert len(observer.snapshot(1.0, WALL).nodes) == MAX_NODES and observer.state.unshown == 5


def test_a_snapshot_is_json_and_comes_back() -> None:
    observer = observe(
        SAID.plan(deployment(generation("a", "b", "a"), revision=10**30)),
        SAID.status("a", detail="\x07bell"),
        SAID.beat("a", WALL, report(0, windows=3)),
        SAID.result(0, WALL, 0.5),
    )
    seen = observer.snapshot(1.0, WALL, ProbeView(True, 0.25, EPOCH, ""))
    assert msgspec.json.decode(encode_snapshot(seen), type=Snapshot) == seen
    assert seen.nodes[0].detail == r"\x07bell"


def test_nodes_of_the_plan_that_may_give_other_bits_are_named() -> None:
    older = msgspec.structs.replace(CARD, runtime="tflite-runtime 2.14.0", delegate="none")
    plan = SAID.plan(deployment(generation("a", "b", "a")))
    seen = observe(plan, SAID.status("a"), SAID.status("b", device=older), SAID.status("c", device=older))
    told = seen.snapshot(0.5, WALL)
    assert "a (ai-edge-litert 2.1, aarch64), b (tflite-runtime 2.14.0, aarch64, delegate none) (" in told.disagreement
    assert [(one.runtime, one.delegate) for one in told.nodes] == [
        ("ai-edge-litert 2.1", ""),
        ("tflite-runtime 2.14.0", "none"),
        ("tflite-runtime 2.14.0", "none"),
    ]
    alike = observe(plan, SAID.status("a"), SAID.status("b"), SAID.status("c", device=older))
    assert alike.snapshot(0.5, WALL).disagreement == ""
    assert observe(SAID.status("a")).snapshot(0.5, WALL).disagreement == ""
