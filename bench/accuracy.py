"""Accuracy of the network (float32 and int8) beside extra-trees, on subjects that neither has seen.

    python bench/accuracy.py                            train on 1-6, test on 7 and 8, with the seed that is shipped
    python bench/accuracy.py --seeds 0,1,2              the same with other seeds: how much is luck
    python bench/accuracy.py --leave-one-out 1-6        each of these subjects against the others: how the network and
                                                        its augmentation were chosen, without a look at 7 and 8

Needs the extra `training` and the real recordings (--data or HAR_EDGE_DATA).
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from har_edge.cli.arguments.values import subjects
from har_edge.config.catalog import ModelEntry
from har_edge.data.description import load_description
from har_edge.data.files import read_recordings
from har_edge.data.locate import find_data
from har_edge.errors import DataError
from har_edge.training.fit import Recipe
from har_edge.training.run import ModelBuilder, Split, versions

HEAD = ("trained on", "tested on", "seed", "windows", "float32", "F1", "int8", "F1", "extra-trees", "F1")
WIDTHS = (22, 22, 5, 8, 8, 7, 8, 7, 12, 7)


def main() -> None:
    """Print a row for each split and seed as it is known, then the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="PATH")
    parser.add_argument("--seeds", default="0", metavar="LIST")
    parser.add_argument("--leave-one-out", type=subjects, metavar="LIST")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    print(f"{platform.machine()}, {os.cpu_count()} cores;", ", ".join(f"{k} {v}" for k, v in versions().items()))
    print(_line(HEAD))
    rows = []
    for split in _splits(args.leave_one_out):
        for seed in seeds:
            rows.append(_measure(split, seed, args.data))
            print(_line(rows[-1]), flush=True)
    if len(rows) > 1:
        print(_line(("mean", "", "", *(_figure(mean(float(row[at]) for row in rows)) for at in range(3, len(HEAD))))))


def _splits(left_out: list[str] | None) -> Iterator[Split]:
    if left_out is None:
        yield Split(subjects("1-6"), subjects("7,8"))
        return
    for stream in left_out:
        yield Split([other for other in left_out if other != stream], [stream])


def _measure(split: Split, seed: int, given: Path | None) -> tuple[str, ...]:
    description = load_description("mhealth")
    where = find_data(given, description)
    if where is None:
        raise DataError("accuracy is measured on real recordings: name them with --data, or run har-edge data fetch")
    recordings = read_recordings(description, where, [*split.train, *split.test])
    builder = ModelBuilder(
        recordings, description, split, Recipe(seed=seed), command="bench/accuracy.py", log=lambda line: None
    )
    entries = [file.entry for file in builder.make(final=False, baseline=True)]
    return (_names(split.train), _names(split.test), str(seed), *_figures(entries))


def _figures(entries: list[ModelEntry]) -> Iterator[str]:
    yield str(entries[0].split.windows)
    for entry in entries:
        yield _figure(entry.split.accuracy)
        yield _figure(entry.split.macro_f1)
    yield _figure(entries[0].baselines[0].accuracy)
    yield _figure(entries[0].baselines[0].macro_f1)


def _figure(value: float) -> str:
    return f"{value:.4f}"


def _names(streams: Sequence[str]) -> str:
    return ",".join(stream.removeprefix("subject") for stream in streams)


def _line(cells: tuple[str, ...]) -> str:
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


if __name__ == "__main__":
    main()
