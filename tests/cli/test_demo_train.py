"""`har-edge demo --train`: trains on nodes, loses one, deploys what came of it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from har_edge.cli import training_demo
from har_edge.cli.main import main
from tests.learning.made_data import pictures, write_mnist


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
def test_it_trains_on_what_is_there_loses_a_node_and_deploys_the_result(capfd):
    others = set(psutil.Process().children(recursive=True))
    assert main(["demo", "--train"]) == 0
    said = capfd.readouterr().out
    assert "no MNIST here, so scikit-learn's digits instead (real, small: 1438 samples to train on" in said
    assert "get MNIST with: har-edge data fetch mnist" in said
    before, after = (int(found) for found in re.findall(r"(\d+) of 100 pictures are answered rightly", said))
    assert before < 40
    assert after >= 80
    assert "killed   node-2, in epoch" in said
    assert "rightly, by node-1, node-3" in said
    counts = r"(\d+) answered \((\d+) by the untrained model, (\d+) by the trained one\), 0 lost"
    told = " ".join(said.split())
    windows = re.search(r"(\d+) sent while it trained and the result was rolled out, " + counts, told)
    assert windows is not None, said
    sent, answered, untrained, trained = map(int, windows.groups())
    assert sent == answered == untrained + trained and untrained > 10 and trained >= 10
    losses = [float(found) for found in re.findall(r"loss (\d+\.\d+)", said)]
    assert len(losses) > 3
    assert losses[-1] < 0.7 * losses[0]
    assert re.search(r"accuracy 0\.\d+ after epoch 15, 2 workers", said)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (left := set(psutil.Process().children(recursive=True)) - others):
        time.sleep(0.1)
    assert not left


def test_mnist_is_taken_where_it_is(tmp_path):
    write_mnist(tmp_path / "data" / "mnist", pictures(60, side=28), pictures(20, side=28, seed=1))
    samples = training_demo.choose_samples(None)
    assert samples.origin == ("mnist from data/mnist (real): 60 of 60 samples to train on, 20 of 20 to test with")
    assert sorted(row.tobytes() for row in samples.train.x) == sorted(row.tobytes() for row in pictures(60, side=28).x)
    again = training_demo.choose_samples(Path("data/mnist"))
    assert np.array_equal(again.train.x, samples.train.x)


def test_digits_fill_the_range_of_bytes():
    samples = training_demo.choose_samples(None)
    held = training_demo.to_bytes(samples.train)
    assert (held.dtype, held.min(), held.max()) == (np.uint8, 0, 255)
    np.testing.assert_allclose(held / 255, samples.train.values(), atol=1 / 510)


def test_options_of_the_other_demo_are_refused(capsys):
    assert main(["demo", "--train", "--windows", "3"]) == 2
    assert "--windows came with --train; expected --data and --broker alone" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(6, 6), (50, 21), (28, 28, 3)])
def test_samples_of_another_kind_are_refused_before_anything_starts(tmp_path, capsys, monkeypatch, shape):
    monkeypatch.setattr("har_edge.cluster.local_cluster.LocalCluster", lambda *_, **__: pytest.fail("it started"))
    np.savez(tmp_path / "other.npz", x=np.zeros((40, *shape), np.uint8), y=np.arange(40) % 4)
    assert main(["demo", "--train", "--data", str(tmp_path / "other.npz")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"holds samples of {list(shape)}; expected pictures of 28 x 28 grey pixels" in said
