"""Leave-one-subject-out accuracy of the default recipe, adapted to 0, 1 or 3 labelled windows of each activity.

    HAR_EDGE_DATA=... python bench/adapt.py --models DIR [--draws 5] [--trunk] [--early] [--shipped]

For each person, the network of the default model is trained on all others (once, kept in DIR; this takes TensorFlow
and some minutes a person). The encoders stay as they are, and send int8 codes, as the sensors do; the float32 head is
adapted, by LiteRT alone. With --trunk the whole float32 network is adapted, encoders too. With --early the network is
that of early fusion (the shipped model `float`), whole. All figures of a person are of the same windows: those that
share no row with a labelled one. With --shipped, subjects 7 and 8 are answered by the shipped models that never saw
them, which were trained on subjects 1 to 6 alone.

The recipe (rate, passes, anchor) of a person is the one with the best mean accuracy over the other people, so that no
figure has had a part in choosing its own recipe. Labelled windows are the first of each activity, and drawn anew.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_edge.config.catalog import find_model
from har_edge.data.description import load_description
from har_edge.data.files import read_recordings
from har_edge.data.locate import find_data
from har_edge.data.recording import Recording, Window
from har_edge.errors import DataError
from har_edge.files import write_atomic
from har_edge.inference.interpreter import Interpreter
from har_edge.learning.personal.adaptation import AdaptationRecipe, Adapter, LabelledInputs, Trained, accuracy
from har_edge.learning.personal.windows import cut_personal, overlap, share_out
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.slices import slice_model, write_slice

HEAD = 156  # the first operator behind the codes in the whole network
CODES, OUTPUT = ("chest_code", "ankle_code", "arm_code"), "activity"
MOST, COUNTS = 3, (1, 3)
Recipes = list[AdaptationRecipe]


def recipes_of(*, whole: bool) -> Recipes:
    """Return the recipes to choose from; those of a whole network are fewer, since each takes longer."""
    if whole:
        ways = itertools.product((Trained.HEAD, Trained.ALL), (0.0003, 0.001, 0.003), (10, 30), (0.0,))
        return [AdaptationRecipe(*way) for way in ways]
    ways = itertools.product((Trained.OUTPUT, Trained.HEAD), (0.0003, 0.001, 0.003), (10, 30, 100), (0.0, 0.1))
    return [AdaptationRecipe(*way) for way in ways]


@dataclass(frozen=True, slots=True)
class Person:
    """A person with the model that never saw them, and all windows as it takes them."""

    name: str
    model: Model
    windows: list[Window]
    samples: LabelledInputs


@dataclass(frozen=True, slots=True)
class Draw:
    """Which windows of a person are labelled, for each number of them, and which are tested, by index."""

    labelled: Mapping[int, np.ndarray]
    held_out: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="folder of the networks trained")
    parser.add_argument("--draws", type=int, default=5, help="draws of labelled windows, beside the first ones")
    parser.add_argument("--trunk", action="store_true", help="adapt encoders and head, not the head alone")
    parser.add_argument("--early", action="store_true", help="the network of early fusion")
    parser.add_argument("--shipped", action="store_true", help="take the shipped models for subjects 7 and 8")
    parser.add_argument("--subjects", default="", help="measure these people only, with commas between")
    args = parser.parse_args()
    description = load_description("mhealth")
    where = find_data(None, description)
    if where is None:
        raise DataError("no real recordings here: set HAR_EDGE_DATA")
    recordings = read_recordings(description, where)
    chosen = args.subjects.split(",") if args.subjects else [one.stream for one in recordings]
    if len(chosen) < 2:
        raise DataError("one person came; expected two or more: the recipe is chosen on the others")
    recipes = recipes_of(whole=args.trunk or args.early)
    people = [open_person(one, recordings, args) for one in recordings if one.stream in chosen]
    kind = "early fusion" if args.early else "encoders and head" if args.trunk else "the head"
    names = ", ".join(person.name for person in people)
    print(f"real data from {where}: {names}; {kind} adapted, {len(recipes)} recipes to choose from", flush=True)
    ways: list[int | None] = [None, *range(args.draws)]
    table = {person.name: [measure(person, seed, recipes) for seed in ways] for person in people}
    report(table, recipes)


def open_person(recording: Recording, everybody: Sequence[Recording], args: argparse.Namespace) -> Person:
    """Return a person with a model that was trained on all others; train it where the folder does not have it."""
    path = args.models / f"{recording.stream}.tflite"
    split = find_model("float-split" if args.early else "decimate-q8-zlib-restore-split")
    if args.shipped and recording.stream in split.entry.split.test:
        path = split.path
    elif not path.is_file():
        write_atomic(path, train_without(recording.stream, everybody, early=args.early))
    whole = read_model(path)
    task = find_model("bottleneck-float").entry.task
    cut = cut_personal(recording, task)
    y = np.array([task.label_ids.index(window.label) for window in cut], np.int64)
    if args.trunk or args.early:
        inputs = {name: np.stack([window.samples[name] for window in cut]) for name in cut[0].samples}
        return Person(recording.stream, whole, cut, LabelledInputs(inputs, y))
    encoders, head = (bytes(write_slice(whole, piece)) for piece in slice_model(whole, [HEAD]))
    interpreter = Interpreter(encoders)
    rows = [interpreter.run({name: values[None] for name, values in window.samples.items()}) for window in cut]
    # As the encoders of the sensors send it: int8 with a step of 1/127.
    codes = {name: np.concatenate([np.clip(np.round(row[name] * 127), -128, 127) for row in rows]) for name in CODES}
    inputs = {name: (values / 127).astype(np.float32) for name, values in codes.items()}
    return Person(recording.stream, read_model(head), cut, LabelledInputs(inputs, y))


def train_without(person: str, everybody: Sequence[Recording], *, early: bool) -> bytes:
    """Return the float32 network, whole, trained on all people but one."""
    from har_edge.evaluation.study import NO_REDUCTION, Downstream, Training, Variant
    from har_edge.training.backend import require_tensorflow

    require_tensorflow()
    from har_edge.training.fit import Recipe
    from har_edge.training.system import SystemTrainer

    others = Training([one for one in everybody if one.stream != person])
    trainer = SystemTrainer(load_description("mhealth"), Recipe(), stem="fold")
    if early:
        return trainer.fit_early("location", others, 0)["float"].model
    return trainer.fit(Variant(NO_REDUCTION, Downstream.CODES, "location", "float"), others, 0, None).model


def draw_windows(person: Person, seed: int | None) -> Draw:
    """Return the windows to label and to test; those for one window are among those for three."""
    generator = None if seed is None else np.random.default_rng(seed)
    parts = share_out(person.windows, 250, MOST, generator)
    at = {window.start: number for number, window in enumerate(person.windows)}
    first: dict[int, list[int]] = {count: [] for count in COUNTS}
    for label in sorted({window.label for window in parts.labelled if window.label is not None}):
        own = [at[window.start] for window in parts.labelled if window.label == label]
        for count in COUNTS:
            first[count] += own[:count]
    assert not any(overlap(one, other, 250) for one in parts.labelled for other in parts.held_out)
    held_out = np.array([at[window.start] for window in parts.held_out])
    return Draw({count: np.array(rows) for count, rows in first.items()}, held_out)


def measure(person: Person, seed: int | None, recipes: Recipes) -> dict[tuple[int, int], float]:
    """Return the accuracy for each number of labelled windows and each recipe; (0, 0) is the model as it was."""
    draw = draw_windows(person, seed)
    test = person.samples.take(draw.held_out)
    found = {(0, 0): accuracy(person.model.data, OUTPUT, test)}
    for trained in {recipe.trained for recipe in recipes}:
        adapter = Adapter(person.model, 12, trained)
        for number, recipe in enumerate(recipes):
            if recipe.trained is not trained:
                continue
            for count in COUNTS:
                samples = person.samples.take(draw.labelled[count])
                content = adapter.adapt(samples, recipe, early_stopping=False).content
                found[count, number] = accuracy(content, OUTPUT, test)
    kind = "the first windows" if seed is None else f"draw {seed}"
    print(f"  {person.name}, {kind}: {found[0, 0]:.4f} as it was, {len(test)} windows tested", flush=True)
    return found


def report(table: Mapping[str, Sequence[Mapping[tuple[int, int], float]]], recipes: Recipes) -> None:
    """Print the accuracy of each person, with the recipe that was best on all others."""
    names = list(table)
    for title, kept in (("first windows of each activity", slice(0, 1)), ("windows drawn", slice(1, None))):
        if not next(iter(table.values()))[kept]:
            continue
        mean = {
            name: {key: float(np.mean([one[key] for one in table[name][kept]])) for key in table[name][0]}
            for name in names
        }
        print(
            f"\n{title}\n{'person':<10}{'0 labelled':>12}" + "".join(f"{count:>12}" for count in COUNTS) + "  recipes"
        )
        rows = []
        for name in names:
            best = {count: choose([mean[other] for other in names if other != name], count) for count in COUNTS}
            row = [mean[name][0, 0], *(mean[name][count, best[count]] for count in COUNTS)]
            rows.append(row)
            said = "; ".join(f"{count}: {describe(recipes[number])}" for count, number in best.items())
            print(f"{name:<10}" + "".join(f"{value:12.4f}" for value in row) + f"  {said}")
        print(f"{'mean':<10}" + "".join(f"{value:12.4f}" for value in np.mean(rows, 0)))
        print(f"{'worst':<10}" + "".join(f"{value:12.4f}" for value in np.min(rows, 0)))
        for count in COUNTS:
            number = choose(list(mean.values()), count)
            print(f"best of all for {count}: {describe(recipes[number])} (chosen with everybody in view: a default)")


def choose(others: Sequence[Mapping[tuple[int, int], float]], count: int) -> int:
    """Return the recipe with the best mean accuracy over people; of equals the first, which moves least."""
    numbers = sorted({number for known, number in others[0] if known == count})
    means = [np.mean([one[count, number] for one in others]) for number in numbers]
    return int(np.argmax(np.round(means, 6)))


def describe(recipe: AdaptationRecipe) -> str:
    """Return a recipe in a few words."""
    anchor = f" anchor {recipe.anchor:g}" if recipe.anchor else ""
    return f"{recipe.trained.value} {recipe.rate:g} x{recipe.epochs}{anchor}"


if __name__ == "__main__":
    main()
