"""Stages whose flows go through brokers of nodes, in memory: where bytes go, moves, lost brokers, take-over, ends."""

import dataclasses
import time

import msgspec
import pytest

from har_edge.errors import BrokerError
from har_edge.mqtt.bus import Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.status import StagePhase
from har_edge.runtime.artifacts import encode_chunks
from har_edge.runtime.node import worker as worker_module
from har_edge.runtime.node.worker import DesiredState
from har_edge.runtime.stage import receive_limit
from tests.runtime.memory_pipeline import EPOCH, MemoryPipeline, SharedBus, until
from tests.runtime.node.test_worker import reached, send, watch
from tests.runtime.rig import windows_of
from tests.runtime.test_whole import expected

CUTS = (4, 9)
URLS = {name: f"mqtt://{name}:1884" for name in "abcd"}
FLOWS = {"0": "a", "1": "b"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(worker_module, "_BACKOFF_S", 0.02)
    monkeypatch.setattr(worker_module, "WORKER_GRACE_S", 0.02)
    monkeypatch.setattr("har_edge.mqtt.routed.LEASE_GRACE_S", 0.02)


class Site(MemoryPipeline):
    """A pipeline with a broker of its own on each node."""

    def __post_init__(self):
        super().__post_init__()
        self.brokers = {url: MemoryBroker() for url in URLS.values()}
        self.unreachable = set()

    def connect_to(self, url, session):
        if url in self.unreachable:
            raise BrokerError(f"cannot reach {url}")
        with self.lock:
            return SharedBus(self.brokers[url].connect(session), self.lock)

    def context(self, node):
        return dataclasses.replace(super().context(node), connect_to=self.connect_to)

    def routed(self, *nodes, flows=None, brokers="ab"):
        """Return a generation on these nodes with such brokers."""
        return msgspec.structs.replace(
            self.generation(*nodes),
            brokers={name: URLS[name] for name in brokers},
            flows=FLOWS if flows is None else flows,
        )

    def follow(self, deployment):
        """Publish a plan and let the workers follow it."""
        self.plan(deployment)
        for worker in self.workers:
            worker.direct(worker.desired, deployment)

    def run(self, *nodes, **more):
        deployment = self.plan(self.deployment(self.routed(*nodes, **more)))
        return deployment, [self.start_worker(node, deployment, stage) for stage, node in enumerate(nodes)]

    def received(self, url):
        """Return the client ids of the sessions at a broker."""
        with self.lock:
            return sorted(self.brokers[url]._accounts)


@pytest.fixture
def site(cut, tmp_path):
    site = Site(cut("int8", *CUTS), tmp_path)
    site.files()
    yield site
    site.end()


def session_of(site, stage):
    return f"{site.topics.base}.{site.topics.pipeline}.{EPOCH}.stage-{stage}.0"


def answers(watcher):
    return {key: (one.label_id, one.confidence) for key, one in watcher.results.items()}


def follows(site, deployment, *workers):
    until(
        lambda: all(worker.report(0.0).routed >= deployment.revision for worker in workers),
        lambda: [worker.report(0.0) for worker in workers],
    )


def test_activations_go_through_the_brokers_of_their_makers_and_nothing_of_them_through_the_central_one(site):
    with site.lock:
        central, own = site.broker.connect(Session("central")), site.brokers[URLS["a"]].connect(Session("own"))
        central.subscribe([site.topics.activation("+", "+", "+")])
        own.subscribe(["#"])
    deployment, workers = site.run(*"abc")
    for worker in workers:
        reached(worker, StagePhase.RUNNING)
    watcher, enough = watch(site, 12)
    windows = windows_of(site.pipeline, "s", 12)
    send(site, windows)
    until(enough, lambda: [worker.report(0.0) for worker in workers])
    assert answers(watcher) == expected(site.pipeline, "int8", windows)
    with site.lock:
        assert list(central.poll(0)) == []
        assert {site.topics.read(one.topic).levels[1] for one in own.poll(0)} == {"0"}
    assert [worker.report(0.0).routed for worker in workers] == [deployment.revision] * 3
    assert site.received(URLS["a"])[:2] == [session_of(site, 0), session_of(site, 1)]
    assert site.received(URLS["b"]) == [session_of(site, 1), session_of(site, 2)]


def test_flows_move_between_brokers_while_windows_are_under_way_and_none_is_lost(site):
    _, workers = site.run(*"abc", flows={}, brokers="")
    for worker in workers:
        reached(worker, StagePhase.RUNNING)
    windows = windows_of(site.pipeline, "s", 60)
    watcher, enough = watch(site, 60)
    plans = [
        site.routed(*"abc", flows={}),
        site.routed(*"abc"),
        site.routed(*"abc", flows={"0": "b", "1": "b"}),
        site.routed(*"abc", flows={"1": "b"}),
        site.routed(*"abc", flows={}),
    ]
    for number, generation in enumerate(plans):
        send(site, windows[number * 12 : number * 12 + 6])
        deployment = site.deployment(generation, revision=number + 2)
        site.follow(deployment)
        send(site, windows[number * 12 + 6 : number * 12 + 12])
        follows(site, deployment, *workers)
    until(enough, lambda: [worker.report(0.0) for worker in workers])
    assert answers(watcher) == expected(site.pipeline, "int8", windows)
    assert [worker.report(0.0).lost for worker in workers] == [0, 0, 0]


def test_what_a_stage_could_not_leave_at_a_broker_that_is_gone_goes_through_another(site):
    _, workers = site.run(*"abc")
    for worker in workers:
        reached(worker, StagePhase.RUNNING)
    with site.lock:
        site.brokers[URLS["a"]].stop()
        site.brokers[URLS["a"]].forget()
    windows = windows_of(site.pipeline, "s", 8)
    watcher, enough = watch(site, 8)
    send(site, windows)
    until(lambda: workers[1].report(0.0).unreachable == ("a",), lambda: workers[1].report(0.0))
    assert not watcher.results
    site.follow(site.deployment(site.routed(*"abc", brokers="b", flows={"1": "b"}), revision=2))
    until(enough, lambda: [worker.report(0.0) for worker in workers])
    assert answers(watcher) == expected(site.pipeline, "int8", windows)
    assert workers[1].report(0.0).unreachable == ()


def test_a_node_that_dies_with_its_broker_is_replaced_and_what_was_sent_again_is_answered(site):
    _, workers = site.run(*"abc")
    for worker in workers:
        reached(worker, StagePhase.RUNNING)
    windows = windows_of(site.pipeline, "s", 8)
    watcher, enough = watch(site, 8)
    workers[0].direct(DesiredState.LEAVE)
    workers[0].join(5)
    send(site, windows[:4])  # they wait in the session of stage 0
    with site.lock:
        site.brokers[URLS["a"]].stop()
        site.brokers[URLS["a"]].forget()
    moved = site.deployment(site.routed(*"dbc", brokers="bd", flows={"1": "b"}), revision=2)
    site.follow(moved)
    successor = site.start_worker("d", moved, 0)
    reached(successor, StagePhase.RUNNING)
    follows(site, moved, successor, *workers[1:])
    site.follow(site.deployment(site.routed(*"dbc", brokers="bd", flows={"0": "d", "1": "b"}), revision=3))
    send(site, windows)  # as sensors do that have no answer
    until(enough, lambda: [worker.report(0.0) for worker in site.workers])
    assert answers(watcher) == expected(site.pipeline, "int8", windows)


def test_a_successor_takes_over_the_sessions_at_every_broker(site):
    _, workers = site.run(*"abc")
    for worker in workers:
        reached(worker, StagePhase.RUNNING)
    workers[1].direct(DesiredState.LEAVE)
    workers[1].join(5)
    windows = windows_of(site.pipeline, "s", 8)
    watcher, enough = watch(site, 8)
    send(site, windows)
    with site.lock:
        waiting = site.brokers[URLS["a"]]._accounts[session_of(site, 1)]
    until(lambda: workers[0].report(0.0).windows == 8, lambda: workers[0].report(0.0))
    assert waiting.bus is None
    moved = site.plan(site.deployment(site.routed(*"adc"), revision=2))
    successor = site.start_worker("d", moved, 1)
    until(enough, lambda: successor.report(0.0))
    assert answers(watcher) == expected(site.pipeline, "int8", windows)


def test_a_stage_that_another_took_at_a_broker_of_a_node_does_not_come_back(site):
    _, workers = site.run(*"abc")
    for worker in workers:
        reached(worker, StagePhase.RUNNING)
    moved = site.deployment(site.routed(*"adc"), revision=2)
    site.plan(moved)
    other = site.connect_to(URLS["a"], Session(session_of(site, 1), expiry_s=60))
    until(lambda: workers[1].report(0.0).detail == "another process has this stage", "it was not taken over")
    assert workers[1].phase is StagePhase.PREPARED
    time.sleep(0.2)
    other.poll(0)  # raises TakenOver if it was taken back


def test_a_generation_that_ends_leaves_no_session_at_any_broker(site):
    _, workers = site.run(*"abc")
    for worker in workers:
        reached(worker, StagePhase.RUNNING)
    for worker in workers:
        worker.direct(DesiredState.END)
        worker.join(5)
    assert [site.session(stage) for stage in range(3)] == [None] * 3
    assert [site.received(URLS[name]) for name in "ab"] == [[], []]


def test_a_stage_runs_only_when_it_listens_everywhere_and_says_what_it_cannot_reach(site):
    site.unreachable.add(URLS["b"])
    deployment, workers = site.run(*"abc")
    until(lambda: workers[1].report(0.0).unreachable == ("b",), lambda: workers[1].report(0.0))
    reached(workers[0], StagePhase.RUNNING)
    assert (workers[1].phase, workers[1].report(0.0).routed) == (StagePhase.PREPARED, 0)
    site.unreachable.clear()
    reached(workers[1], StagePhase.RUNNING)
    follows(site, deployment, *workers)


def test_a_process_that_knows_no_way_says_so(site):
    deployment = site.plan(site.deployment(site.routed(*"abc")))
    context = MemoryPipeline.context(site, "a")
    worker = site.start_worker("a", deployment, 0, context=context)
    until(lambda: worker.report(0.0).unreachable == ("a",), lambda: worker.report(0.0))
    with pytest.raises(BrokerError, match="knows no way to brokers of nodes, and the plan names mqtt://a:1884"):
        context.connect_to(URLS["a"], Session("x"))


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Two devices that share all layers and send each other rows, each with a broker of its own."""
    from har_edge.config.catalog import find_model
    from har_edge.runtime.slicing import prepare

    # The sender of this test sends nothing again: no part may go into the memory of a stage that connects anew.
    monkeypatch.setattr(receive_limit, "STARVED_LEAST", 1000)
    found = find_model("int8")
    split = "rows:0-3@2 whole:3-9@2 rows:9-11@2 whole:11-17@2"
    group = Site(prepare(found.path, found.entry.task, tmp_path / "slices", stages=2, split=split), tmp_path)
    for entry in group.pipeline.manifest.slices:
        for file in entry.files:
            for one in encode_chunks(group.topics, (tmp_path / "slices" / file).read_bytes()):
                group.publish(one.topic, one.payload)
    yield group
    group.end()


def test_shards_fetch_rows_from_each_others_brokers_while_their_flows_move(group):
    with group.lock:
        brokers = {"": group.broker, **{name: group.brokers[URLS[name]] for name in "ab"}}
        heard = {name: broker.connect(Session("heard")) for name, broker in brokers.items()}
        for bus in heard.values():
            bus.subscribe([group.topics.activation("+", "+", "+")])
    flows = {"0": "a", "0-1": "a", "1": "b"}
    _, workers = group.run(*"ab", flows=flows)
    for worker in workers:
        reached(worker, StagePhase.RUNNING)
    windows = windows_of(group.pipeline, "s", 36)
    watcher, enough = watch(group, 36)
    send(group, windows[:12])
    until(lambda: enough() or len(watcher.results) >= 12, lambda: [worker.report(0.0) for worker in workers])
    with group.lock:
        levels = {name: {group.topics.read(one.topic).levels[1] for one in bus.poll(0)} for name, bus in heard.items()}
    assert levels == {"": set(), "a": {"0", "0-1"}, "b": {"1"}}
    for revision, changed in enumerate(({"0": "b", "1": "b"}, flows), start=2):
        send(group, windows[12 * (revision - 1) : 12 * (revision - 1) + 6])
        moved = group.deployment(group.routed(*"ab", flows=changed), revision=revision)
        group.follow(moved)
        send(group, windows[12 * (revision - 1) + 6 : 12 * revision])
        follows(group, moved, *workers)
    again = time.monotonic() + 5

    def answered():
        """Send again what is not answered after a while, as sensors do: on a busy machine parts may have gone."""
        nonlocal again
        if time.monotonic() > again:
            send(group, [window for window in windows if (window.stream, window.seq) not in watcher.results])
            again = time.monotonic() + 5
        return enough()

    until(answered, lambda: [worker.report(0.0) for worker in workers])
    assert answers(watcher) == expected(group.pipeline, "int8", windows)
