"""Write the float32 master of the default model's head, and check every master against its int8 file.

    python bench/masters.py --out models

The head was trained in one network with its encoders, which is shipped in float32 as decimate-q8-zlib-restore, and the
int8 head was made of the same weights. The master is those last operators, cut out; no training is needed. Every weight
of an int8 file must be that of its master, rounded to its step; else this ends with an error and writes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import msgspec
import numpy as np

from har_edge.config.catalog import ModelEntry, find_model, merge_catalog, store_catalog
from har_edge.data.description import load_description
from har_edge.data.files import read_recordings
from har_edge.data.locate import find_data
from har_edge.errors import ModelError
from har_edge.evaluation.prediction import Classifier, predict_recordings
from har_edge.evaluation.report import score, scored
from har_edge.files import write_atomic
from har_edge.inference.codecs import FolderFiles
from har_edge.inference.interpreter import Interpreter
from har_edge.tflite.manifest import TensorSpec
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.slices import slice_model, write_slice
from har_edge.tflite.split.writer import constant_data

# The first operator of the head in the whole network: it joins the codes of all sources.
HEAD = 156
WHOLE, KIND, MASTER = "decimate-q8-zlib-restore", "bottleneck", "bottleneck-float"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the models")
    args = parser.parse_args()
    made = [make(suffix) for suffix in ("", "-split")]
    accuracy, macro_f1, windows = measure(*made[1])
    entries = []
    for (entry, content), suffix in zip(made, ("", "-split"), strict=True):
        split = msgspec.structs.replace(
            entry.split, accuracy=accuracy, macro_f1=macro_f1, windows=windows, model=made[1][0].sha256
        )
        write_atomic(args.out / entry.file, content)
        entries.append(msgspec.structs.replace(entry, split=split))
        known = {name: find_model(name).entry for name in (f"{KIND}{suffix}", f"int8{suffix}")}
        for name, master in ((f"{KIND}{suffix}", entry.name), (f"int8{suffix}", f"float{suffix}")):
            entries.append(msgspec.structs.replace(known[name], master=master))
        print(f"{args.out / entry.file}: {len(content)} bytes, sha256 {entry.sha256}")
    print(f"tested on {', '.join(entries[0].split.test)}: accuracy {accuracy:.4f}, {windows} windows")
    print(store_catalog(merge_catalog(args.out, entries), args.out))


def make(suffix: str) -> tuple[ModelEntry, bytes]:
    """Return the entry and the file of a master, checked; the score in the entry is that of the int8 file still."""
    whole, int8 = find_model(f"{WHOLE}{suffix}"), find_model(f"{KIND}{suffix}")
    model = read_model(whole.path)
    content = bytes(write_slice(model, slice_model(model, [HEAD])[1]))
    master = read_model(content)
    pairs = [(master, int8.path), (read_model(find_model(f"float{suffix}").path), find_model(f"int8{suffix}").path)]
    for floats, path in pairs:
        print(f"{path.name}: {check_rounded(floats, read_model(path))} weights are those of the master, rounded")
    interpreter = Interpreter(content)
    entry = msgspec.structs.replace(
        int8.entry,
        name=f"{MASTER}{suffix}",
        file=f"har-{MASTER}{suffix}.tflite",
        sha256=hashlib.sha256(content).hexdigest(),
        inputs=[TensorSpec(port.name, port.shape, port.dtype.name) for port in interpreter.inputs],
        outputs=[TensorSpec(port.name, port.shape, port.dtype.name) for port in interpreter.outputs],
        command=f"har-edge slice {WHOLE}{suffix} --at {HEAD} --out slices; "
        f"cp slices/slice-1.tflite har-{MASTER}{suffix}.tflite",
    )
    return entry, content


def check_rounded(master: Model, int8: Model) -> int:
    """Return how many weights of an int8 file were compared; ModelError where one is not the master's, rounded."""
    floats = {one.name: constant_data(master, one) for one in master.main.tensors if one.constant}
    compared = 0
    for tensor in int8.main.tensors:
        if not tensor.constant or tensor.dtype != "int8":
            continue
        scale, values = np.array(tensor.raw.quantization.scale), floats[tensor.name]
        if scale.size > 1:
            axis = tensor.raw.quantization.quantizedDimension
            scale = scale.reshape([-1 if number == axis else 1 for number in range(values.ndim)])
        wrong = int((np.round(values / scale).clip(-127, 127) != constant_data(int8, tensor)).sum())
        if wrong:
            raise ModelError(f"{wrong} weights of {tensor.name} in int8 are not those in float32, rounded")
        compared += values.size
    return compared


def measure(entry: ModelEntry, content: bytes) -> tuple[float, float, int]:
    """Return accuracy, macro F1 and number of windows on the test streams, which the weights never saw."""
    description = load_description("mhealth")
    where = find_data(None, description)
    if where is None or entry.split is None:
        raise ModelError("no real recordings here: set HAR_EDGE_DATA")
    interpreter = Interpreter(content)
    files = FolderFiles(find_model(f"{KIND}-split").path.parent, entry.task.files)
    channels = {source.name: len(source.channels) for source in description.sources}
    classifier = Classifier(interpreter.run, interpreter.inputs, entry.task, channels=channels, files=files)
    recordings = read_recordings(description, where, entry.split.test)
    scores = score(predict_recordings(classifier, recordings, entry.task), entry.task.labels)
    return *scored(scores), scores.windows


if __name__ == "__main__":
    main()
