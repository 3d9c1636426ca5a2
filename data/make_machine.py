"""Make the recordings that data/machine.toml describes: fans in four conditions, SYNTHETIC, from a seed.

    python data/make_machine.py                     six fans, two minutes in each condition, into data/machine
    python data/make_machine.py --seed 2 --seconds 20 --machines 3 --out DIR

A second data set for a program that was written for another one: another rate, other channels, other labels. The
signals follow textbook rotor dynamics (Randall, "Vibration-based Condition Monitoring", 2011, chapters 2 and 5):
imbalance turns with the shaft and grows with the square of its speed; a worn bearing is struck at a multiple of the
shaft's speed that is no whole number, more when the load zone is passed, and lets the mount ring; a blocked filter
makes the flow turbulent, slow and irregular, and unloads the motor. Fans differ in speed, residual imbalance, mount,
how sensors are stuck on, neighbours, surroundings and how bad a fault is, so that one fan's normal is another one's
fault. No figure measured on them says anything about real machines.
"""

from __future__ import annotations

import argparse
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
RATE_HZ = 100
FINE = 4  # simulated at so many times the rate, then filtered and thinned out
CONDITIONS = ("normal", "imbalance", "worn_bearing", "blocked_filter")
STANDING, STANDING_S = "standing", 4.0
VISITS = 2
HEADER = "time,motor_acc_x,motor_acc_y,motor_acc_z,motor_temp,bearing_acc_x,bearing_acc_y,bearing_acc_z,bearing_mic"
GRAVITY = 9.81


@dataclass(frozen=True, slots=True)
class Fan:
    """What tells one fan from another; amplitudes in m/s²."""

    speed_hz: float
    residual: float  # imbalance of a fan that counts as normal
    misaligned: float  # twice a turn, along the shaft
    mount_hz: float
    damping: float
    strikes: float  # of a worn bearing, a turn
    severity: float
    neighbour_hz: float
    neighbour: float
    noise: float
    turbulence: float  # along the shaft, of a free flow
    ambient_c: float
    level_db: float
    motor: Array  # [3, 3]: how the sensor is stuck on
    bearing: Array


def draw_fan(rng: np.random.Generator) -> Fan:
    """Draw a fan."""
    return Fan(
        speed_hz=rng.uniform(12.0, 17.0),
        residual=rng.uniform(0.3, 1.1),
        misaligned=rng.uniform(0.05, 0.4),
        mount_hz=rng.uniform(26.0, 40.0),
        damping=rng.uniform(0.04, 0.12),
        strikes=rng.uniform(2.4, 3.1),
        severity=rng.uniform(0.7, 1.4),
        neighbour_hz=rng.uniform(8.0, 24.0),
        neighbour=rng.uniform(0.0, 0.3),
        noise=rng.uniform(0.2, 0.4),
        turbulence=rng.uniform(0.1, 0.3),
        ambient_c=rng.uniform(16.0, 30.0),
        level_db=rng.uniform(-3.0, 3.0),
        motor=_turned(rng),
        bearing=_turned(rng),
    )


def _turned(rng: np.random.Generator) -> Array:
    """Return a rotation by up to about 30 degrees about an axis drawn by chance (Rodrigues' formula)."""
    axis = rng.standard_normal(3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = rng.uniform(-0.5, 0.5)
    turned: Array = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turned


def run_fan(fan: Fan, condition: str, seconds: float, rng: np.random.Generator) -> Array:
    """Return float64 [n, 8], in the order of HEADER without the time: one visit to a fan in one condition."""
    count, rate = round(seconds * RATE_HZ) * FINE, RATE_HZ * FINE
    severity = fan.severity * rng.uniform(0.6, 1.3)
    running = 0.0 if condition == STANDING else 1.0
    unbalanced = fan.residual + (1.0 * severity if condition == "imbalance" else 0.0)
    blocked = severity if condition == "blocked_filter" else 0.0
    speed = fan.speed_hz * rng.uniform(0.97, 1.03) * (1 + 0.015 * blocked) * (1 + 0.004 * _slow(count, rate, 2.0, rng))
    turns = np.cumsum(speed) / rate + rng.random()
    angle = 2 * np.pi * turns
    push = running * unbalanced * (speed / 15.0) ** 2
    radial = np.stack([push * np.cos(angle), 0.7 * push * np.sin(angle)])
    axial = running * (
        fan.misaligned * np.cos(2 * angle + 1.0) + (fan.turbulence + 0.35 * blocked) * _slow(count, rate, 0.08, rng)
    )
    ringing = _strike(fan, angle, severity, rate, rng) if condition == "worn_bearing" else np.zeros(count)
    neighbour = fan.neighbour * np.sin(2 * np.pi * fan.neighbour_hz * np.arange(count) / rate)
    at_bearing = np.stack([radial[0] + 0.6 * ringing, radial[1] + ringing, axial + 0.3 * ringing])
    at_motor = np.stack([0.8 * radial[0] + 0.15 * ringing, 0.6 * radial[1] + 0.2 * ringing, 0.6 * axial])
    columns = []
    for moved, turned in ((at_motor, fan.motor), (at_bearing, fan.bearing)):
        felt = moved + neighbour + fan.noise * (0.2 + 0.8 * running) * FINE**0.5 * rng.standard_normal(moved.shape)
        felt[2] += GRAVITY
        columns.append(_thin(turned @ felt))
    loudness = 10 ** (6.2 * running) * (1 + 0.2 * blocked * (1 + 0.5 * _slow(count, rate, 0.3, rng)) ** 2)
    sound = loudness * (1 + 0.2 * unbalanced) + 1.5e6 * _smooth(ringing**2, rate // 8) + 10**4.0
    level = 10 * np.log10(sound) + fan.level_db * running + 0.8 * _slow(count, rate, 0.2, rng)
    warm = fan.ambient_c + running * (22.0 - 2.0 * blocked + 1.0 * unbalanced) + 0.6 * _slow(count, rate, 20.0, rng)
    motor, bearing = columns
    return np.column_stack([motor, np.round(warm[::FINE], 1), bearing, level[::FINE]])


def _strike(fan: Fan, angle: Array, severity: float, rate: int, rng: np.random.Generator) -> Array:
    """Return how the mount rings when a worn bearing is struck, harder in the load zone."""
    passed = np.floor(fan.strikes * angle / (2 * np.pi) + 0.02 * rng.standard_normal())
    struck = np.flatnonzero(np.diff(passed, prepend=passed[0]) > 0)
    hits = np.zeros(len(angle))
    hits[struck] = (1 + 0.6 * np.cos(angle[struck])) * (1 + 0.3 * rng.standard_normal(len(struck)))
    own = 2 * np.pi * fan.mount_hz
    after = np.arange(rate // 2) / rate
    answer = np.exp(-fan.damping * own * after) * np.sin(own * after)
    return 0.7 * severity * np.convolve(hits, answer)[: len(angle)]


def _slow(count: int, rate: int, memory_s: float, rng: np.random.Generator) -> Array:
    """Return noise of unit variance that forgets in about `memory_s` seconds, [count]."""
    step = max(1, round(memory_s * rate / 4))
    knots = rng.standard_normal(count // step + 8)
    smooth = np.convolve(knots, [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25], "valid") / 1.66
    slow: Array = np.interp(np.arange(count) / step, np.arange(len(smooth)), smooth)
    return slow


def _smooth(values: Array, length: int) -> Array:
    return np.convolve(values, np.full(length, 1 / length))[: len(values)]


def _thin(values: Array) -> Array:
    """Return [n, rows]: low-pass filtered (windowed sinc at 0.45 of the rate), and every FINE-th kept."""
    taps = np.sinc(np.arange(-32, 33) * 0.9 / FINE) * np.hamming(65)
    padded = np.pad(values, ((0, 0), (32, 32)), "edge")
    filtered = [np.convolve(row, taps / taps.sum(), "valid")[::FINE] for row in padded]
    return np.column_stack(filtered)


def record(name: str, seed: int, seconds: float) -> tuple[Array, list[str]]:
    """Return float64 [n, 8] and the condition of each row: every condition VISITS times, standing still between."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    fan = draw_fan(rng)
    parts, conditions = [], []
    for _ in range(VISITS):
        for condition in rng.permutation(CONDITIONS).tolist():
            for what, lasting in ((STANDING, STANDING_S), (condition, seconds / VISITS)):
                parts.append(run_fan(fan, what, lasting, rng))
                conditions += [what] * len(parts[-1])
    return np.concatenate(parts), conditions


def write(folder: Path, machines: int, seed: int, seconds: float) -> list[Path]:
    """Write a file for each machine; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(1, machines + 1):
        values, conditions = record(f"fan{number}", seed, seconds)
        lines = [f"{HEADER},condition"]
        for row, (numbers, condition) in enumerate(zip(values.tolist(), conditions, strict=True)):
            lines.append(",".join([f"{row / RATE_HZ:.2f}", *(f"{value:.3f}" for value in numbers), condition]))
        paths.append(folder / f"fan{number}.csv")
        paths[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def main() -> None:
    """Make the recordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/machine"), metavar="DIR", help="default: data/machine")
    parser.add_argument("--machines", type=int, default=6, metavar="N", help="default: 6")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="in each condition (default: 120)")
    args = parser.parse_args()
    if args.machines < 1 or not args.seconds >= 1:
        parser.error("--machines and --seconds must be at least 1")
    paths = write(args.out, args.machines, args.seed, args.seconds)
    print(f"{args.out}: {len(paths)} SYNTHETIC recordings of fans (seed {args.seed}); described by data/machine.toml")


if __name__ == "__main__":
    main()
