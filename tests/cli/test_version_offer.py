"""Models that are offered to a pipeline on Mosquitto while windows flow: refused, rolled out, rolled back."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from har_edge.cli.main import build_parser, main
from har_edge.cli.version_offer import LiveWatch, offer_to_pipeline
from har_edge.cluster.local_cluster import LocalCluster
from har_edge.config.catalog import find_model
from har_edge.learning.versions.registry import VersionRegistry, VersionState
from har_edge.learning.versions.rollout import ScoredModel
from har_edge.runtime.stop import Stop
from har_edge.tflite.gradient.weights import read_weights, replace_weights
from har_edge.tflite.model import read_model
from tests.cli.fleet import NO_DATA

STREAMS = ("subject1", "subject2", "subject3", "subject4")
WINDOWS = 20


def always_wrong(path: Path) -> bytes:
    """Return the shipped float network with its classes moved by one."""
    model = read_model(path)
    weights = read_weights(model)
    last = list(weights)[-2:]
    assert {weights[name].shape[0] for name in last} == {12}
    return bytes(replace_weights(model, {name: np.roll(weights[name], 1, axis=0) for name in last}))


@pytest.mark.slow
def test_a_worse_model_is_refused_and_one_that_is_worse_live_goes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAR_EDGE_DATA", NO_DATA["HAR_EDGE_DATA"])
    found, out, outcome = find_model("float"), tmp_path / "out", list[object]()
    worse = always_wrong(found.path)
    with LocalCluster("float", stages=2, nodes=2, directory=tmp_path / "work") as cluster:
        where = ["--pipeline", cluster.topics.pipeline, "--base", cluster.topics.base, "--broker", cluster.broker]
        args = build_parser().parse_args(["train", "--on-devices", "--out", str(out), "--trial", "40", *where])

        def offer() -> None:
            live = LiveWatch(args, cluster.topics)
            try:
                for claimed in (0.97, 0.99):  # the second one says more of itself than is so
                    made = ScoredModel(worse, "run", {"accuracy": claimed}, 100, "made up", False)
                    outcome.append(
                        offer_to_pipeline(
                            args,
                            cluster.topics,
                            made,
                            lambda _: {"accuracy": 0.98},
                            None,
                            Stop(),
                            files=[found.path],
                            live=live,
                        )
                    )
            except Exception as error:
                outcome.append(error)
            finally:
                live.close()

        right = list[list[bool]]()

        def replay() -> None:
            """Send windows, and wait until each is answered: one that is lost is an error."""
            cluster.replay(*STREAMS, windows=WINDOWS, speed=10)
            came = [result.truth == result.label_id for result in cluster.results()]
            assert len(came) == len(STREAMS) * WINDOWS
            right.append(came)

        replay()
        thread = threading.Thread(target=offer)
        thread.start()
        while thread.is_alive():
            replay()
        replay()
        assert cluster.view.deployment is not None and cluster.view.deployment.current is not None
        assert cluster.view.deployment.current.manifest.model_sha256 == found.sha256
    said = capsys.readouterr().out
    assert outcome == [False, False], said
    assert (
        "is refused: accuracy 0.9700 against 0.9800 of the deployed version on 100 held-out samples of made up" in said
    )
    assert (
        "is rolled out: accuracy 0.9900 against 0.9800" in said and "is rolled back: live accuracy 0.0000 of " in said
    )
    kept = VersionRegistry(out)
    assert [(one.sha256 == found.sha256, one.state) for one in kept.versions] == [
        (True, VersionState.DEPLOYED),
        (False, VersionState.ROLLED_BACK),
    ]
    assert kept.content(found.sha256) == found.path.read_bytes()
    shares = [sum(one) / len(one) for one in right]  # windows between two activities may be taken for either
    assert shares[0] > 0.9 and shares[-1] == shares[0] and min(shares) < 0.9, shares


def test_a_version_that_there_is_not_cannot_be_deployed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = VersionRegistry(tmp_path)
    kept.add(b"x", "run", {}, samples=1, data="d", real=False, state=VersionState.DEPLOYED)
    assert main(["versions", str(tmp_path), "--deploy", "previous"]) == 2
    assert "no version in" in capsys.readouterr().err
    assert main(["versions", str(tmp_path), "--deploy", "ffff"]) == 2
    assert "no version 'ffff'; expected one of 2d711642b726" in capsys.readouterr().err
