"""Send samples of your own to a pipeline, one at a time as a device delivers them.

    python examples/custom_sensor.py

`samples` stands for your device: it yields one row with the channels of all sources a time. The sensor cuts windows out
of them (here 250 samples, one window every 125), reduces them, and sends each until its result came.
"""

from collections.abc import Iterator

import numpy as np

import har_edge


def samples(count: int, channels: int) -> Iterator[np.ndarray]:
    """Yield made-up samples: slow waves with a little noise."""
    rng = np.random.default_rng(0)
    for row in range(count):
        yield np.sin(row / 25 + np.arange(channels)) + rng.normal(0, 0.1, channels)


with (
    har_edge.LocalCluster("int8", stages=2) as cluster,
    cluster.watch(limit=3, timeout_s=30) as results,
    cluster.sensor("my-device") as sensor,
):
    windows = sensor.send_each(samples(500, sum(sensor.channels.values())))
    print(f"{windows} windows of {', '.join(sensor.sources)} were sent")
    for result in results:
        print(f"window {result.seq}: {result.label} ({result.confidence:.2f})")
