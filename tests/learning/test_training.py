"""Server and workers on a broker in memory: what is computed, what faults cost, and that no sample counts twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray

from har_edge.errors import ModelError
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.server.modes import TrainingMode
from har_edge.learning.worker.worker import RunningTask
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.training import (
    RunState,
    TrainingProgress,
    VectorPart,
    WorkerReport,
    WorkerState,
    decode_training,
    encode_progress,
    encode_training,
)
from tests.learning.training_rig import SIZE, TOPICS, Fleet, blocks_of, gradient_of, make_fleet


def vector_of(values: NDArray[np.float32]) -> VectorPart:
    """Return values as a worker sends them without compression."""
    return VectorPart("f4", values.size, values.tobytes())


def forge(fleet: Fleet, name: str, fields: dict[str, object]) -> None:
    """Let a worker send these fields in each of its updates."""
    worker = fleet.nodes[name].worker
    honest = worker._update

    def forged(running: RunningTask) -> list[Outgoing]:
        sent = honest(running)[0]
        update = decode_training(("r", "update", name), sent.payload)
        return [structs.replace(sent, payload=encode_training(structs.replace(update, **fields)))]

    worker._update = forged  # type: ignore[method-assign]


MODES = [TrainingMode.SYNC, TrainingMode.LOCAL, TrainingMode.STALE]


def check_account(fleet: Fleet, epochs: int = 2) -> None:
    """Check that every sample counted once in each epoch."""
    expected = {
        (epoch, block, index)
        for epoch in range(1, epochs + 1)
        for block, size in enumerate(len(y) for _, y in fleet.blocks)
        for index in range(size)
    }
    assert set(fleet.counted) == expected and set(fleet.counted.values()) == {1}
    assert fleet.server.record.total == len(expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compress", ["none", "float16", "int8", "topk:0.1"])
def test_a_run_counts_each_sample_once_an_epoch_and_learns(mode: TrainingMode, compress: str) -> None:
    fleet = make_fleet(mode=mode, compress=compress, local_steps=4)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    check_account(fleet)
    x, y = (np.concatenate(parts) for parts in zip(*fleet.blocks, strict=True))
    outcome = gradient_of(fleet.server.weights, x, y)
    assert outcome.correct / len(y) > 0.95 and outcome.loss / len(y) < 0.9
    assert [row.samples for row in fleet.server.record.epochs] == [340, 340]
    assert [one.epoch for one in fleet.server.evaluations] == [1, 2]


def test_a_synchronous_run_gives_the_numbers_of_one_device() -> None:
    fleet = make_fleet(sizes=(48,), epochs=1)
    fleet.run()
    alone = make_fleet("a", (48,), epochs=1, global_batch=24)
    alone.run()
    assert fleet.server.round == alone.server.round == 2
    assert np.allclose(fleet.server.weights, alone.server.weights, atol=1e-6)


def test_a_synchronous_step_is_that_of_the_mean_gradient() -> None:
    fleet = make_fleet("ab", (16,), epochs=1)
    fleet.run()
    (x, y), weights = blocks_of((16,))[0], np.zeros(SIZE, np.float32)
    optimizer = make_optimizer("momentum:lr=0.2,beta=0.5", SIZE)
    optimizer.step(weights, gradient_of(weights, x, y).gradient / np.float32(16))
    assert fleet.server.round == 1 and np.allclose(fleet.server.weights, weights, atol=1e-6)


def kill(fleet: Fleet) -> None:
    fleet.kill("b")


def hang(fleet: Fleet) -> None:
    fleet.nodes["b"].hung = True


def freeze(fleet: Fleet) -> None:
    """Its heartbeats stop, too: a device that lost its network."""
    fleet.nodes["b"].hung = True


def lose_messages(fleet: Fleet) -> None:
    fleet.nodes["b"].silent = True


def slow(fleet: Fleet) -> None:
    fleet.nodes["b"].learner.step_s *= 5


def join(fleet: Fleet) -> None:
    fleet.add("d")


def restart_worker(fleet: Fleet) -> None:
    """The younger process says hello before the will of the older one comes."""
    old = fleet.nodes.pop("b")
    fleet.add("b", instance="2")
    fleet.turn()
    old.bus.crash()


def restart_broker(fleet: Fleet) -> None:
    fleet.broker.stop()
    for _ in range(20):
        fleet.turn()
    fleet.broker.start()


def restart_broker_empty(fleet: Fleet) -> None:
    """The broker has neither sessions nor retained messages any more."""
    fleet.broker.stop()
    fleet.broker.forget()
    fleet.turn()
    fleet.broker.start()
    fleet.spy.cut()


def not_finite(fleet: Fleet) -> None:
    fleet.nodes["b"].learner.broken = True


FAULTS: list[tuple[Callable[[Fleet], None], str]] = [
    (kill, "goes on without b: lost"),
    (hang, "goes on without b: it missed its deadline"),
    (lose_messages, "goes on without b: it missed its deadline"),
    (slow, ""),
    (join, "d joins in round"),
    (restart_worker, "b joins in round"),
    (restart_broker, ""),
    (restart_broker_empty, ""),
    (not_finite, "b is left out until it starts again: 3 updates of no use in a row"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fault", "line"), FAULTS, ids=[case[0].__name__ for case in FAULTS])
def test_a_fault_costs_no_sample_and_none_counts_twice(
    fault: Callable[[Fleet], None], line: str, mode: TrainingMode
) -> None:
    fleet = make_fleet(mode=mode, local_steps=3)
    fleet.until_round(2)
    fault(fleet)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED, (fleet.server.detail, fleet.lines)
    check_account(fleet)
    assert np.isfinite(fleet.server.weights).all()
    assert any(line in one for one in fleet.lines), fleet.lines


def test_a_hung_worker_takes_part_again_and_its_late_update_is_dropped() -> None:
    fleet = make_fleet(epochs=6)
    fleet.until_round(2)
    fleet.turn()
    fleet.nodes["b"].hung = True
    fleet.until_round(5)
    before = fleet.server.pool.members["b"].samples
    fleet.nodes["b"].hung = False
    fleet.run()
    check_account(fleet, 6)
    assert any("b is heard again" in one for one in fleet.lines)
    assert fleet.server.pool.members["b"].samples > before


def test_a_slow_worker_gets_a_smaller_share() -> None:
    fleet = make_fleet(mode=TrainingMode.LOCAL, local_steps=4, sizes=(400, 400, 400), epochs=2)
    fleet.until_round(2)
    fleet.nodes["b"].learner.step_s *= 5
    fleet.run()
    check_account(fleet)
    done = {name: one.samples for name, one in fleet.server.pool.members.items()}
    assert done["b"] < 0.5 * done["a"] and done["c"] > 0.8 * done["a"]


def test_an_update_that_comes_twice_counts_once() -> None:
    fleet = make_fleet(epochs=1)
    double = fleet.nodes["a"].bus
    publish = double.publish
    double.publish = lambda *args, **more: [publish(*args, **more), publish(*args, **more)]  # type: ignore
    fleet.run()
    check_account(fleet, 1)
    assert fleet.server.record.dropped == 0


@pytest.mark.parametrize("mode", [TrainingMode.SYNC, TrainingMode.LOCAL])
@pytest.mark.parametrize("compress", ["none", "float16", "int8"])
def test_a_server_that_restarts_gives_the_numbers_of_an_undisturbed_run(mode: TrainingMode, compress: str) -> None:
    more: dict[str, object] = {"compress": compress, "local_steps": 3, "checkpoint_s": 0.0}
    if mode is TrainingMode.LOCAL:
        more["server_optimizer"] = "momentum:lr=1,beta=0.5"
    optimizer = "adam:lr=0.02,schedule=cosine"
    undisturbed = make_fleet(mode=mode, optimizer=optimizer, **more)
    undisturbed.run()
    fleet = make_fleet(mode=mode, optimizer=optimizer, **more)
    fleet.until_round(4)
    for _ in range(3):
        fleet.turn()
    checkpoint = fleet.checkpoints[-1]
    assert 0 < checkpoint.round < undisturbed.server.round and checkpoint.epoch == 1
    fleet.server_bus.crash()
    fleet.counted.clear()
    fleet.settings = replace(fleet.settings, job=msgspec.structs.replace(fleet.settings.job, author="two"))
    fleet.start_server(checkpoint)
    for name in "abc":
        fleet.kill(name)
        fleet.add(name)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    assert np.array_equal(fleet.server.weights, undisturbed.server.weights)
    assert fleet.server.record.total == undisturbed.server.record.total
    assert [row.round for row in fleet.server.record.rounds] == [row.round for row in undisturbed.server.record.rounds]


def test_own_samples_stay_with_their_worker_and_those_of_the_lost_are_named() -> None:
    fleet = make_fleet(sizes=(), own={"a": 50, "b": 40, "c": 30}, epochs=2)
    fleet.until_round(2)
    fleet.kill("b")
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    assert [row.skipped > 0 for row in fleet.server.record.epochs] == [True, False]
    first, second = fleet.server.record.epochs
    assert first.samples + first.skipped == 120 and second.samples == 80
    assert any("samples of b are left out of this epoch" in one for one in fleet.lines)
    for name in "ac":
        asked = Counter(index for _, index in fleet.nodes[name].learner.asked.elements())
        assert set(asked.values()) == {2} and len(asked) == fleet.nodes[name].learner.own_samples


def test_a_run_without_workers_waits_then_stops_with_its_state() -> None:
    fleet = make_fleet(patience_s=20.0)
    fleet.until_round(2)
    for name in "abc":
        fleet.kill(name)
    fleet.run()
    assert fleet.server.state is RunState.STOPPED and "no worker was heard for 20 s" in fleet.server.problem
    assert fleet.checkpoints[-1].round == fleet.server.round


def test_a_run_whose_workers_all_diverge_stops() -> None:
    fleet = make_fleet()
    for node in fleet.nodes.values():
        node.learner.broken = True
    fleet.run()
    assert fleet.server.state is RunState.STOPPED and "the training diverges" in fleet.server.problem


FORGED: list[tuple[dict[str, object], str]] = [
    ({"vector": vector_of(np.full(SIZE, 3e38, "<f4"))}, "values up to 3e+38 came; expected at most 1e+12"),
    ({"vector": vector_of(np.full(SIZE, np.nan, "<f4"))}, f"{SIZE} values that are not finite"),
    ({"vector": vector_of(np.zeros(SIZE - 1, "<f4"))}, f"a vector of {SIZE - 1} numbers came; expected {SIZE}"),
    ({"vector": structs.replace(vector_of(np.zeros(SIZE, "<f4")), kind="f2")}, "an update in format 'f2' came"),
    ({"samples": 0, "correct": 0}, "an update of no samples came"),
    ({"samples": 10_000}, "of 10000 samples came; expected at most"),
    ({"loss": float("inf")}, "a loss of inf came"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fields", "line"), FORGED, ids=[case[1] for case in FORGED])
def test_an_update_that_no_training_gives_changes_nothing(
    fields: dict[str, object], line: str, mode: TrainingMode
) -> None:
    fleet = make_fleet(mode=mode, local_steps=3)
    forge(fleet, "b", fields)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED, fleet.lines
    check_account(fleet)
    assert any("dropped an update of b: " in one and line in one for one in fleet.lines), fleet.lines
    assert fleet.server.pool.members["b"].samples == 0
    assert np.abs(fleet.server.weights).max() < 10


@pytest.mark.parametrize("mode", MODES)
def test_a_time_of_almost_nothing_leaves_progress_that_can_be_read(mode: TrainingMode) -> None:
    fleet = make_fleet(mode=mode, local_steps=3, by_speed=True)
    forge(fleet, "b", {"seconds": 5e-324})
    fleet.run()
    check_account(fleet)
    shown = decode_training(("r", "progress"), encode_progress(fleet.server.progress(1.0)))
    assert isinstance(shown, TrainingProgress)
    assert 0 < {one.name: one.samples_per_s for one in shown.workers}["b"] <= 1e9


@pytest.mark.parametrize(
    ("field", "value"), [("mode", "fast"), ("optimizer", "adam"), ("optimizer", "\0"), ("server_optimizer", "x")]
)
def test_a_checkpoint_with_a_damaged_text_is_refused(field: str, value: str) -> None:
    fleet = make_fleet(checkpoint_s=0.0, mode=TrainingMode.LOCAL, local_steps=2)
    fleet.until_round(2)
    damaged = structs.replace(fleet.checkpoints[-1], **{field: value})
    with pytest.raises(ModelError, match=r"the checkpoint is damaged: .*; begin anew with --fresh"):
        fleet.start_server(damaged)


@pytest.mark.parametrize("retained", [True, False])
@pytest.mark.parametrize(("started", "rival"), [(-1.0, ""), (1.0, "three")])
def test_of_two_trainings_of_one_name_the_younger_stays(started: float, rival: str, retained: bool) -> None:
    fleet = make_fleet()
    job = structs.replace(fleet.settings.job, author="three", started=fleet.settings.job.started + started)
    topic = TOPICS.training("r", "job")
    fleet.server.handle(Delivery(topic, encode_training(job), (0, 0), retained=retained), 0.0)
    assert fleet.server.rival == rival


@pytest.mark.parametrize("mode", [TrainingMode.SYNC, TrainingMode.LOCAL])
def test_a_run_that_is_stopped_in_a_round_begins_the_round_anew(mode: TrainingMode) -> None:
    undisturbed = make_fleet(mode=mode, local_steps=2)
    undisturbed.run()
    fleet = make_fleet(mode=mode, local_steps=2)
    fleet.until_round(2)
    fleet.nodes["b"].hung = True
    begun = fleet.server.record.total
    while fleet.server.pool.account.counted == begun:  # an update waits for that of b
        fleet.turn()
    fleet.server.halt("stopped by a signal", fleet.now)
    kept = fleet.server.checkpoints[-1]
    assert kept.counted == kept.total == begun
    fleet.settings = replace(fleet.settings, job=structs.replace(fleet.settings.job, author="two"))
    fleet.nodes.clear()
    fleet.start_server(kept)
    for name in "abc":
        fleet.add(name)
    fleet.run()
    assert fleet.server.record.total == undisturbed.server.record.total
    assert np.array_equal(fleet.server.weights, undisturbed.server.weights)


def say_failed(fleet: Fleet, worker: str, detail: str, instance: str = "1", lacks: str = "") -> None:
    report = WorkerReport(
        run="r", author="one", worker=worker, instance=instance, state=WorkerState.FAILED, detail=detail, lacks=lacks
    )
    fleet.spy.publish(TOPICS.training("r", "worker", worker), encode_training(report))
    fleet.spy.poll(0)


def waiting_fleet() -> Fleet:
    fleet = make_fleet("", wait_s=10.0)
    fleet.settings = replace(fleet.settings, workers=1)
    fleet.start_server()
    return fleet


def test_a_node_that_cannot_take_part_is_told_once_a_reason_and_the_run_ends() -> None:
    fleet = waiting_fleet()
    for second in range(60):
        if fleet.server.ended:
            break
        say_failed(fleet, "pi-2", "no samples" if second < 20 else "no memory")
        say_failed(fleet, "pi-3", "no samples")
        fleet.run(1.0)
    assert sorted(fleet.lines) == [
        "pi-2 cannot take part: no memory",
        "pi-2 cannot take part: no samples",
        "pi-3 cannot take part: no samples",
    ]
    assert (fleet.server.state, second) == (RunState.STOPPED, 40)
    assert (
        fleet.server.problem == "no worker can take part (2 nodes tried); mend this, and begin again: pi-2: no memory"
    )


def test_a_node_that_lacks_a_file_or_takes_part_later_does_not_end_the_run() -> None:
    fleet = waiting_fleet()
    say_failed(fleet, "a", "no file", lacks="a" * 64)
    fleet.run(60.0)
    assert fleet.server.state is RunState.WAITING
    say_failed(fleet, "b", "no samples")
    fleet.add("b")
    fleet.run()
    assert fleet.server.state is RunState.FINISHED


def test_a_worker_that_says_a_thousand_times_that_it_missed_a_round_gets_it_a_few_times() -> None:
    fleet = make_fleet()
    fleet.until_round(2)
    while not fleet.server.pool.awaited:
        fleet.turn()
    report = fleet.nodes["b"].worker.report(WorkerState.READY)
    said = decode_training(("r", "worker", "b"), report.payload)
    missed = encode_training(structs.replace(said, heard=0))
    sent = [fleet.server.handle(Delivery(report.topic, missed, (0, 0)), fleet.now) for _ in range(1000)]
    assert sum(map(bool, sent)) == 8
    fleet.run()
    check_account(fleet)


@pytest.mark.parametrize("forged", ["older", "removed", "own"])
def test_a_job_that_an_older_server_left_or_that_is_taken_away_is_said_again(forged: str) -> None:
    fleet = make_fleet()
    job = fleet.settings.job
    older = encode_training(structs.replace(job, author="three", started=job.started - 1))
    payload = {"older": older, "removed": b"", "own": encode_training(job)}[forged]
    said = fleet.server.handle(Delivery(TOPICS.training("r", "job"), payload, (0, 0)), 0.0)
    assert said == ([] if forged == "own" else [fleet.server.job_message()]) and fleet.server.rival == ""


def test_words_of_a_node_cannot_paint_the_terminal(tmp_path: Path) -> None:
    from tests.learning.server.test_service import serve

    fleet, lines = make_fleet(epochs=1), list[str]()
    say_failed(fleet, "pi-2", "no\x1b[31m\nway")
    serve(fleet, tmp_path / "r.checkpoint", lines, [])
    assert "pi-2 cannot take part: no\\x1b[31m\\nway" in lines
