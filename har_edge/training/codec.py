"""Reducers that are learned: fitted to training windows of one source alone, without a look at any label."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.pca import Basis
from har_edge.codecs.reducer import Reducer
from har_edge.codecs.spec import MethodSpec, parse_spec
from har_edge.config.task import SourceInput
from har_edge.data.recording import Samples
from har_edge.errors import ConfigError
from har_edge.inference.codecs import TfliteCodec
from har_edge.training.autoencoder import AutoencoderRecipe, fit_autoencoders

# Levels of a code to each side of zero, and the share of training coordinates that keep to them.
PCA_LEVELS = 127
PCA_SHARE = 0.9995
# Randomised range finding: directions beyond those asked for, and rounds that sharpen them.
OVERSAMPLING, ROUNDS = 10, 8


@dataclass(frozen=True, slots=True)
class FittedReducer:
    """A specification that names its files, and the files."""

    spec: str
    files: Mapping[str, bytes]

    def open(self, length: int, channels: int) -> Reducer:
        """Return the reducer, for windows [length, channels]."""
        return make_reducer(self.spec, length, channels, MadeFiles(self.files))

    def enters(self, tensor: str) -> SourceInput:
        """Return what a task says of it."""
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}
        return SourceInput(tensor, self.spec, hashes)


class MadeFiles:
    """Opens files that were just made here, and so need no check."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def arrays(self, name: str) -> Mapping[str, Any]:
        """Return the arrays of an .npz."""
        with np.load(io.BytesIO(self._files[name]), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    def model(self, name: str) -> TfliteCodec:
        """Return a .tflite ready to run."""
        return TfliteCodec(self._files[name], name)


def fit_reducers(
    spec: str, windows: Mapping[str, Samples], recipe: AutoencoderRecipe, stem: str
) -> dict[str, FittedReducer]:
    """Fit what is a recipe in a specification to the windows [n, L, C] of each source; files are named `stem`-source.

    A recipe behind other methods, as in `paa:5+pca:8`, is fitted to their codes. Raises ConfigError for a recipe that
    cannot be fitted so.
    """
    parts = parse_spec(spec)
    done = {source: FittedReducer("", {}) for source in windows}
    for number, part in enumerate(parts):
        if not part.is_recipe:
            made = {source: FittedReducer(str(part), {}) for source in windows}
        else:
            given = {source: _reduce(done[source], values) for source, values in windows.items()}
            place = f"{stem}-{number}" if number else stem
            made = _fit(spec, part, given, recipe, place)
        for source, piece in made.items():
            before = done[source]
            done[source] = FittedReducer(
                f"{before.spec}+{piece.spec}" if before.spec else piece.spec, {**before.files, **piece.files}
            )
    return done


def _reduce(before: FittedReducer, windows: Samples) -> Samples:
    if not before.spec:
        return windows
    reducer = before.open(*windows.shape[1:])
    return np.stack([reducer.features(reducer.encode(window)) for window in windows])


def _fit(
    spec: str, part: MethodSpec, given: Mapping[str, Samples], recipe: AutoencoderRecipe, stem: str
) -> dict[str, FittedReducer]:
    fit = FITTERS.get(part.method)
    shapes = {values.shape[1:] for values in given.values()}
    if fit is None or len(part.options) != 1 or any(len(shape) != 2 for shape in shapes):
        raise ConfigError(
            f"reducer {spec!r}: {part} cannot be fitted here; expected {', '.join(f'{name}:K' for name in FITTERS)} "
            "on windows or on codes that have a time axis, or bottleneck:K as the first method"
        )
    size = int(part.options[0])
    for source, values in given.items():
        most = min(len(values), int(np.prod(values.shape[1:])))
        if not 1 <= size <= most:
            raise ConfigError(
                f"reducer {spec!r}: {part} asks for {size} values; expected 1 to {most} from {len(values)} training "
                f"windows {list(values.shape[1:])} of source {source}"
            )
    return fit(size, given, recipe, stem)


def _fit_pca(size: int, given: Mapping[str, Samples], recipe: AutoencoderRecipe, stem: str) -> dict[str, FittedReducer]:
    made = {}
    for source, windows in given.items():
        name = f"{stem}-{source}.npz"
        made[source] = FittedReducer(f"pca:{name}", {name: write_basis(fit_basis(windows, size, recipe.seed))})
    return made


def fit_basis(windows: Samples, size: int, seed: int) -> Basis:
    """Fit principal components to windows [n, L, C], of which each channel is divided by its standard deviation.

    Randomised subspace iteration: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53(2),
    2011, algorithm 4.4; with so many rounds it gives what a full decomposition gives, in a fraction of the time.
    """
    mean = windows.mean(0, dtype=np.float64)
    spread = windows.std((0, 1), dtype=np.float64)
    spread = np.where(spread > 0, spread, 1.0)
    rows = ((windows - mean) / spread).reshape(len(windows), -1)
    # A step of the way back to the window's shape stands in `components` [K, L, C].
    width = min(size + OVERSAMPLING, *rows.shape)
    basis = np.linalg.qr(rows.T @ np.random.default_rng(seed).standard_normal((len(rows), width)))[0]
    for _ in range(ROUNDS):
        basis = np.linalg.qr(rows.T @ (rows @ basis))[0]
    _, _, turned = np.linalg.svd(rows @ basis, full_matrices=False)
    components = (basis @ turned.T[:, :size]).T
    largest = np.abs(components).argmax(1)
    components *= np.sign(components[np.arange(size), largest])[:, None]  # a direction and its opposite are one
    reach = np.quantile(np.abs(rows @ components.T), PCA_SHARE, axis=0)
    scale = np.where(reach > 0, reach, 1.0) / PCA_LEVELS
    shaped = components.reshape(size, *windows.shape[1:])
    return Basis(*(values.astype(np.float32) for values in (mean, spread, shaped, scale)))


def write_basis(basis: Basis) -> bytes:
    """Return the .npz of a basis; the same basis gives the same bytes."""
    file = io.BytesIO()
    np.savez(file, mean=basis.mean, spread=basis.spread, components=basis.components, scale=basis.scale)
    return file.getvalue()


def _fit_networks(
    method: str, size: int, given: Mapping[str, Samples], recipe: AutoencoderRecipe, stem: str
) -> dict[str, FittedReducer]:
    made = {}
    for source, pair in fit_autoencoders(method, size, given, recipe).items():
        names = f"{stem}-{source}-encoder.tflite", f"{stem}-{source}-decoder.tflite"
        made[source] = FittedReducer(":".join((method, *names)), dict(zip(names, pair, strict=True)))
    return made


_Fitter = Callable[[int, Mapping[str, Samples], AutoencoderRecipe, str], dict[str, FittedReducer]]
FITTERS: dict[str, _Fitter] = {
    "pca": _fit_pca,
    "ae": lambda *given: _fit_networks("ae", *given),
    "cae": lambda *given: _fit_networks("cae", *given),
}


def encode_windows(reducers: Mapping[str, Reducer], samples: Mapping[str, Samples]) -> dict[str, Samples]:
    """Return the features [n, ...] that a classifier on codes sees, one window after the other, by source."""
    return {
        source: np.stack([reducer.features(reducer.encode(window)) for window in samples[source]])
        for source, reducer in reducers.items()
    }
