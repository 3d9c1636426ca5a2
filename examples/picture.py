"""Send pictures to an image classifier that is spread over two stages.

    python examples/picture.py MODEL.tflite [LABELS.txt]

MODEL takes one picture [1, height, width, channels] and gives one score for each class; LABELS has one name a line. The
picture is an array in the units that the model was trained on: here noise, with Pillow `np.asarray(image) / 255`.
"""

import sys
from pathlib import Path

import numpy as np

import har_edge

if len(sys.argv) < 2:
    sys.exit("usage: python examples/picture.py MODEL.tflite [LABELS.txt]")
path = sys.argv[1]
height, width, channels = har_edge.load_model(path).inputs[0].shape[1:]
classes = har_edge.load_model(path).outputs[0].shape[-1]
labels = Path(sys.argv[2]).read_text().splitlines() if len(sys.argv) > 2 else [f"class {n}" for n in range(classes)]
model = har_edge.load_model(path, labels=labels)

rng = np.random.default_rng(0)
with (
    har_edge.LocalCluster(model, stages=2) as cluster,
    cluster.watch(limit=3, timeout_s=30) as results,
    cluster.sensor("camera-1") as camera,
):
    for _ in range(3):
        camera.send(rng.random((height, width, channels), np.float32))
    for result in results:
        print(f"picture {result.seq}: {result.label} ({result.confidence:.2f})")
