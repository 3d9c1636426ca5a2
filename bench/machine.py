"""How hard the synthetic machine data are: extra-trees on hand-made features, leaving one fan out at a time.

    python data/make_machine.py --seed 1 --out data/machine
    python bench/machine.py --data data/machine

Needs the extra `evaluation`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from har_edge.data.description import load_description
from har_edge.data.files import read_recordings
from har_edge.data.windows import default_window, windows
from har_edge.evaluation.baseline import predict_windows

TOML = Path(__file__).parents[1] / "data" / "machine.toml"


def main() -> None:
    """Print the share of right windows of each fan, and of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/machine"), metavar="PATH")
    args = parser.parse_args()
    description = load_description(TOML)
    length, hop = default_window(description.rate_hz)
    cut = {
        recording.stream: list(windows(recording, length, hop, within_activity=True))
        for recording in read_recordings(description, args.data)
    }
    labels = [label for label in range(len(description.labels)) if label != description.null_label]
    right = total = 0
    for left_out, asked in cut.items():
        known = [window for stream, own in cut.items() if stream != left_out for window in own]
        answers = predict_windows(known, asked, labels)
        hits = sum(labels[answer.answer] == window.label for answer, window in zip(answers, asked, strict=True))
        print(f"{left_out}: {hits / len(asked):.4f} of {len(asked)} windows")
        right, total = right + hits, total + len(asked)
    print(f"all: {right / total:.4f} of {total} windows; synthetic data, which say nothing about real machines")


if __name__ == "__main__":
    main()
