"""`har-edge train --task anomaly --on-devices`: several nodes sum what one does."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.cluster.processes import Processes
from har_edge.inference.anomaly import AnomalyDetector
from har_edge.learning.anomaly.networks import AutoencoderSize, write_autoencoder
from har_edge.mqtt.broker.launcher import Mosquitto
from tests.learning.anomaly_pictures import stripes, with_spot

TIMEOUT_S = 120.0


def test_one_node_and_two_make_the_same_detector(
    tmp_path: Path, mosquitto: Mosquitto, capsys: pytest.CaptureFixture[str]
) -> None:
    data, network = tmp_path / "pictures.npz", tmp_path / "network.tflite"
    x, y = np.concatenate([stripes(50), with_spot(stripes(20, seed=1))]), np.array([0] * 50 + [1] * 20)
    np.savez(data, x=x, y=y, classes=np.array(["striped", "spotted"]), real=False)
    network.write_bytes(write_autoencoder((64, 64, 1), AutoencoderSize(4, 3)))
    reports, detectors = [], []
    for count in (1, 2):
        connection = ["--broker", mosquitto.address.url, "--base", f"a{time.time_ns()}"]
        processes = Processes(patience_s=0.0, folder=tmp_path)
        try:
            for number in range(count):
                name = f"node-{count}-{number}"
                words = ["node", "--name", name, "--cache", str(tmp_path / name), *connection]
                processes.start(name, words, log=tmp_path / f"{name}.log")
            until = time.monotonic() + TIMEOUT_S
            while not all("connected" in one.output for one in processes.running.values()):
                assert time.monotonic() < until, processes.last_lines()
                time.sleep(0.05)
            out = tmp_path / f"out-{count}"
            words = ["--data", str(data), "--normal", "striped", "--out", str(out), "--cache", str(tmp_path / "cache")]
            words += ["--method", "padim", "--features", str(network), "--layers", "down0,down1"]
            words += ["--normalize", "0,255", "--batch", "8", "--on-devices", "--workers", str(count), *connection]
            assert main(["train", "--task", "anomaly", *words]) == 0, processes.last_lines()
        finally:
            processes.stop()
        assert "anomaly-padim-statistics: 32 pictures counted" in capsys.readouterr().out
        reports.append(json.loads((out / "anomaly.json").read_text()))
        detectors.append(AnomalyDetector((out / "anomaly.tflite").read_bytes()))
    one, two = (detector.run(x[40:]) for detector in detectors)
    np.testing.assert_allclose(two.scores, one.scores, rtol=1e-4)
    np.testing.assert_allclose(two.heat_maps, one.heat_maps, rtol=1e-3, atol=1e-4)
    assert reports[1]["threshold"] == pytest.approx(reports[0]["threshold"], rel=1e-4)
    assert reports[0]["test"]["image_auroc"] == reports[1]["test"]["image_auroc"]
