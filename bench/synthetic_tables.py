"""Derive har_edge/data/mhealth_synthetic.json from the real recordings.

    python bench/synthetic_tables.py --data data

For each subject and activity and every channel: the mean (posture), the cadence and the Fourier coefficients of its
first harmonics (amplitude, and phase between channels), and strength and memory of what is left (AR(1) noise).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from har_edge.data.description import load_description
from har_edge.data.files import read_recordings
from har_edge.data.locate import find_data
from har_edge.errors import DataError

TARGET = Path(__file__).parents[1] / "har_edge/data/mhealth_synthetic.json"
HARMONICS = 5
PIECE_S = 8.0
CADENCES_HZ = np.geomspace(0.2, 3.2, 240)
ACCELERATIONS = ((0, 1, 2), (5, 6, 7), (14, 15, 16))
RHYTHM_AT_LEAST = 0.25  # share of the variance that harmonics must explain
NEARLY = 0.9
ATTRIBUTION = (
    "Statistics of the mHealth dataset: Banos, Garcia, Holgado-Terriza, Damas, Pomares, Rojas, Saez, Villalonga, "
    "'mHealthDroid: a novel framework for agile development of mobile health applications', IWAAL 2014; "
    "UCI Machine Learning Repository 319, https://doi.org/10.24432/C5TW22, CC BY 4.0. "
    "Derived by bench/synthetic_tables.py."
)
Array = npt.NDArray[np.float64]


def basis(cadence_hz: float, count: int, rate_hz: float) -> npt.NDArray[np.complex128]:
    """Return e^(-i k w t) for each harmonic k from 1, complex [harmonics, count]."""
    turns = cadence_hz * np.arange(count) / rate_hz
    waves: npt.NDArray[np.complex128] = np.exp(-2j * np.pi * np.arange(1, HARMONICS + 1)[:, None] * turns)
    return waves


def fit(piece: Array, cadence_hz: float, rate_hz: float) -> tuple[npt.NDArray[np.complex128], Array]:
    """Fit the harmonics by least squares; return coefficients [harmonics, channels] and what is left."""
    waves = basis(cadence_hz, len(piece), rate_hz)
    design = np.concatenate([waves.real, -waves.imag]).T
    design = np.column_stack([np.ones(len(piece)), design])
    solution = np.linalg.lstsq(design, piece, rcond=None)[0]
    # sum_k Re(c_k) cos(k w t) - Im(c_k) sin(k w t) = Re(c_k e^(i k w t)); -imag of e^(-ix) is +sin, hence the minus.
    return solution[1 : HARMONICS + 1] - 1j * solution[HARMONICS + 1 :], piece - design @ solution


def explained(piece: Array, cadence_hz: float, rate_hz: float) -> float:
    """Return the share of a standardised piece's variance that the harmonics of a cadence explain."""
    return 1 - float(fit(piece, cadence_hz, rate_hz)[1].var(axis=0).sum() / max(piece.var(axis=0).sum(), 1e-9))


def describe(rows: Array, rate_hz: float) -> dict[str, object]:
    """Return the statistics of one activity of one subject, float64 [n, channels]."""
    size = int(PIECE_S * rate_hz)
    pieces = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
    deviation = rows.std(axis=0)
    cadence, jitter = 0.0, 0.0
    coefficients = np.zeros((HARMONICS, rows.shape[1]), np.complex128)
    left = [piece - piece.mean(axis=0) for piece in pieces]
    scores = max((rhythm(pieces, source, rate_hz) for source in ACCELERATIONS), key=lambda score: score.mean(0).max())
    if scores.mean(axis=0).max() >= RHYTHM_AT_LEAST:
        # A half or a third of the cadence has all its harmonics and more: take the fastest that does nearly as well.
        good = scores.mean(axis=0) >= NEARLY * scores.mean(axis=0).max()
        peak = int(np.flatnonzero(good)[-1])
        while scores.mean(axis=0)[peak - 1] > scores.mean(axis=0)[peak]:
            peak -= 1
        cadence = float(CADENCES_HZ[peak])
        near = np.abs(np.log(CADENCES_HZ / cadence)) < np.log(1.25)
        each = CADENCES_HZ[near][scores[:, near].argmax(axis=1)]
        cadence, jitter = float(np.median(each)), float(min(0.1, each.std() / np.median(each)))
        fits = [fit(piece, hertz, rate_hz) for piece, hertz in zip(pieces, each, strict=True)]
        left = [remainder for _, remainder in fits]
        coefficients = align([found / np.maximum(deviation, 1e-9) for found, _ in fits]) * deviation
    coefficients[np.abs(coefficients) < 0.03 * deviation] = 0
    noise = np.sqrt(np.maximum(rows.var(axis=0) - (np.abs(coefficients) ** 2).sum(axis=0) / 2, 0))
    lag = sum((piece[1:] * piece[:-1]).sum(axis=0) for piece in left)
    power = sum((piece**2).sum(axis=0) for piece in left)
    memory = np.clip(np.where(power > 0, lag / np.maximum(power, 1e-12), 0), 0, 0.999)
    return {
        "cadence_hz": short(cadence),
        "jitter": short(jitter),
        "mean": [short(value) for value in rows.mean(axis=0)],
        "cosine": [[short(value) for value in row] for row in coefficients.real],
        "sine": [[short(value) for value in row] for row in -coefficients.imag],
        "noise": [short(value) for value in noise],
        "memory": [short(value) for value in memory],
    }


def rhythm(pieces: list[Array], columns: tuple[int, ...], rate_hz: float) -> Array:
    """Return how well each cadence explains the moving columns of each piece, [pieces, cadences]."""
    moving = [column for column in columns if np.mean([piece[:, column].std() for piece in pieces]) > 0.5]
    if not moving:
        return np.zeros((len(pieces), len(CADENCES_HZ)))
    scaled = [piece[:, moving] / np.maximum(piece[:, moving].std(axis=0), 0.1) for piece in pieces]
    return np.array([[explained(piece, hertz, rate_hz) for hertz in CADENCES_HZ] for piece in scaled])


def align(found: list[npt.NDArray[np.complex128]]) -> npt.NDArray[np.complex128]:
    """Shift each piece in time to agree best with the mean of all, and return that mean; a few rounds settle it."""
    powers = np.exp(1j * np.arange(1, HARMONICS + 1)[:, None] * np.linspace(0, 2 * np.pi, 128, endpoint=False))
    mean = found[int(np.argmax([np.abs(piece).sum() for piece in found]))]
    for _ in range(5):
        shifted = []
        for piece in found:
            agreement = np.real(np.einsum("hc,hc,hs->s", piece, mean.conj(), powers))
            shifted.append(piece * powers[:, agreement.argmax()][:, None])
        mean = np.mean(shifted, axis=0)
    # Shifts that do not agree shrink the mean; give it back the strength of a single piece.
    strength = np.sqrt(np.mean([np.abs(piece) ** 2 for piece in found], axis=0))
    return mean * np.where(np.abs(mean) > 0.3 * strength, strength / np.maximum(np.abs(mean), 1e-12), 1)


def short(value: float) -> float:
    """Round to three significant digits, so that the file stays small; 0 where it is next to nothing."""
    rounded = float(f"{value:.3g}")
    return 0 if abs(rounded) < 1e-3 else int(rounded) if rounded.is_integer() else rounded


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=TARGET)
    args = parser.parse_args()
    description = load_description("mhealth")
    where = find_data(args.data)
    if where is None:
        raise DataError("no recordings: give --data")
    profiles = []
    for recording in read_recordings(description, where):
        rows = np.concatenate(list(recording.samples.values()), axis=1).astype(np.float64)
        exact = [int(column) for column in np.flatnonzero((rows != np.trunc(rows)).any(axis=0))]
        activities = {
            str(label): describe(rows[recording.labels == label], recording.rate_hz)
            for label in range(1, len(description.labels))
        }
        profiles.append({"stream": recording.stream, "exact": exact, "activities": activities})
    text = json.dumps({"attribution": ATTRIBUTION, "profiles": profiles}, separators=(",", ":"))
    args.out.write_text(text.replace('{"stream"', '\n{"stream"').replace('"attr', '\n"attr', 1) + "\n", "utf-8")
    print(f"{args.out}: {len(profiles)} profiles, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
