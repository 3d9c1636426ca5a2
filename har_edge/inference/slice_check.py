"""Compare the slices of a folder with the whole model, bit by bit, on the device that will run them.

Nothing is cut, so the module does not need the TFLite schema. It works with an interpreter alone, such as
tflite-runtime.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from har_edge.errors import MessageError, ModelError
from har_edge.files import MAX_MODEL_BYTES, read_regular
from har_edge.inference.interpreter import Array, Delegate, Interpreter, load_slice
from har_edge.inference.load_check import default_check
from har_edge.inference.sampling import sample
from har_edge.inference.shard_run import run_shards
from har_edge.tflite.manifest import SliceManifest, load_manifest

RUNS = 3
SEED = 0
_OTHER_BATCH = 3
# Floats of shards may differ from the whole's by this part of the largest value; integers and slices may not differ.
SHARD_ERROR = 1e-5
_TINY = 1e-30  # zeros are compared with this


@dataclass(frozen=True, slots=True)
class SliceCheck:
    """The result of a comparison: `difference` says what was not equal, None when every bit was.

    Floats that shards give count as equal up to SHARD_ERROR; `error` is the largest difference of them, as a part of
    the largest value. `delegate` says whether the runtime handed operators of the whole model to XNNPACK.
    """

    slices: int
    runs: int
    delegate: Delegate
    difference: str | None
    error: float = 0.0


def check_slices(
    path: Path, folder: Path, *, runs: int = RUNS, threads: int = 1, delegate: str | None = None
) -> SliceCheck:
    """Run the whole model and the slices of a folder on the same random inputs, and compare the outputs bit by bit.

    The same number of runs again has a batch of 3, if every crossing tensor carries a batch. Raises ModelError when the
    folder belongs to another model, when a slice has another hash, or when the runtime cannot run the whole model.
    """
    manifest, root = load_manifest(folder), folder if folder.is_dir() else folder.parent
    content, chosen = _read(path), Delegate(delegate or Delegate.XNNPACK)
    found = hashlib.sha256(content).hexdigest()
    if found != manifest.model_sha256:
        raise ModelError(
            f"{folder} holds slices of a model with sha256 {manifest.model_sha256}, but {path} has {found}; "
            "expected the model that was cut"
        )
    default_check()(content, f"model {path}", chosen.value)
    whole = Interpreter(content, threads=threads, delegate=chosen)
    rng, batches = np.random.default_rng(SEED), [1] * runs
    if all(_carries_batch(shape, spec.batched) for spec in manifest.tensors for shape in [spec.shape]):
        batches += [_OTHER_BATCH] * runs
    values = [sample(whole.inputs, rng, batch=batch) for batch in batches]
    try:
        wanted = [whole.run(one) for one in values]
    except MessageError as error:
        raise ModelError(
            f"{path}: the whole model cannot run random inputs, so nothing is compared: {error}"
        ) from error
    largest = 0.0
    if any(entry.steps for entry in manifest.slices):
        difference, largest = _compare_shards(manifest, root, values, wanted, threads, chosen)
    else:
        difference = _compare(manifest, root, values, wanted, threads, chosen)
    return SliceCheck(len(manifest.slices), len(batches), whole.delegate, difference, largest)


def _compare_shards(
    manifest: SliceManifest,
    root: Path,
    values: Sequence[dict[str, Array]],
    wanted: Sequence[dict[str, Array]],
    threads: int,
    delegate: Delegate,
) -> tuple[str | None, float]:
    """Return what is not equal, and the largest error of floats that count as equal."""
    hashes = {name: sha256 for entry in manifest.slices for name, sha256 in entry.files.items()}

    @cache
    def load(name: str) -> Interpreter:
        return load_slice(root / name, hashes[name], threads=threads, check=default_check(), delegate=delegate)

    error = 0.0
    for one, results in zip(values, wanted, strict=True):
        try:
            made = run_shards(manifest, load, one)
        except MessageError as failure:
            return f"shards: {failure}", error
        for name, value in results.items():
            got = made.get(name)
            if got is None:
                return f"output {name}: no shard gives it", error
            if got.shape != value.shape or got.dtype != value.dtype:
                return f"output {name}: {_describe(value, got)}", error
            gap = relative_error(value, got)
            if gap > (SHARD_ERROR if value.dtype.kind == "f" else 0):
                return f"output {name}: {_describe(value, got)}", error
            error = max(error, gap)
    return None, error


def relative_error(wanted: Array, got: Array) -> float:
    """Return the largest difference as a part of the largest value; 0 for equal bits, infinite for other NaNs."""
    if wanted.tobytes() == got.tobytes():
        return 0.0
    exact, other = wanted.astype(np.float64), got.astype(np.float64)
    gap = float(np.abs(exact - other).max() / max(_TINY, np.abs(exact).max()))
    return gap if np.isfinite(gap) else float("inf")


def _compare(
    manifest: SliceManifest,
    root: Path,
    values: Sequence[dict[str, Array]],
    wanted: Sequence[dict[str, Array]],
    threads: int,
    delegate: Delegate,
) -> str | None:
    known = [dict(one) for one in values]
    for number, entry in enumerate(manifest.slices):
        piece = load_slice(root / entry.file, entry.sha256, threads=threads, check=default_check(), delegate=delegate)
        try:
            for one in known:
                one.update(piece.run({spec.name: one[spec.name] for spec in entry.inputs}))
        except KeyError as error:
            return f"slice {number}: nothing gives {error}; the model and its slices name tensors in different ways"
        except MessageError as error:
            return f"slice {number}: {error}"
    for one, results in zip(known, wanted, strict=True):
        for name, value in results.items():
            got = one.get(name)
            if got is None:
                return f"output {name}: no slice gives it"
            if got.shape != value.shape or got.dtype != value.dtype or got.tobytes() != value.tobytes():
                return f"output {name}: {_describe(value, got)}"
    return None


def _carries_batch(shape: tuple[int, ...], batched: bool) -> bool:
    return batched and shape[:1] == (-1,)


def _describe(wanted: Array, got: Array) -> str:
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return f"{got.dtype} {list(got.shape)} instead of {wanted.dtype} {list(wanted.shape)}"
    gap = np.abs(wanted.astype(np.float64) - got.astype(np.float64))
    return f"{int(np.count_nonzero(wanted != got))} of {wanted.size} elements differ, by {np.nanmax(gap):.3g} at most"


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_MODEL_BYTES)
    except OSError as error:
        raise ModelError(f"cannot read model {path}: {error.strerror}; give the path of a .tflite file") from error
