"""`har-edge evaluate --protocol`: accuracy against bytes sent, for any methods of reduction, on unseen people."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options, values
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.data.description import StreamDescription
    from har_edge.data.recording import Recording
    from har_edge.evaluation.protocol import Fold
    from har_edge.evaluation.results import StudyConditions
    from har_edge.evaluation.study import Downstream, Trainer, Variant
    from har_edge.evaluation.trial import Trial
    from har_edge.evaluation.trial_runner import StudyConfig

PROTOCOLS = ("loso", "split", "random")
BOTH = "both"
# Values of --protocol from before there were studies; they keep their meaning.
MQTT_VERSIONS = ("5", "3.1.1")
WAYS = ("codes", "restore", BOTH)
PRECISIONS = ("int8", "float")
DEFAULT_OUT = Path("study")
# One thread each, since as many processes as cores train at once.
_ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def configure(parser: argparse.ArgumentParser) -> list[str]:
    """Add the options of a study and return their names; all are None unless given."""
    group = parser.add_argument_group(
        "study", "train and test systems that send less, instead of measuring one model (needs the extra: training)"
    )
    add = group.add_argument
    actions = [
        add(
            "--protocol",
            dest="study",
            choices=(*PROTOCOLS, *MQTT_VERSIONS),
            metavar="{" + ",".join(PROTOCOLS) + "}",
            help="leave one subject out, a fixed split, or windows at random (to see how much that overstates)",
        ),
        add(
            "--reducer",
            action="append",
            metavar="SPEC",
            help="a method to measure, such as paa:5+q8 or pca:8; repeatable (none is always measured)",
        ),
        add(
            "--downstream", choices=WAYS, help="classifier trained on codes, restored windows, or both (default: both)"
        ),
        add("--grouping", choices=("location", "all", "type"), help="channels reduced together (default: location)"),
        add("--precision", choices=(*PRECISIONS, BOTH), help="precision of the classifier (default: int8)"),
        add("--batch", type=batches, metavar="N[,N..]", help="windows a message, such as 1,8 (default: 1)"),
        add("--stream", metavar="NAME|TOML", help="the data set's description (default: mhealth)"),
        add(
            "--train-subjects",
            type=values.subjects,
            metavar="LIST",
            help="training subjects of --protocol split (default: 1-6)",
        ),
        add(
            "--test-subjects",
            type=values.subjects,
            metavar="LIST",
            help="test subjects of --protocol split (default: 7,8)",
        ),
        add("--seeds", type=seeds, metavar="N[,N..]", help="seeds; figures are means over them (default: 0)"),
        add("--epochs", type=values.positive, metavar="N", help="passes over the training windows (default: 12)"),
        add("--baseline", action="store_const", const=True, help="measure the extra-trees baseline too"),
        add("--jobs", type=values.positive, metavar="N", help="number of processes (default: the number of cores)"),
        add("--engine", metavar="ENGINE", help="where trials run: local, or dask://HOST:PORT (default: local)"),
        add(
            "--out",
            type=Path,
            metavar="DIR",
            help="folder for finished trials, rows, report and pictures (default: study)",
        ),
    ]
    return [action.dest for action in actions if action.dest != "study"]


def batches(text: str) -> tuple[int, ...]:
    """Read `1,8`: numbers of windows a message, each once."""
    return tuple(dict.fromkeys(values.batch(part.strip()) for part in text.split(",")))


def seeds(text: str) -> tuple[int, ...]:
    """Read `0,1`: seeds, each once."""
    return tuple(dict.fromkeys(values.natural(part.strip()) for part in text.split(",")))


def run(args: argparse.Namespace) -> int:
    """Fit, score, print and write; return 1 when a trial failed, with the results of all others."""
    os.environ.update({name: os.environ.get(name, value) for name, value in _ONE_THREAD.items()})
    _check_libraries(args)
    from har_edge.cli.reports import study as study_report
    from har_edge.evaluation.curve import draw_study
    from har_edge.evaluation.engine import LOCAL, open_engine
    from har_edge.evaluation.executor import run_trials
    from har_edge.evaluation.results import add_rows, load_results, merge_results, write_results
    from har_edge.evaluation.rows import ResultAggregator

    if args.mqtt and args.study == "random":
        raise ConfigError("--mqtt with --protocol random: sensors send whole streams; use loso or split")
    config, conditions, origin = prepare(args)
    stored = load_results(config.out)
    results = merge_results(stored, conditions, command_of(args))
    if stored is not None and stored.rows and not results.rows:
        print(f"rows in {config.out} are of other recordings, seeds, recipe or version: left out", file=sys.stderr)
    trials = trials_of(args, config)
    print(study_report.introduce(conditions, origin, config, trials), flush=True)
    aggregator, failed = ResultAggregator(config, trials, conditions.digest), []
    # Else SIGTERM would end this process alone, and leave the others working.
    before = signal.signal(signal.SIGTERM, _on_terminate)
    try:
        with closing(open_engine(args.engine or LOCAL, config, args.jobs)) as engine:
            for outcome in study_report.follow(run_trials(config, trials, engine), len(trials)):
                failed += [outcome] if outcome.result is None else []
                rows = list(aggregator.add(outcome))
                if rows:
                    results = add_rows(results, rows)
                    write_results(results, config.out)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from what is in {config.out}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    good = True
    if args.mqtt:
        from har_edge.cli.study_mqtt import measure_rows
        from har_edge.evaluation.results import add_measured

        lost = {outcome.trial.variant for outcome in failed}
        for measured in measure_rows(args, config, [trial for trial in trials if trial.variant not in lost]):
            print(study_report.format_measured(measured), file=sys.stderr, flush=True)
            results, good = add_measured(results, [measured]), good and measured.identical
    write_results(results, config.out)
    print(study_report.format_results(results))
    for path in draw_study(results, config.out):
        print(path)
    for outcome in failed:
        print(f"failed: {outcome.trial}: {outcome.error}", file=sys.stderr)
    return 0 if good and not failed else 1


def _check_libraries(args: argparse.Namespace) -> None:
    """Raise ConfigError, before hours of work, for a library that is needed at their end."""
    from har_edge.cli.local_pipeline import check_client
    from har_edge.codecs.catalog import check_libraries
    from har_edge.extras import require

    require("--protocol", "matplotlib", *(["sklearn"] if args.baseline else []))
    for spec in args.reducer or ():
        check_libraries(spec)
    if args.mqtt:
        check_client(args)


def prepare(args: argparse.Namespace) -> tuple[StudyConfig, StudyConditions, str]:
    """Return the settings that all trials share, the conditions for comparing rows, and the recordings' origin."""
    from har_edge import __version__
    from har_edge.data.description import load_description
    from har_edge.data.windows import default_window
    from har_edge.evaluation.results import StudyConditions
    from har_edge.evaluation.trial_runner import FORMAT, StudyConfig
    from har_edge.evaluation.trial_store import digest, fingerprint

    described = load_description(args.stream or "mhealth")
    make_trainer, recipe = trainer_of(described, args.epochs)
    recordings, origin = _load(args, described)
    length, hop = default_window(described.rate_hz)
    config = StudyConfig(
        recordings=recordings,
        fingerprints={recording.stream: fingerprint(recording) for recording in recordings},
        description=described,
        length=length,
        hop=hop,
        batches=args.batch or (1,),
        missing=bool(args.missing),
        recipe=recipe,
        out=args.out or DEFAULT_OUT,
        make_trainer=make_trainer,
        environment=_ONE_THREAD,
    )
    used = list(args.seeds or (0,))
    decisive = digest(
        FORMAT, __version__, recipe, repr(described), length, hop, sorted(config.fingerprints.values()), used
    )
    real = all(recording.real for recording in recordings)
    data = f"{described.name}, {'real' if real else 'synthetic'} recordings"
    return config, StudyConditions(data, real, list(config.fingerprints), used, recipe, __version__, decisive), origin


def trainer_of(described: StreamDescription, epochs: int | None) -> tuple[Callable[[], Trainer], str]:
    """Return the function that makes the trainer in each process, and a text with all that decides its weights."""
    from functools import partial

    from har_edge.training.backend import require_tensorflow

    require_tensorflow()
    from har_edge.training.fit import Recipe
    from har_edge.training.system import SystemTrainer

    recipe = Recipe() if epochs is None else Recipe(epochs=epochs)
    return partial(SystemTrainer, described, recipe), repr(recipe)


def trials_of(args: argparse.Namespace, config: StudyConfig) -> list[Trial]:
    """Return all trials in order: the variant without reduction first, fold by fold, then the others."""
    from har_edge.evaluation.protocol import Protocol
    from har_edge.evaluation.trial import Trial

    protocol = Protocol(args.study)
    variants: list[Variant | None] = [*variants_of(args, config), *([None] if args.baseline else [])]
    return [
        Trial(variant, protocol, fold, seed)
        for variant in variants
        for seed in args.seeds or (0,)
        for fold in folds_of(args, config, seed)
    ]


def folds_of(args: argparse.Namespace, config: StudyConfig, seed: int) -> Sequence[Fold]:
    """Return the folds of the protocol."""
    from har_edge.evaluation.protocol import loso_folds, random_folds, split_folds

    streams = [recording.stream for recording in config.recordings]
    if args.study == "loso":
        return loso_folds(streams)
    if args.study == "random":
        return random_folds(config.recordings, config.length, config.hop, seed)
    return split_folds(
        args.train_subjects or values.subjects("1-6"), args.test_subjects or values.subjects("7,8"), streams
    )


def variants_of(args: argparse.Namespace, config: StudyConfig) -> Iterator[Variant]:
    """Yield the variants, each once and `none` first. Raises ConfigError for a method that cannot run as asked.

    With `both`, a method that cannot restore windows is not restored, and one that only codes (q8, zlib) trains no
    classifier of its own.
    """
    from har_edge.evaluation.study import NO_REDUCTION, Downstream, Variant

    way, grouping = args.downstream or BOTH, args.grouping or "location"
    precisions = PRECISIONS if args.precision == BOTH else [args.precision or PRECISIONS[0]]
    for precision in precisions:
        yield Variant(NO_REDUCTION, Downstream.CODES, grouping, precision)
    for spec in dict.fromkeys(args.reducer or ()):
        if spec == NO_REDUCTION:
            continue
        possible = ways_of(spec, config, grouping)
        if way == "restore" and Downstream.RESTORE not in possible:
            raise ConfigError(f"--reducer {spec}: nothing restores windows from these codes; use --downstream codes")
        for downstream in possible if way == BOTH else [Downstream(way)]:
            for precision in precisions:
                yield Variant(spec, downstream, grouping, precision)


def ways_of(spec: str, config: StudyConfig, grouping: str) -> Sequence[Downstream]:
    """Return what a classifier may see of a reducer. Raises ConfigError, before hours of work, if impossible."""
    from har_edge.codecs.catalog import make_reducer
    from har_edge.codecs.spec import is_recipe, parse_spec
    from har_edge.data.grouping import regroup
    from har_edge.evaluation.study import Downstream

    if is_recipe(spec):  # before it is fitted, only this is known: the first slice of a model cannot restore its input
        one_way = any(part.method == "bottleneck" for part in parse_spec(spec))
        return [Downstream.CODES] if one_way else [Downstream.CODES, Downstream.RESTORE]
    made = [
        make_reducer(spec, config.length, len(source.channels))
        for source in regroup(config.description, grouping).sources
    ]
    if all(reducer.is_coding for reducer in made):
        return [Downstream.RESTORE]
    if not all(reducer.restores for reducer in made):
        return [Downstream.CODES]
    return [Downstream.CODES, Downstream.RESTORE]


def command_of(args: argparse.Namespace) -> str:
    """Return the command that runs the same study again, for the report."""
    given: list[tuple[str, object]] = [
        ("--protocol", args.study),
        *(("--reducer", spec) for spec in args.reducer or ()),
        ("--downstream", args.downstream),
        ("--grouping", args.grouping),
        ("--precision", args.precision),
        ("--batch", args.batch),
        ("--stream", args.stream),
        ("--subjects", args.subjects),
        ("--train-subjects", args.train_subjects),
        ("--test-subjects", args.test_subjects),
        ("--seeds", args.seeds),
        ("--epochs", args.epochs),
    ]
    parts = ["har-edge", "evaluate"]
    for option, value in given:
        if value is not None:
            parts += [option, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
    parts += ["--baseline"] * bool(args.baseline) + ["--missing"] * bool(args.missing) + ["--mqtt"] * args.mqtt
    return shlex.join(parts)


def _load(args: argparse.Namespace, described: StreamDescription) -> tuple[list[Recording], str]:
    """Return the recordings, all by default; all synthetic people there are, since two make no study."""
    from har_edge.data.locate import find_data
    from har_edge.data.synthetic import SUBJECTS

    everybody = None if find_data(args.data, described) else SUBJECTS
    return options.load_recordings(args, described, args.subjects or everybody)


def _on_terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
