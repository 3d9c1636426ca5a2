"""A worker: fetches, loads, waits, runs, is fenced, leaves and ends, as it is directed; what fails is tried again."""

import dataclasses
import logging
import sys
import threading

import msgspec
import pytest

from har_edge.errors import BrokerError, NodeError
from har_edge.inference.load_check import LoadCheck
from har_edge.mqtt.bus import Delivery, Session
from har_edge.mqtt.clients.transport import FinalRefusal
from har_edge.protocol import wire
from har_edge.protocol.deployment import Deployment, encode_deployment
from har_edge.protocol.status import StagePhase
from har_edge.runtime.build import build_sensor, names_of
from har_edge.runtime.node import worker as worker_module
from har_edge.runtime.node.worker import DesiredState, ReplicaId, session_of
from tests.runtime.memory_pipeline import EPOCH, MemoryPipeline, until
from tests.runtime.rig import Watcher, windows_of
from tests.runtime.test_whole import expected

CUTS = (4, 9)


@pytest.fixture
def published(cut, tmp_path):
    published = MemoryPipeline(cut("int8", *CUTS), tmp_path)
    yield published
    published.end()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(worker_module, "_BACKOFF_S", 0.02)
    monkeypatch.setattr(worker_module, "WORKER_GRACE_S", 0.02)


def reached(worker, phase):
    until(lambda: worker.phase is phase, lambda: f"{phase} never came: {worker.report(0.0)}")


def failed(worker):
    """Return the report of a failure: soon after it the worker tries again."""
    reports = []

    def has_failed():
        reports.append(worker.report(0.0))
        return reports[-1].phase is StagePhase.FAILED

    until(has_failed, lambda: f"it never failed: {reports[-1]}")
    return reports[-1]


def send(published, windows, epoch=EPOCH):
    """Publish windows as the sensors of an epoch would, all sources in one message."""
    sensor = build_sensor(published.pipeline, list(published.pipeline.task.inputs), combine=True)
    for window in windows:
        for one in sensor.handle([window], [float(window.seq)]):
            message = wire.decode(one.payload, names=names_of(published.pipeline))
            moved = wire.Message(message.stream, message.seq, epoch, message.captured, message.tensors, message.truth)
            published.publish(one.topic, wire.encode(moved), retain=False)


def watch(published, count):
    """Return a watcher, and what waits until it has so many results."""
    with published.lock:
        watcher = Watcher(published.broker, published.topics)

    def enough():
        with published.lock:
            watcher.step()
        return len(watcher.results) >= count

    return watcher, enough


def test_workers_fetch_slices_and_answer_as_the_whole_model_does(published):
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "b", "a")))
    workers = [published.start_worker(node, deployment, stage) for stage, node in enumerate("aba")]
    for worker in workers:
        reached(worker, StagePhase.RUNNING)
    watcher, enough = watch(published, 12)
    windows = windows_of(published.pipeline, "s", 12)
    send(published, windows)
    until(enough, lambda: [worker.report(0.0) for worker in workers])
    answers = {key: (one.label_id, one.confidence) for key, one in watcher.results.items()}
    assert answers == expected(published.pipeline, "int8", windows)
    assert {one.epoch for one in watcher.results.values()} == {EPOCH}

    def done():
        reports = [worker.report(1e12) for worker in workers]
        return [(one.stage, one.windows, one.lost, one.errors) for one in reports]

    until(lambda: done() == [(k, 12, 0, 0) for k in range(3)], done)


def test_a_report_has_means_since_the_last_one(published):
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    worker = published.start_worker("a", deployment, 0)
    until(lambda: worker.report(0.0).phase is StagePhase.RUNNING, "never ran")
    began = worker._loop.metrics.heard_at
    worker.report(began)
    send(published, windows_of(published.pipeline, "s", 5))
    until(lambda: worker._loop.metrics.windows == 5, "the windows never came")
    first = worker.report(began + 100.0)
    assert first.windows == 5 and 0 < first.service_s < 1 and 0 <= first.queue_s < 1
    assert first.busy == pytest.approx(5 * first.service_s / 100.0, rel=0.5)
    again = worker.report(began + 101.0)
    assert (again.windows, again.queue_s) == (5, 0.0) and again.service_s == 0.0 and again.idle_s > 99


def test_a_stage_that_drains_is_drained_when_nothing_of_its_own_comes(published):
    published.files()
    old, new = published.generation("a", "a", "a"), published.generation("b", "b", "b", epoch=EPOCH + 1)
    deployment = published.plan(published.deployment(old, new, epoch=EPOCH + 1))
    worker = published.start_worker("a", deployment, 0)
    reached(worker, StagePhase.RUNNING)
    send(published, windows_of(published.pipeline, "new", 3), epoch=EPOCH + 1)
    until(lambda: worker._loop.metrics.handled == 3, "the windows of the new epoch never came")
    reached(worker, StagePhase.DRAINED)
    send(published, windows_of(published.pipeline, "old", 1))
    # Nobody takes its activations, so they stay here: it is not drained.
    until(lambda: worker._loop.metrics.pending and worker.phase is StagePhase.RUNNING, "it stays drained")
    taker = published.connect(Session("taker"))
    taker.subscribe([published.topics.activation(EPOCH, 0, "+")])
    reached(worker, StagePhase.DRAINED)
    worker.direct(DesiredState.HOLD, msgspec.structs.replace(deployment, epoch=EPOCH))
    reached(worker, StagePhase.RUNNING)


def test_a_standby_is_loaded_and_only_connects_when_it_is_to_hold(published):
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "a", "a", standby="b")))
    worker = published.start_worker("b", deployment, 1, DesiredState.PREPARE)
    reached(worker, StagePhase.PREPARED)
    assert published.session(1) is None and worker._setup is not None
    published.connected.clear()
    moved = published.plan(published.deployment(published.generation("a", "b", "a"), revision=2))
    worker.direct(DesiredState.HOLD, moved)
    reached(worker, StagePhase.RUNNING)
    assert [name for name in published.connected if not name.startswith("look-")] == [
        f"har.{published.topics.pipeline}.{EPOCH}.stage-1.0"
    ]
    setup = worker._setup
    worker.direct(
        DesiredState.PREPARE,
        published.plan(published.deployment(published.generation("a", "a", "a", standby="b"), revision=3)),
    )
    reached(worker, StagePhase.PREPARED)
    until(lambda: published.session(1).bus is None, "it stays connected")
    assert worker._setup is setup


def test_leaving_keeps_the_session_for_the_next_and_ending_ends_it(published):
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    one, other = (published.start_worker("a", deployment, stage) for stage in (0, 1))
    for worker in (one, other):
        reached(worker, StagePhase.RUNNING)
    one.direct(DesiredState.LEAVE)
    other.direct(DesiredState.END)
    one.direct(DesiredState.HOLD)  # who was told to leave goes
    for worker in (one, other):
        worker.join(10.0)
        assert not worker.alive
    assert published.session(0) is not None and published.session(0).bus is None and published.session(1) is None


def test_an_ended_generation_leaves_no_session_behind_even_where_nobody_was_connected(published):
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    worker = published.start_worker("a", deployment, 0)
    reached(worker, StagePhase.RUNNING)
    published.plan(published.deployment(published.generation("b", "a", "a"), revision=2))
    with published.lock:  # another node takes the session over, crashes, and the generation is given up
        published.broker.connect(session_of(published.context("b"), deployment, ReplicaId(EPOCH, 0, 0))).crash()
    until(lambda: worker.report(0.0).detail == "another process has this stage", "it was not fenced")
    worker.direct(DesiredState.END)
    worker.join(10.0)
    assert not worker.alive and published.session(0) is None


def test_who_was_taken_over_does_not_come_back_while_the_plan_says_otherwise(published, caplog):
    """A node that was stopped for a while wakes, and does not know yet that its stage was given to another."""
    caplog.set_level(logging.INFO)
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    stale = published.start_worker("a", deployment, 0)
    reached(stale, StagePhase.RUNNING)
    moved = published.plan(published.deployment(published.generation("b", "a", "a"), revision=2))
    successor = published.start_worker("b", moved, 0)
    reached(successor, StagePhase.RUNNING)
    until(lambda: stale.report(0.0).detail == "another process has this stage", "it was not fenced")
    looks = sum(name.startswith("look-") for name in published.connected)
    until(lambda: sum(name.startswith("look-") for name in published.connected) >= looks + 3, "it gave up looking")
    assert successor.phase is StagePhase.RUNNING and stale.desired is DesiredState.HOLD and stale.alive
    # The plan gives it back: it takes the session, and the other one is fenced.
    published.plan(published.deployment(published.generation("a", "a", "a"), revision=3))
    reached(stale, StagePhase.RUNNING)
    until(lambda: successor.report(0.0).detail == "another process has this stage", "the other was not fenced")
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_a_session_is_taken_when_the_plan_gives_the_post_to_another_or_to_nobody(published):
    deployment = published.deployment(published.generation("a", "b", "a"))
    lease = session_of(published.context("a"), deployment, ReplicaId(EPOCH, 0, 0)).lease

    def retained(payload: bytes) -> Delivery:
        return Delivery(lease.topic, payload, (0, 0), retained=True)

    def encode(plan: Deployment) -> Delivery:
        return retained(encode_deployment(plan))

    assert not lease.taken(encode(deployment)) and not lease.taken(retained(b"no plan"))
    moved = published.deployment(published.generation("b", "b", "a"), revision=2)
    assert lease.taken(encode(moved)) and not lease.taken(encode(msgspec.structs.replace(moved, revision=0)))
    gone = published.deployment(published.generation("a", "b", "a", epoch=EPOCH + 1), epoch=EPOCH + 1, revision=2)
    assert lease.taken(encode(gone))


def test_a_slice_that_does_not_come_is_reported_and_fetched_when_it_does(published, monkeypatch, caplog):
    monkeypatch.setattr(worker_module, "FETCH_TIMEOUT_S", 0.05)
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    worker = published.start_worker("a", deployment, 0)
    sha256 = published.pipeline.manifest.slices[0].sha256
    assert f"{sha256} did not come: no header came in 0.05 s" in failed(worker).detail
    published.files()
    reached(worker, StagePhase.RUNNING)
    assert "stage 0 of epoch 1000 failed, trying again in 0.02 s" in caplog.text and worker.report(0.0).detail == ""


def test_a_forged_slice_never_runs(published):
    entry = published.pipeline.manifest.slices[0]
    published.files()
    published.publish(
        published.topics.chunk(entry.sha256, 0), b"x" * (published.pipeline.folder / entry.file).stat().st_size
    )
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    worker = published.start_worker("a", deployment, 0)
    report = failed(worker)
    assert "forged or corrupt" in report.detail and worker._setup is None
    assert report.lacks == published.pipeline.manifest.slices[0].sha256
    published.files()
    reached(worker, StagePhase.RUNNING)


def test_a_full_disk_is_reported_and_the_stage_comes_when_there_is_room(published):
    published.files()
    context = published.context("a")
    context.store.limit_bytes = 100
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    worker = published.start_worker("a", deployment, 0, context=context)
    assert "raise it with --cache-bytes to at least" in failed(worker).detail
    context.store.limit_bytes = 10_000_000
    reached(worker, StagePhase.RUNNING)


def test_a_stage_that_cannot_be_connected_or_breaks_ends_no_other_and_is_tried_again(published, monkeypatch, caplog):
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    context, problems = published.context("a"), [BrokerError("no broker at mqtt://x"), RuntimeError("a bug")]
    connect = context.connect

    def fail(session):
        if problems and "stage-0" in session.client_id:
            raise problems.pop(0)
        return connect(session)

    object.__setattr__(context, "connect", fail)
    healthy = published.start_worker("a", deployment, 1, context=context)
    reached(healthy, StagePhase.RUNNING)
    worker = published.start_worker("a", deployment, 0, context=context)
    reached(worker, StagePhase.RUNNING)
    assert not problems and healthy.phase is StagePhase.RUNNING and worker._failures == 0
    assert "trying again in 0.02 s: no broker at mqtt://x" in caplog.text
    assert "trying again in 0.04 s: RuntimeError: a bug" in caplog.text and "Traceback" in caplog.text


def test_a_stage_that_finds_no_broker_has_not_failed_and_comes_with_the_broker(published, monkeypatch):
    for name in ("_BACKOFF_S", "_BACKOFF_CAP_S"):
        monkeypatch.setattr(worker_module, name, 1000.0)
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "a", "a", standby="b")))
    worker, fresh = published.start_worker("b", deployment, 1, DesiredState.PREPARE), None
    reached(worker, StagePhase.PREPARED)
    with published.lock:
        published.broker.stop()
    worker.direct(DesiredState.HOLD)
    fresh = published.start_worker("c", deployment, 1, DesiredState.PREPARE)
    for one, phase in ((worker, StagePhase.PREPARED), (fresh, StagePhase.FETCHING)):
        until(lambda: "no broker in memory" in one.report(0.0).detail, "it does not say what it waits for")  # noqa: B023
        assert one.phase is phase
    with published.lock:
        published.broker.start()
    published.plan(published.deployment(published.generation("a", "b", "a"), revision=2))
    worker.retry_now(), fresh.retry_now()
    reached(worker, StagePhase.RUNNING)
    reached(fresh, StagePhase.PREPARED)


def test_a_client_that_the_broker_refuses_has_failed(published):
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    context = published.context("a")

    def refuse(session):
        raise FinalRefusal("not authorized; check the user")

    object.__setattr__(context, "connect", refuse)
    worker = published.start_worker("a", deployment, 0, context=context)
    assert failed(worker).detail == "not authorized; check the user"


def test_who_is_told_to_leave_does_not_wait_for_what_will_not_come(published, monkeypatch):
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    fetching = published.start_worker("a", deployment, 0)
    until(lambda: "fetching 1 of 1 files" in fetching.report(0.0).detail, "it fetches nothing")
    monkeypatch.setattr(worker_module, "FETCH_TIMEOUT_S", 0.05)
    for name in ("_BACKOFF_S", "_BACKOFF_CAP_S"):
        monkeypatch.setattr(worker_module, name, 1000.0)
    failing = published.start_worker("a", deployment, 1)
    reached(failing, StagePhase.FAILED)
    for worker in (fetching, failing):
        worker.direct(DesiredState.LEAVE)
        worker.join(10.0)
        assert not worker.alive


def test_a_broker_restart_ends_nothing(published):
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    workers = [published.start_worker("a", deployment, stage) for stage in range(3)]
    for worker in workers:
        reached(worker, StagePhase.RUNNING)
    watcher, enough = watch(published, 8)
    windows = windows_of(published.pipeline, "s", 8)
    send(published, windows[:4])
    with published.lock:
        published.broker.stop()
        published.broker.start()
        watcher.bus.poll(0)
    published.bus.poll(0)
    send(published, windows[4:])
    until(enough, "windows were lost")
    assert all(worker.phase is StagePhase.RUNNING for worker in workers)


def test_slices_are_loaded_one_at_a_time(published, monkeypatch):
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    build, inside, most = worker_module.build_setup, threading.Semaphore(1), []

    def watched(*args, **options):
        most.append(inside.acquire(blocking=False))
        try:
            return build(*args, **options)
        finally:
            inside.release()

    monkeypatch.setattr(worker_module, "build_setup", watched)
    context = published.context("a")
    for worker in [published.start_worker("a", deployment, stage, context=context) for stage in range(3)]:
        reached(worker, StagePhase.RUNNING)
    assert most == [True, True, True]


def test_a_generation_that_is_gone_before_its_slice_was_loaded_is_no_failure(published):
    deployment = published.deployment(published.generation("a", "a", "a", epoch=EPOCH + 1), epoch=EPOCH + 1)
    worker = published.start_worker("a", deployment, 0)
    worker.direct(DesiredState.END)
    worker.join(10.0)
    assert not worker.alive and worker.report(0.0).phase is not StagePhase.FAILED
    with pytest.raises(NodeError, match="is not in"):
        published.context("a").store.path(published.pipeline.manifest.slices[0].sha256)


def test_a_slice_that_ends_the_runtime_fails_its_stage_and_no_other(published):
    published.files()
    deployment = published.plan(published.deployment(published.generation("a", "a", "a")))
    context = published.context("a")
    running = published.start_worker("a", deployment, 1, context=context)
    reached(running, StagePhase.RUNNING)
    dies = LoadCheck(None, (sys.executable, "-c", "import os; os.abort()"))
    bad = dataclasses.replace(context, check=dies)
    worker = published.start_worker("a", deployment, 0, context=bad)
    detail = failed(worker).detail
    assert "slice-0.tflite: SIGABRT ended a test process that loaded and ran this model once" in detail
    assert running.phase is StagePhase.RUNNING and running.alive
    object.__setattr__(bad, "check", LoadCheck(None))  # the file is another one now, or the runtime is
    reached(worker, StagePhase.RUNNING)
