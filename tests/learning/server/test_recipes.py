"""The optimizers of a run that names none, and that of the server for the mean change of its workers."""

from __future__ import annotations

import numpy as np
import pytest

from har_edge.errors import ConfigError
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.server.aggregation import AveragingAggregator, Contribution
from har_edge.learning.server.modes import TrainingMode
from har_edge.learning.server.recipes import check_server_optimizer, choose_optimizer
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
    rates = {batch: choose_optimizer("auto", TrainingMode.LOCAL, batch, "float16") for batch in (32, 128, 352)}
    assert rates == {
        32: "momentum:lr=0.0500,schedule=cosine",
        128: "momentum:lr=0.1000,schedule=cosine",
        352: "momentum:lr=0.1658,schedule=cosine",
    }
    assert choose_optimizer("sgd:lr=1", TrainingMode.LOCAL, 352, "float16") == "sgd:lr=1"
    assert choose_optimizer("auto", TrainingMode.SYNC, 128, "topk:0.01").startswith("sgd:lr=0.3,")


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
    assert "momentum:lr=0.0433,schedule=cosine,steps=30" in begun and "24" in begun
    unused = "no optimizer steps by mean changes in mode sync: momentum:lr=1,beta=0.3"
    assert (unused in fleet.lines) is (mode is TrainingMode.SYNC)
    assert begun.endswith("; server momentum:lr=1,beta=0.3") is (mode is TrainingMode.LOCAL)
