"""Cut a model into slices, prove that they give the same bits as the whole, and write them into a folder.

    python examples/split_and_verify.py [FOLDER]

FOLDER is what is copied to every device; each then runs `har-edge stage --config FOLDER --index N`.
"""

import sys
import tempfile

import har_edge

folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="slices-")
model = har_edge.load_model("int8")
for cut in model.cuts:
    print(f"before operator {cut.index:2} ({cut.after}): {cut.bytes} bytes cross")
narrow = min(model.cuts, key=lambda cut: cut.bytes)
model.verify([narrow.index])
pipeline = har_edge.split(model, folder, cuts=[narrow.index])
for entry in pipeline.manifest.slices:
    print(f"{entry.file}: operators [{entry.start}, {entry.stop}), sha256 {entry.sha256[:12]}")
print(f"equal to the whole model, bit for bit; written to {folder}")
