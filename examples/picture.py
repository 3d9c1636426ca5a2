"""Send pictures to an image classifier that is spread over two stages.

    python examples/picture.py MODEL.tflite [LABELS.txt]

MODEL takes one picture [1, height, width, channels] and gives one score for each class; LABELS has one name a line.
Pictures are arrays of bytes: here noise, with Pillow `np.asarray(Image.open("cat.jpg"))`. One of another size is
resized, which needs the extra `images`.
"""

import sys
from pathlib import Path

import numpy as np

import har_edge

if len(sys.argv) < 2:
    sys.exit("usage: python examples/picture.py MODEL.tflite [LABELS.txt]")
path = sys.argv[1]
image, scores = har_edge.load_model(path).inputs[0], har_edge.load_model(path).outputs[0]
labels = [f"class {number}" for number in range(scores.shape[-1])]
if len(sys.argv) > 2:
    labels = Path(sys.argv[2]).read_text().splitlines()
# A model of floats takes (byte - mean) / std, one of bytes the bytes.
constants = (127.5, 127.5) if image.dtype.startswith("float") else None
model = har_edge.load_model(path, labels=labels, pictures=True, normalize=constants)

rng = np.random.default_rng(0)
with (
    har_edge.LocalCluster(model, stages=2) as cluster,
    cluster.watch(limit=3, timeout_s=30) as results,
    cluster.sensor("camera-1") as camera,
):
    for _ in range(3):
        camera.send(rng.integers(0, 256, image.shape[1:], np.uint8))
    for result in results:
        best = ", ".join(f"{one.label} {one.confidence:.2f}" for one in result.classes)
        print(f"picture {result.seq}: {best}")
