"""Feed a pipeline and act on its results in one asyncio program.

    python examples/asyncio_results.py

`async for` waits for results without holding up other tasks; a sensor waits for answers, so it runs in a thread.
"""

import asyncio
import time

import numpy as np

import har_edge


def feed(cluster: har_edge.LocalCluster, seconds: int) -> None:
    """Send a second of samples at a time, ten times as fast as they would come."""
    with cluster.sensor("anna") as sensor:
        for second in range(seconds):
            sensor.send(np.full((50, sum(sensor.channels.values())), second / 10))
            time.sleep(0.1)


async def main() -> None:
    """Print each result as it comes, while samples are still sent."""
    with har_edge.LocalCluster("int8", stages=2) as cluster:
        async with cluster.watch(limit=3, timeout_s=30) as results:
            sending = asyncio.create_task(asyncio.to_thread(feed, cluster, 10))
            async for result in results:
                print(f"window {result.seq}: {result.label}")
            await sending


asyncio.run(main())
