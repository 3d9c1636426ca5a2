"""Try a reduction method of your own: what it costs in bytes, and how often the model still says the same.

    python examples/custom_reducer.py

A method is a class with the protocol of `har_edge.codecs.reducer.Reducer`, and an entry in the table of methods. To use
it between devices, put the class into har_edge/codecs/ and the entry into the table there, on every device.
"""

import numpy as np

import har_edge
from har_edge.codecs import catalog
from har_edge.codecs.checks import check_code, check_window
from har_edge.data.synthetic import synthesize
from har_edge.data.windows import windows


class Median:
    """Sends the median of every few consecutive samples of each channel, and restores by repeating it."""

    code_dtype, code_scale, code_zero = "float32", 0.0, 0
    restores, is_coding = True, False

    def __init__(self, piece: int, length: int, channels: int) -> None:
        self.spec, self._piece, self._shape = f"median:{piece}", piece, (length, channels)
        self.code_shape = self.feature_shape = (length // piece, channels)
        self.most_bytes = 4 * self.code_shape[0] * channels
        self.operations = length * channels * 4

    def encode(self, window: np.ndarray) -> np.ndarray:
        check_window(self.spec, window, self._shape)
        return np.median(window.reshape(-1, self._piece, self._shape[1]), axis=1).astype(np.float32)

    def features(self, code: np.ndarray) -> np.ndarray:
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        return code

    def decode(self, code: np.ndarray) -> np.ndarray:
        return np.repeat(self.features(code), self._piece, axis=0)


catalog.METHODS["median", 1] = catalog.ReducerMethod(
    "median:PIECE",
    "median of every PIECE consecutive samples",
    catalog.EncoderInput.WINDOWS,
    lambda options, context: Median(int(options[0]), *context.shape),
)

model = har_edge.load_model("float")
task = model.task
length, hop = task.stream.length, task.stream.hop
cut = [window for one in synthesize(["subject7"]) for window in windows(one, length, hop, within_activity=True)][::5]


def classes(spec: str) -> tuple[list[int], int]:
    """Return the class of every window after the reducer, and the bytes of one window."""
    reducers = {source: catalog.make_reducer(spec, length, cut[0].samples[source].shape[1]) for source in task.inputs}
    said = []
    for window in cut:
        values = {
            enters.tensor: reducers[source].decode(reducers[source].encode(window.samples[source]))[np.newaxis]
            for source, enters in task.inputs.items()
        }
        said.append(int(np.argmax(model.run(values)[task.output])))
    return said, sum(reducer.most_bytes for reducer in reducers.values())


wanted, _ = classes("none")
print(f"{len(cut)} synthetic windows, classes as without reduction")
for spec in ("none", "paa:25", "median:25", "median:25+q8"):
    said, size = classes(spec)
    same = sum(a == b for a, b in zip(said, wanted, strict=True))
    print(f"{spec:12} {size:6} bytes a window, {same} of {len(cut)} the same")
