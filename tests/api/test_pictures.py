"""Pictures as arrays through a local cluster, fixed and with a coordinator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import har_edge
from har_edge.data.pictures import AspectRule, PictureShape, fit_picture
from har_edge.errors import DataError
from har_edge.inference.interpreter import Interpreter
from tests.data.pillow_made import pixels
from tests.tflite import picture_models

LABELS = [f"class {number}" for number in range(7)]


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [None, 2])
def test_a_sensor_sends_pictures_of_any_size(nodes: int | None, tmp_path: Path) -> None:
    content = picture_models.classifier()
    (tmp_path / "model.tflite").write_bytes(content)
    model = har_edge.load_model(tmp_path / "model.tflite", labels=LABELS, pictures=True, fit="crop")
    sent = [pixels(8, 6), pixels(30, 50), pixels(9, 9, 1)[:, :, 0]]
    with (
        har_edge.LocalCluster(model, stages=2, nodes=nodes) as cluster,
        cluster.watch(limit=3, timeout_s=60) as results,
        cluster.sensor("door") as camera,
    ):
        for values in (np.zeros((8, 6, 3), np.float32), np.zeros((8, 6, 4), np.uint8)):
            with pytest.raises(DataError, match=r"a picture came as .*expected uint8 \[height, width\]"):
                camera.send(values)
        assert [camera.send(one) for one in sent[:2]] == [1, 1]
        assert camera.send({"camera": sent[2]}) == 1
        found = {result.seq: result for result in results}
    for number, one in enumerate(sent):
        entered = fit_picture(one, PictureShape(8, 6, 3), AspectRule.CROP)
        scores = Interpreter(content).run({"image": entered[None]})["scores"][0]
        assert found[number].label == LABELS[int(scores.argmax())]
        assert [best.confidence for best in found[number].classes] == sorted(map(float, scores), reverse=True)[:5]
