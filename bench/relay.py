"""The baseline of bench/throughput.py and bench/latency.py: a bare relay, with paho, the same slices, nothing else.

No envelope, no acknowledgement chain, no join: the bytes of all tensors that cross a cut follow each other.
Usage: relay.py SLICES INDEX QOS PORT
"""

import socket
import sys
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from har_edge.inference.interpreter import load_slice
from har_edge.tflite.manifest import load_manifest

folder, index, qos, port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
slices = load_manifest(folder).slices


def crossing(cut: int) -> list[tuple[str, tuple[int, ...], str, int]]:
    """Return name, shape, dtype and bytes of what is made before slice `cut` (or fed) and still needed from there."""
    made = {spec.name for entry in slices[:cut] for spec in entry.outputs}
    fed = {spec.name for entry in slices for spec in entry.inputs} - {s.name for e in slices for s in e.outputs}
    needed = {spec.name: spec for entry in slices[cut:] for spec in entry.inputs if spec.name in made | fed}
    layout = []
    for spec in needed.values():
        shape = tuple(1 if size == -1 else size for size in spec.shape)
        layout.append((spec.name, shape, spec.dtype, int(np.prod(shape)) * np.dtype(spec.dtype).itemsize))
    return layout


def main() -> None:
    interpreter = load_slice(folder / slices[index].file, slices[index].sha256)
    before, after = crossing(index), [item[0] for item in crossing(index + 1)] or [s.name for s in slices[-1].outputs]
    own = [spec.name for spec in slices[index].inputs]

    def on_message(client: mqtt.Client, _user: object, message: mqtt.MQTTMessage) -> None:
        tensors, offset = {}, 0
        for name, shape, dtype, size in before:
            flat = np.frombuffer(message.payload, dtype, size // np.dtype(dtype).itemsize, offset)
            tensors[name] = flat.reshape(shape)
            offset += size
        tensors |= interpreter.run({name: tensors[name] for name in own})
        client.publish(f"relay/{index + 1}", b"".join(tensors[name].tobytes() for name in after), qos)

    def on_connect(client: mqtt.Client, *_: object) -> None:
        client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[union-attr]
        client.subscribe(f"relay/{index}", qos)

    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(0)
    client.on_connect, client.on_message = on_connect, on_message
    client.connect("127.0.0.1", port)
    client.loop_forever()


main()
