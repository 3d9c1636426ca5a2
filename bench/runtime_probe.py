"""Run one model, whole and in slices, on the runtime of this interpreter; bench/runtimes.py starts it.

    python runtime_probe.py FOLDER DELEGATE OUT.npz one|batch

Needs NumPy and a runtime alone (ai_edge_litert, tflite_runtime or tflite_micro), so that it runs in any environment
that has one. FOLDER holds what bench/runtimes.py wrote: plan.json, inputs.npz and the .tflite files. Prints one JSON
object; what the whole model gave for one window at a time goes to OUT.npz.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


class LiteRt:
    """A model on ai_edge_litert or tflite_runtime: tensors in the order of the model."""

    def __init__(self, path: Path, delegate: str) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError:
            from tflite_runtime.interpreter import Interpreter, OpResolverType
        kinds = {"xnnpack": OpResolverType.AUTO, "none": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
        self._model = Interpreter(
            model_content=path.read_bytes(), num_threads=1, experimental_op_resolver_type=kinds[delegate]
        )
        self._model.allocate_tensors()

    def run(self, values: list[Any]) -> list[Any]:
        ports = self._model.get_input_details()
        if any(tuple(port["shape"]) != value.shape for port, value in zip(ports, values, strict=True)):
            for port, value in zip(ports, values, strict=True):
                self._model.resize_tensor_input(port["index"], value.shape)
            self._model.allocate_tensors()
        for port, value in zip(ports, values, strict=True):
            self._model.set_tensor(port["index"], value)
        self._model.invoke()
        return [self._model.get_tensor(port["index"]) for port in self._model.get_output_details()]

    @property
    def delegated(self) -> bool:
        return any(one["op_name"] == "DELEGATE" for one in self._model._get_ops_details())


class Micro:
    """A model on tflite_micro, which has the reference kernels and fixed sizes."""

    delegated = False

    def __init__(self, path: Path, delegate: str) -> None:
        from tflite_micro.python.tflite_micro import runtime

        self._content, self._module = path.read_bytes(), runtime
        self._model = runtime.Interpreter.from_bytes(self._content, arena_size=64 * 1024 * 1024)
        self._outputs = json.loads((path.parent / "plan.json").read_text())["outputs"][path.name]

    def run(self, values: list[Any]) -> list[Any]:
        for number, value in enumerate(values):
            self._model.set_input(value, number)
        self._model.invoke()
        return [np.array(self._model.get_output(number)) for number in range(self._outputs)]


def open_model(path: Path, delegate: str) -> LiteRt | Micro:
    """Return a model on whatever runtime is here."""
    import importlib.util

    return Micro(path, delegate) if importlib.util.find_spec("tflite_micro") else LiteRt(path, delegate)


def line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def run_cut(folder: Path, plan: dict[str, Any], cut: int, delegate: str, values: list[Any]) -> list[Any]:
    """Run the slices of one cut one after the other; tensors go from one to the other by name."""
    known = dict(zip(plan["inputs"], values, strict=True))
    for piece in plan["cuts"][str(cut)]:
        results = open_model(folder / piece["file"], delegate).run([known[name] for name in piece["inputs"]])
        known.update(zip(piece["outputs"], results, strict=True))
    return [known[name] for name in plan["results"]]


def same(left: list[Any], right: list[Any]) -> bool:
    return all(one.shape == two.shape and one.tobytes() == two.tobytes() for one, two in zip(left, right, strict=True))


def count_unequal(
    folder: Path, plan: dict[str, Any], delegate: str, runs: list[list[Any]], wanted: Any
) -> dict[str, Any]:
    """Return how many cuts do not give the bits of the whole in any run, and the first that does not run at all."""
    unequal, failed = [], ""
    for cut in map(int, plan["cuts"]):
        try:
            got = [run_cut(folder, plan, cut, delegate, values) for values in runs]
        except Exception as error:
            failed = failed or f"cut {cut}: {line(error)}"
            continue
        if not all(same(one, two) for one, two in zip(got, wanted, strict=True)):
            unequal.append(cut)
    return {"cuts": len(plan["cuts"]), "unequal": unequal, "failed": failed}


def probe(folder: Path, delegate: str, out: Path) -> dict[str, Any]:
    """Return what holds for one model on this runtime, with one window at a time."""
    plan = json.loads((folder / "plan.json").read_text())
    with np.load(folder / "inputs.npz") as archive:
        runs = [[archive[f"one-{run}-{n}"] for n in range(len(plan["inputs"]))] for run in range(plan["runs"])]
    try:
        whole = open_model(folder / "whole.tflite", delegate)
        wanted = [whole.run(values) for values in runs]
    except Exception as error:
        return {"loads": False, "error": line(error)}
    np.savez(out, **{f"{run}-{n}": value for run, values in enumerate(wanted) for n, value in enumerate(values)})
    return {
        "loads": True,
        "delegated": whole.delegated,
        "single": count_unequal(folder, plan, delegate, runs, wanted),
        "batched": plan["batch"],
    }


def probe_batch(folder: Path, delegate: str) -> dict[str, Any]:
    """Return what holds with several windows at once."""
    plan = json.loads((folder / "plan.json").read_text())
    with np.load(folder / "inputs.npz") as archive:
        values = [archive[f"batch-{n}"] for n in range(len(plan["inputs"]))]
    try:
        together = open_model(folder / "whole.tflite", delegate).run(values)
    except Exception as error:
        return {"error": line(error)}
    if any(one.shape[:1] != values[0].shape[:1] for one in together):
        return {"error": "the output does not follow the batch"}
    return count_unequal(folder, plan, delegate, [values], [together])


def main() -> None:
    """Probe, and print what came of it."""
    folder, delegate, out, mode = sys.argv[1:]
    found = probe(Path(folder), delegate, Path(out)) if mode == "one" else probe_batch(Path(folder), delegate)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
