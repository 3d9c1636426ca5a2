"""The optimizers of a run that names none, and that of the server for the mean change of its workers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from har_edge.errors import ConfigError
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.optimizers.rates import constant_at, decay_between
from har_edge.learning.server.aggregation import AveragingAggregator, Contribution
from har_edge.learning.server.modes import TrainingMode
from har_edge.learning.server.recipes import check_server_optimizer, choose_optimizer, choose_server_optimizer
from tests.learning.training_rig import make_fleet


def contributions(*changes: tuple[int, list[float]]) -> dict[str, Contribution]:
    """Return the updates of workers: their samples, and the changes of their weights."""
    return {
        f"w{number}": Contribution(f"w{number}", samples, np.array(values, np.float32))
        for number, (samples, values) in enumerate(changes)
    }


def test_a_server_without_an_optimizer_adds_the_mean_change_by_samples() -> None:
    weights = np.array([1, 1], np.float32)
    assert AveragingAggregator().apply(weights, contributions((30, [1, 0]), (10, [-1, 4]))) == 40
    assert weights.tolist() == [1.5, 2.0]
    assert AveragingAggregator().apply(weights, contributions((0, [9, 9]))) == 0
    assert weights.tolist() == [1.5, 2.0]


def test_a_server_with_momentum_goes_on_with_the_mean_change() -> None:
    aggregator = AveragingAggregator(make_optimizer("momentum:lr=1,beta=0.5", 2))
    weights = np.zeros(2, np.float32)
    aggregator.apply(weights, contributions((30, [1, 0]), (10, [-1, 4])))
    assert weights.tolist() == [0.5, 1.0]
    aggregator.apply(weights, contributions((10, [0, 0])))
    assert weights.tolist() == [0.75, 1.5]
    aggregator.apply(weights, contributions((0, [9, 9])))  # no samples: no step
    assert weights.tolist() == [0.75, 1.5]


def test_the_rate_one_is_the_mean_itself() -> None:
    plain, stepped = np.ones(2, np.float32), np.ones(2, np.float32)
    some = contributions((30, [1, 0]), (10, [-1, 4]))
    AveragingAggregator().apply(plain, some)
    AveragingAggregator(make_optimizer("sgd:lr=1", 2)).apply(stepped, some)
    assert np.allclose(plain, stepped, atol=1e-6)


def test_the_rate_follows_the_root_of_the_global_batch_unless_an_optimizer_is_named() -> None:
    def chosen(asked: str, mode: TrainingMode, batch: int, compress: str = "float16", *, decays: bool = True) -> str:
        return choose_optimizer(asked, mode, batch, compress, decays=decays)

    assert {batch: chosen("auto", TrainingMode.SYNC, batch) for batch in (32, 128, 352)} == {
        32: "momentum:lr=0.0500,decay=0.001,schedule=cosine",
        128: "momentum:lr=0.1000,decay=0.001,schedule=cosine",
        352: "momentum:lr=0.1658,decay=0.001,schedule=cosine",
    }
    assert chosen("auto", TrainingMode.LOCAL, 64) == "momentum:lr=0.0707,decay=0.001,schedule=cosine"
    assert chosen("auto", TrainingMode.LOCAL, 352) == "momentum:lr=0.1000,decay=0.001,schedule=cosine"
    assert chosen("auto", TrainingMode.LOCAL, 352, decays=False) == "momentum:lr=0.1000,schedule=cosine"
    assert chosen("sgd:lr=1", TrainingMode.LOCAL, 352) == "sgd:lr=1"
    assert chosen("auto", TrainingMode.SYNC, 128, "topk:0.01").startswith("sgd:lr=0.3,")


def test_the_momentum_of_the_server_grows_with_the_number_of_workers() -> None:
    found = {
        workers: choose_server_optimizer(TrainingMode.LOCAL, 32 * workers, workers) for workers in (1, 2, 4, 8, 11)
    }
    assert found == {
        1: "",
        2: "momentum:lr=1,beta=0.41,nesterov=1",
        4: "momentum:lr=1,beta=0.58,nesterov=1",
        8: "momentum:lr=1,beta=0.79,nesterov=1",
        11: "momentum:lr=1,beta=0.85,nesterov=1",
    }
    assert choose_server_optimizer(TrainingMode.LOCAL, 352, 1) == ""
    for mode in (TrainingMode.SYNC, TrainingMode.STALE):
        assert choose_server_optimizer(mode, 352, 11) == ""


def test_a_run_that_names_none_gets_momentum_at_the_server_and_says_why() -> None:
    fleet = make_fleet(mode=TrainingMode.LOCAL, optimizer="auto", local_steps=4, global_batch=200)
    fleet.run()
    why = next(line for line in fleet.lines if line.startswith("optimizer chosen: "))
    assert "x 2.00, for a global batch of 200 (at most x 2 with local steps" in why and "server's momentum" in why
    begun = next(line for line in fleet.lines if "; updates " in line)
    assert "momentum:lr=0.1000,decay=0.001,schedule=cosine" in begun
    assert begun.endswith("; server momentum:lr=1,beta=0.73,nesterov=1")


def test_the_server_lets_weights_decay_as_local_steps_would() -> None:
    spec = "momentum:lr=0.1,beta=0.5,decay=0.01,schedule=cosine,steps=100"
    assert "decay" not in constant_at(spec, 0)  # a worker of an older version knows no such option
    assert decay_between(spec, 0, 20) == pytest.approx(1 - math.exp(-0.1 * 0.01 / 0.5 * 20))
    assert decay_between(spec, 50, 20) == pytest.approx(1 - math.exp(-0.05 * 0.01 / 0.5 * 20))
    assert decay_between("sgd:lr=0.1,decay=0.01", 0, 3) == pytest.approx(1 - math.exp(-0.003))
    assert decay_between("sgd:lr=0.1", 0, 9) == decay_between("adamw:lr=0.1,decay=0.1", 0, 9) == 0
    assert "decay=0.1" in constant_at("adamw:lr=0.1,decay=0.1", 0)  # workers apply that of AdamW


def test_decay_takes_its_part_of_the_weights_beside_the_mean_change() -> None:
    for optimizer in (None, make_optimizer("sgd:lr=1", 2)):
        aggregator, weights = AveragingAggregator(optimizer, decay=0.25), np.array([4, 8], np.float32)
        aggregator.apply(weights, contributions((30, [1, 0]), (10, [-1, 4])))
        assert weights.tolist() == [3.5, 7.0]
        aggregator.apply(weights, contributions((0, [9, 9])))  # no samples: nothing decays
        assert weights.tolist() == [3.5, 7.0]


@pytest.mark.parametrize("mode", [TrainingMode.LOCAL, TrainingMode.STALE, TrainingMode.SYNC])
def test_a_run_with_decay_ends_with_smaller_weights(mode: TrainingMode) -> None:
    norms = []
    for decay in ("0", "0.05"):
        fleet = make_fleet(mode=mode, optimizer=f"momentum:lr=0.05,decay={decay}", local_steps=4)
        fleet.run()
        norms.append(float(np.linalg.norm(fleet.server.weights)))
    assert norms[1] < 0.95 * norms[0]


def test_a_server_optimizer_is_refused_where_nothing_is_averaged() -> None:
    check_server_optimizer("", TrainingMode.SYNC)
    check_server_optimizer("adam:lr=0.01", TrainingMode.LOCAL)
    with pytest.raises(
        ConfigError, match=r"--server-optimizer sgd:lr=1 with --mode sync: .* take --mode local or auto"
    ):
        check_server_optimizer("sgd:lr=1", TrainingMode.SYNC)
    with pytest.raises(ConfigError, match="method 'lion', expected one of"):
        check_server_optimizer("lion:lr=1", TrainingMode.LOCAL)


@pytest.mark.parametrize("mode", [TrainingMode.SYNC, TrainingMode.LOCAL])
def test_a_run_says_rate_global_batch_and_what_it_does_not_use(mode: TrainingMode) -> None:
    fleet = make_fleet(mode=mode, optimizer="auto", server_optimizer="momentum:lr=1,beta=0.3", local_steps=4)
    fleet.run()
    begun = next(line for line in fleet.lines if "; updates " in line)
    assert "momentum:lr=0.0433,decay=0.001,schedule=cosine,steps=30" in begun and "24" in begun
    unused = "no optimizer steps by mean changes in mode sync: momentum:lr=1,beta=0.3"
    assert (unused in fleet.lines) is (mode is TrainingMode.SYNC)
    assert begun.endswith("; server momentum:lr=1,beta=0.3") is (mode is TrainingMode.LOCAL)
