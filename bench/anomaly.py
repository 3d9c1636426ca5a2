"""Measure detectors of anomalies: MNIST with one digit as normal, textures with synthetic defects, several nodes.

    python bench/anomaly.py mnist --data DIR --method autoencoder --out results.jsonl
    python bench/anomaly.py digits --data DIR --features MOBILENET.tflite --method joint --out results.jsonl
    python bench/anomaly.py maps --data DIR --features MOBILENET.tflite --most 1500 --out maps.jsonl
    python bench/anomaly.py pca --data DIR --out results.jsonl
    python bench/anomaly.py textures --features MOBILENET.tflite --method padim --out results.jsonl
    python bench/anomaly.py full-padim --features MOBILENET.tflite --out results.jsonl
    python bench/anomaly.py devices --features MOBILENET.tflite --method padim --workers 1,4 --out results.jsonl
    python bench/anomaly.py table --out results.jsonl

Each case is a line of the file; one that is there is not made again, so that a run that was stopped goes on. Detectors
are trained by `har-edge train --task anomaly`, whose report gives the figures. DIR holds MNIST's idx files. The
defects of the textures stand in bench/anomaly_data.py. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anomaly_data
import anomaly_devices
import anomaly_padim
import numpy as np
from anomaly_digits import print_maps, score_digits, separate_maps

from har_edge.cli.console import say
from har_edge.cli.main import main as har_edge
from har_edge.evaluation.anomaly_metrics import image_auroc
from har_edge.learning.data.dataset_files import read_data

Row = dict[str, Any]
DIGITS = tuple("0123456789")
PCA_COMPONENTS = 40


def main() -> None:
    """Make the cases of a command that are not in the file yet, and print the table."""
    args = _arguments()
    rows = read_rows(args.out)
    if args.command != "table":
        done = {row["case"] for row in rows}
        for case, make in cases(args):
            if case not in done:
                began = time.monotonic()
                made = make()
                seconds = round(time.monotonic() - began, 1)
                new = [{"case": case, "command": args.command, **row, "seconds": seconds} for row in made]
                rows += new
                with args.out.open("a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in new))
    print_table(rows)


def cases(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """Yield the name of each case, and what makes its rows."""
    if args.command == "digits":  # one case: the features of the test are computed once for all
        name = " ".join(["mnist", args.method, "together", *([f"most={args.most}"] if args.most else []), *args.more])
        words = ["--features", str(args.features), *args.more]
        yield name, lambda: list(score_digits(args.data, args.method, words, args.digits.split(","), args.most))
    if args.command == "maps":
        words = ["--features", str(args.features), *args.more]
        yield (
            f"maps most={args.most} {args.features.name}",
            lambda: list(separate_maps(args.data, words, args.digits.split(","), args.most)),
        )
    for case, make in _single_cases(args):
        yield case, lambda make=make: [make()]


def _single_cases(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Row]]]:
    extra = " ".join(args.more)
    if args.command == "mnist":
        for digit in args.digits.split(","):
            yield f"mnist {args.method} {digit} {extra}".strip(), lambda digit=digit: train_mnist(args, digit)
    elif args.command == "pca":
        for digit in args.digits.split(","):
            yield f"mnist pca {digit}", lambda digit=digit: score_pca(args, digit)
    elif args.command == "textures":
        for name in anomaly_data.TEXTURES:
            yield f"texture {args.method} {name} {extra}".strip(), lambda name=name: train_texture(args, name)
    elif args.command == "devices":
        yield f"devices {args.method} {args.workers} {extra}".strip(), lambda: train_on_nodes(args)
    elif args.command == "full-padim":
        for name in anomaly_data.TEXTURES:
            yield f"texture full-padim {name}", lambda name=name: anomaly_padim.score_texture(args.features, name)


def train_mnist(args: argparse.Namespace, digit: str) -> Row:
    """Train on the pictures of one digit, and test on all 10,000."""
    return {"kind": "mnist", "method": args.method, "normal": digit, **run_training(args, args.data, "--normal", digit)}


def train_texture(args: argparse.Namespace, name: str) -> Row:
    """Train on patches of a texture, and test on others with and without defects."""
    with tempfile.TemporaryDirectory(prefix="har-edge-") as folder:
        write_texture(Path(folder), name)
        words = ["--size", str(anomaly_data.PATCH), "--grey"]
        return {"kind": "texture", "method": args.method, "normal": name, **run_training(args, Path(folder), *words)}


def train_on_nodes(args: argparse.Namespace) -> Row:
    """Train on brick with each number of nodes, and compare the detectors with that of the first."""
    texture = anomaly_data.TEXTURES[0]
    with tempfile.TemporaryDirectory(prefix="har-edge-") as folder:
        data = Path(folder) / "pictures"
        write_texture(data, texture)
        features = ["--features", str(args.features)] if args.features is not None else []
        words = ["--method", args.method, "--size", str(anomaly_data.PATCH), "--grey", *features, *args.more]
        counts = [int(count) for count in args.workers.split(",")]
        made = [anomaly_devices.train_on(n, data, words, Path(folder) / f"out-{n}") for n in counts]
        reports = [json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) for path in made]
        pictures = anomaly_data.texture_test(texture).patches
        apart = [anomaly_devices.compare(made[0], path, pictures) for path in made]
        slices = [anomaly_devices.check_slices(path) for path in made]
        found = {"kind": "devices", "method": args.method, "workers": counts, "reports": reports}
        return {**found, "apart": apart, "slices": slices}


def run_training(args: argparse.Namespace, data: Path, *words: str) -> Row:
    """Run `har-edge train --task anomaly` and return its report."""
    with tempfile.TemporaryDirectory(prefix="har-edge-") as folder:
        features = ["--features", str(args.features)] if args.features is not None else []
        options = ["--data", str(data), "--method", args.method, "--out", folder, *features, *words, *args.more]
        code = har_edge(["train", "--task", "anomaly", *options])
        if code:
            raise SystemExit(f"har-edge train ended with {code}")
        report: Row = json.loads((Path(folder) / "anomaly.json").read_text(encoding="utf-8"))
        return {"report": report}


def score_pca(args: argparse.Namespace, digit: str) -> Row:
    """Return the AUROC of the error that 40 principal components of a digit leave (scikit-learn's PCA)."""
    from sklearn.decomposition import PCA

    data = read_data(args.data)
    train = data.train.values()[data.train.y == int(digit)].reshape(-1, 784)
    test = data.test.values().reshape(-1, 784)
    pca = PCA(PCA_COMPONENTS, svd_solver="full", random_state=0).fit(train)
    errors = np.square(test - pca.inverse_transform(pca.transform(test))).mean(axis=1)
    found = image_auroc(errors.astype(np.float32), data.test.y != int(digit))
    return {"kind": "mnist", "method": "pca", "normal": digit, "report": {"test": {"image_auroc": found}}}


def write_texture(folder: Path, name: str) -> None:
    """Write the patches of a texture in the layout of MVTec AD; a kind of defect is KIND-CONTRAST."""
    from PIL import Image

    def save(path: Path, values: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)

    for number, patch in enumerate(anomaly_data.train_patches(name)):
        save(folder / "train" / "good" / f"{number:04d}.png", patch[..., 0])
    test = anomaly_data.texture_test(name)
    for number, (patch, kind, contrast, mask) in enumerate(
        zip(test.patches, test.kinds, test.contrasts, test.masks, strict=True)
    ):
        named = kind if kind == "good" else f"{kind}-{contrast:g}"
        save(folder / "test" / named / f"{number:04d}.png", patch[..., 0])
        if kind != "good":
            save(folder / "ground_truth" / named / f"{number:04d}_mask.png", mask.astype(np.uint8) * 255)


def read_rows(path: Path) -> list[Row]:
    """Return the cases that are done."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def print_table(rows: list[Row]) -> None:
    """Print MNIST by method, and textures by method and contrast."""
    mnist: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["kind"] == "mnist":
            name = row["case"].replace(f" {row['normal']}", "", 1)
            mnist.setdefault(name, {})[row["normal"]] = row["report"]["test"]["image_auroc"]
    for name, found in mnist.items():
        digits = " ".join(f"{found[digit]:.3f}" if digit in found else "-" for digit in DIGITS)
        values = list(found.values())
        say(f"{name}: mean {np.mean(values):.4f}, worst {min(values):.4f} of {len(values)} digits\n  {digits}")
    for row in (one for one in rows if one["kind"] == "devices"):
        for count, report, apart in zip(row["workers"], row["reports"], row["apart"], strict=True):
            say(
                f"{row['method']} on {count}: image AUROC {report['test']['image_auroc']:.4f}, threshold "
                f"{report['threshold']:.6g}; scores at most {apart['scores']:.1e} apart, heat maps "
                f"{apart['heat_maps']:.1e}, rank correlation {apart['same_order']:.6f}; 4 slices give the same bits"
            )
    if maps := [row for row in rows if row["kind"] == "maps"]:
        print_maps(maps)
    for row in rows:
        if row["kind"] == "texture":
            test = row["report"]["test"]
            pixels = test.get("pixel_auroc")
            head = f"{row['case']} (real, synthetic defects): image AUROC {test['image_auroc']:.4f}"
            say(head + ("" if pixels is None else f", pixel AUROC {pixels:.4f}"))
            for kind in anomaly_data.KINDS:
                curve = [test["kinds"].get(f"{kind}-{contrast:g}") for contrast in anomaly_data.CONTRASTS]
                say(f"  {kind:<8}" + " ".join(f"{one:.3f}" for one in curve if one is not None))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "command", choices=("mnist", "digits", "maps", "pca", "textures", "full-padim", "devices", "table")
    )
    parser.add_argument("--data", type=Path, help="folder with MNIST's idx files")
    parser.add_argument("--method", default="autoencoder")
    parser.add_argument("--features", type=Path, help="the network of padim and student")
    parser.add_argument("--workers", default="1,4")
    parser.add_argument("--most", type=int, default=0, help="training pictures of a digit (0: all)")
    parser.add_argument("--digits", default=",".join(DIGITS))
    parser.add_argument("--out", type=Path, required=True)
    args, args.more = parser.parse_known_args()
    return args


if __name__ == "__main__":
    sys.exit(main())
