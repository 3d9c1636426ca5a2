"""What holds on which runtime, for which kind of model: the tables of docs/reference/runtimes.md.

    python bench/runtimes.py                       # x86-64: builds an environment for each runtime below --cache
    python bench/runtimes.py --root arm64=DIR --root armhf=DIR   # also emulated devices (bench/emulate.py makes them)

Each model runs whole and in every single cut (some, on emulated devices) in a process of its own, with XNNPACK and
without, three times with one window and once with three. Needs TensorFlow (extra `training`), to make the models, and
for tflite-runtime a python3.11 in the PATH where this Python is newer. Writes the tables between markers, and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import emulate
import numpy as np

from har_edge.errors import HarEdgeError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.tensor_observation import open_model
from har_edge.resources import find_folder
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.folder import make_manifest
from har_edge.tflite.slices import slice_model, write_slice

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "runtimes.md"
PROBE = Path(__file__).with_name("runtime_probe.py")
DELEGATES = ("xnnpack", "none")
RUNS, BATCH, SEED = 3, 3, 0
FEW_CUTS = 6  # on emulated devices, where a run takes seconds
TIMEOUT_S = 900.0
HEAD = ("runtime", "machine", "delegate", "loads", "slices = whole", "3 windows", "whole = reference")


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime as PyPI has it, and the newest Python that its wheels are for."""

    name: str
    requirements: tuple[str, ...]
    newest: tuple[int, int] = (3, 14)


RUNTIMES = (
    Runtime("LiteRT 2.3.0", ("ai-edge-litert==2.3.0",)),
    Runtime("LiteRT 2.4 nightly", ("ai-edge-litert-nightly==2.4.0.dev20261026",)),
    Runtime("tflite-runtime 2.14.0", ("tflite-runtime==2.14.0", "numpy<2"), (3, 11)),
    Runtime("tflite-micro", ("tflite-micro==0.dev20261023182759",)),
)
# What is in the roots of emulated devices: what pip chose there.
IN_ROOT = {"arm64": ("LiteRT 2.3.0", "aarch64"), "armhf": ("tflite-runtime 2.14.0", "armv7l")}


@dataclass(frozen=True, slots=True)
class RuntimePlatform:
    """A runtime on a machine, and how to run a script there."""

    runtime: str
    machine: str
    python: str
    root: Path | None = None
    arch: str = ""


def make_models(folder: Path) -> dict[str, Path]:
    """Write one small network in four kinds of numbers; return the files by kind."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    layers = tf.keras.layers
    network = tf.keras.Sequential(
        [
            layers.Input((64, 6)),
            layers.Conv1D(24, 5, padding="same", activation="relu"),
            layers.SeparableConv1D(32, 5, padding="same", activation="relu"),
            layers.MaxPooling1D(2),
            layers.Conv1D(32, 3, padding="same", activation="tanh"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(96, activation="relu"),
            layers.Dense(48, activation="sigmoid"),
            layers.Dense(6, activation="softmax"),
        ]
    )
    rng = np.random.default_rng(SEED)
    found: dict[str, Path] = {}
    for kind in ("float32", "dynamic range", "fp16 weights", "full int8"):
        converter = tf.lite.TFLiteConverter.from_keras_model(network)
        if kind != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "fp16 weights":
            converter.target_spec.supported_types = [tf.float16]
        if kind == "full int8":
            converter.representative_dataset = lambda: (
                [rng.standard_normal((1, 64, 6)).astype(np.float32)] for _ in range(32)
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        found[kind] = folder / f"{kind.replace(' ', '-')}.tflite"
        found[kind].write_bytes(converter.convert())
    return found


def write_plan(path: Path, folder: Path, few: int | None) -> None:
    """Cut a model in every legal place (`few` of them, evenly), and write what bench/runtime_probe.py needs."""
    folder.mkdir(parents=True, exist_ok=True)
    model = open_model(path)
    legal = [cut.index for cut in list_cuts(model) if cut.refusal is None]
    if few is not None and len(legal) > few:
        legal = [legal[round(n * (len(legal) - 1) / (few - 1))] for n in range(few)]
    plan: dict[str, Any] = {"runs": RUNS, "cuts": {}, "outputs": {}}
    plan["inputs"] = [model.main.tensors[index].name for index in model.main.inputs]
    plan["results"] = [model.main.tensors[index].name for index in model.main.outputs]
    plan["outputs"]["whole.tflite"] = len(plan["results"])
    (folder / "whole.tflite").write_bytes(path.read_bytes())
    for cut in legal:
        pieces, entries = slice_model(model, [cut]), []
        for number, (piece, entry) in enumerate(zip(pieces, make_manifest(model, pieces).slices, strict=True)):
            file = folder / f"{cut}-{number}.tflite"
            file.write_bytes(bytes(write_slice(model, piece)))
            names = [spec.name for spec in entry.inputs], [spec.name for spec in entry.outputs]
            entries.append({"file": file.name, "inputs": names[0], "outputs": names[1]})
            plan["outputs"][file.name] = len(names[1])
        plan["cuts"][cut] = entries
    ports, rng = Interpreter(path).inputs, np.random.default_rng(SEED)
    plan["batch"] = all(port.shape[:1] == (-1,) for port in ports)
    arrays = {}
    for run in range(RUNS):
        arrays |= {f"one-{run}-{n}": value for n, value in enumerate(sample(ports, rng).values())}
    if plan["batch"]:
        arrays |= {f"batch-{n}": value for n, value in enumerate(sample(ports, rng, batch=BATCH).values())}
    np.savez(folder / "inputs.npz", **arrays)
    (folder / "plan.json").write_text(json.dumps(plan))


def make_environment(runtime: Runtime, cache: Path) -> str | None:
    """Return the Python of an environment with this runtime, built below `cache` once; None without a base for it."""
    version = f"python{runtime.newest[0]}.{runtime.newest[1]}"
    base = sys.executable if sys.version_info[:2] <= runtime.newest else shutil.which(version)
    if base is None:
        return None
    folder = cache / "environments" / runtime.requirements[0].replace("==", "-")
    python, ready = folder / "bin/python", folder / "ready"
    if not ready.exists():
        subprocess.run([base, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *runtime.requirements], check=True)
        ready.touch()
    return str(python)


def measure(place: RuntimePlatform, folder: Path, delegate: str, out: Path) -> dict[str, Any]:
    """Run the probe, with one window and with several, each in a process of its own: a runtime may end it."""
    found = run_probe(place, folder, delegate, out, "one")
    if found.get("ended"):
        return {"loads": False, "error": found["ended"]}
    if found["loads"] and found["batched"]:
        batch = run_probe(place, folder, delegate, out, "batch")
        found["batch"] = {"error": batch["ended"], "ended": True} if "ended" in batch else batch
    return found


def run_probe(place: RuntimePlatform, folder: Path, delegate: str, out: Path, mode: str) -> dict[str, Any]:
    """Return what the probe says; how it ended, where it did not end well."""
    if place.root is None:
        command = [place.python, str(PROBE), str(folder), delegate, str(out), mode]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    else:
        inside = place.root / "probe"
        shutil.rmtree(inside, ignore_errors=True)
        shutil.copytree(folder, inside)
        shutil.copy(PROBE, inside / PROBE.name)
        command = [place.python, f"/probe/{PROBE.name}", "/probe", delegate, "/probe/out.npz", mode]
        done = emulate.run(place.root, place.arch, command, timeout_s=TIMEOUT_S)
        if mode == "one" and (inside / "out.npz").exists():
            shutil.copy(inside / "out.npz", out)
    if done.returncode != 0:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        said = (done.stderr.strip().splitlines() or [""])[-1]
        return {"ended": f"the process ended with {ended}: {said[:160]}"}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(out: Path, reference: Path) -> str:
    """Say how far the outputs of the whole model are from those of the reference."""
    if not out.exists() or not reference.exists():
        return "-"
    with np.load(out) as ours, np.load(reference) as theirs:
        if all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs.files):
            return "equal"
        gap = max(float(np.max(np.abs(ours[key].astype(float) - theirs[key].astype(float)))) for key in theirs.files)
        return f"differs by {gap:.1e}" if theirs[theirs.files[0]].dtype.kind == "f" else f"differs by {gap:.0f} steps"


def in_words(counted: Mapping[str, Any] | None) -> str:
    """Say how many cuts gave the bits of the whole."""
    if counted is None:
        return "fixed size"
    if "error" in counted:
        return "**crashes**" if counted.get("ended") else "no"
    if counted["failed"] and not counted["unequal"]:
        return "some do not run"
    equal = counted["cuts"] - len(counted["unequal"])
    return f"all {counted['cuts']}" if equal == counted["cuts"] else f"**{equal} of {counted['cuts']}**"


def make_row(place: RuntimePlatform, delegate: str, found: Mapping[str, Any], reference: str) -> tuple[str, ...]:
    """Return one row of a table, as HEAD names its columns."""
    if not found["loads"]:
        return (place.runtime, place.machine, delegate, "no", "-", "-", "-")
    used = delegate if delegate == "none" or found["delegated"] else "xnnpack, not applied"
    return (
        place.runtime,
        place.machine,
        used,
        "yes",
        in_words(found["single"]),
        in_words(found.get("batch")),
        reference,
    )


def problem_of(found: Mapping[str, Any]) -> str:
    """Return what the runtime said where something did not work."""
    batch, single = found.get("batch", {}), found.get("single", {})
    return str(found.get("error") or single.get("failed") or batch.get("error") or batch.get("failed") or "")


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table in Markdown."""
    return [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}", *(f"| {' | '.join(row)} |" for row in rows)]


def replace_between(page: str, name: str, lines: Sequence[str]) -> str:
    """Return the page with these lines between its markers of this name; ValueError where it has none."""
    before, opening, rest = page.partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- end of {name} -->\n")
    if not opening or not closing:
        raise ValueError(f"{PAGE} has no markers of {name!r}")
    return before + opening + "\n" + "\n".join(lines) + "\n\n" + closing + after


def find_places(args: argparse.Namespace) -> list[RuntimePlatform]:
    """Return where to run, with the reference first."""
    places = []
    for runtime in RUNTIMES:
        python = make_environment(runtime, args.cache)
        if python is None:
            print(f"left out: {runtime.name} (its newest Python is {runtime.newest}, and none is in the PATH)")
        else:
            places.append(RuntimePlatform(runtime.name, os.uname().machine, python))
    for text in args.root:
        arch, _, folder = text.partition("=")
        name, machine = IN_ROOT[arch]
        places.append(RuntimePlatform(name, machine, args.python_in_root, Path(folder), arch))
    return places


def main() -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "build/runtimes", metavar="DIR")
    parser.add_argument("--root", action="append", default=[], metavar="ARCH=DIR", help="an emulated device; see above")
    parser.add_argument("--python-in-root", default="/w/v/bin/python", metavar="PATH")
    parser.add_argument("--model", action="append", default=[], metavar="KIND=FILE", help="another model")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    shipped = find_folder("models")
    models = make_models(args.cache)
    models["float32, shipped (har-decimate-q8-zlib-restore)"] = shipped / "har-decimate-q8-zlib-restore.tflite"
    models["full int8, shipped (har-bottleneck)"] = shipped / "har-bottleneck.tflite"
    models |= {kind: Path(file) for kind, _, file in (text.partition("=") for text in args.model)}
    places, lines = find_places(args), list[str]()
    for number, (kind, path) in enumerate(models.items()):
        plans = {emulated: args.cache / "plans" / f"{number}{'-few' * emulated}" for emulated in (False, True)}
        for emulated in {place.root is not None for place in places}:
            try:
                write_plan(path, plans[emulated], FEW_CUTS if emulated else None)
            except HarEdgeError as error:
                raise SystemExit(f"{path}: {error}") from None
        rows = []
        for index, place in enumerate(places):
            for delegate in DELEGATES if place.runtime != "tflite-micro" else ("none",):
                out = args.cache / f"out-{number}-{index}-{delegate}.npz"
                out.unlink(missing_ok=True)
                found = measure(place, plans[place.root is not None], delegate, out)
                rows.append(make_row(place, delegate, found, compare(out, args.cache / f"out-{number}-0-xnnpack.npz")))
                print(*rows[-1], problem_of(found), sep=" | ", flush=True)
        lines += ["", f"**{kind}**", "", *table(rows)]
    page = replace_between(args.page.read_text(encoding="utf-8"), "runtimes", lines[1:])
    args.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
