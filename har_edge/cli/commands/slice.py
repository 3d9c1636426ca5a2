"""`har-edge slice`: cut a .tflite model into slices."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options, values
from har_edge.cli.arguments.model_task import FLAGS, add_flags, copy_with_files, resolve_model
from har_edge.cli.console import follow
from har_edge.cli.packed_slices import add_pack, find_packings
from har_edge.cli.slice_checks import check_folder, check_slices_of, check_split_layout
from har_edge.errors import ConfigError
from har_edge.units import plural

if TYPE_CHECKING:
    from har_edge.cli.reports.slices import Report
    from har_edge.config.catalog import FoundModel
    from har_edge.config.task import Task
    from har_edge.tflite.manifest import SliceManifest
    from har_edge.tflite.model import Model
    from har_edge.tflite.packing import TensorPacking
    from har_edge.tflite.slices import Slice
    from har_edge.tflite.split.plan import SplitPlan
    from har_edge.tflite.split.program import SplitLayout

HELP = "cut a .tflite model into slices, one for each device"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=options.MODEL_HELP)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for slices, manifest.json, pipeline.toml")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print every cut with the tensors and bytes that cross it")
    what.add_argument(
        "--methods", action="store_true", help="print how many devices can share each operator, by which method"
    )
    what.add_argument("--at", type=values.operator_indices, metavar="I[,J..]", help="cut before these operators")
    what.add_argument(
        "--stages", type=int, metavar="N", help="cut into N slices for equal devices, by times measured here"
    )
    what.add_argument(
        "--split",
        metavar="SPEC",
        help='share operators among devices: blocks METHOD:START-STOP@SHARDS, such as "rows:0-18@4 whole:18-22"',
    )
    what.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="cut as the plan says that 'har-edge plan --out FILE' made, layers that devices share included",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="name of the pipeline, which tells it apart on a broker (default: har)"
    )
    options.add_reducer(parser, "what the sensors do to windows, instead of what the model's manifest says")
    parser.add_argument(
        "--check", action="store_true", help="compare the slices of every cut with the whole model, bit by bit"
    )
    parser.add_argument(
        "--slices",
        type=Path,
        metavar="DIR",
        help="with --check: compare the slices of this folder with the whole model on this device; nothing is cut",
    )
    add_flags(parser, deploys=True)
    options.add_delegate(parser, "what the pipeline file says, else xnnpack")
    add_pack(parser)
    options.add_data(parser)
    options.add_wire(parser, 3, "3 (default), or 1 for fleets with nodes that know no newer one")
    parser.add_argument(
        "--threads", type=values.threads, default=1, metavar="N", help="threads of the runtime (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Cut, list or check; return 1 when a check finds slices that differ from the whole."""
    import tempfile

    _refuse_contradictions(args)
    if args.slices is not None:
        return check_folder(args)  # needs a runtime only: the TFLite schema is not on every device
    _require_schema()
    if args.methods:
        return _list_methods(args)
    with tempfile.TemporaryDirectory(prefix="har-edge-") as folder:
        return _cut(args, Path(folder))


def _cut(args: argparse.Namespace, folder: Path) -> int:
    """Cut, list or check; what goes with the slices under another name is copied into `folder`."""
    from har_edge.cli.reports import slices as slice_report
    from har_edge.config.catalog import find_model
    from har_edge.inference.tensor_observation import open_model
    from har_edge.runtime.slicing import read_companions
    from har_edge.tflite.cuts import list_cuts
    from har_edge.tflite.folder import check_folder
    from har_edge.tflite.model import gather_outputs
    from har_edge.tflite.slices import slice_model

    if args.out is not None and not args.list:
        check_folder(args.out)  # before minutes of measuring, not after
    found = find_model(args.model)
    model = open_model(found.path, args.delegate)
    task, beside = _task(model, found, args, folder)
    model = model if task is None or not task.gathers else gather_outputs(model, task.results)
    cuts = list_cuts(model)
    report = slice_report.start(model, cuts)
    if args.list:
        report.add_cuts(cuts)
    chosen, predicted = _choose(model, args)
    layout = _split(model, args)
    slices = slice_model(model, chosen) if chosen is not None else []
    equal = True
    if layout is not None:
        report.add_groups(layout.plans)
    if args.check and layout is not None:
        equal = report.add_split_check(check_split_layout(model, layout, folder / "split", args))
    elif args.check:
        checks = check_slices_of(model, cuts, chosen, args)
        equal = report.add_checks(checks, cuts)
    cut = None
    if layout is not None:
        cut = _Cut.of_layout(layout)
    elif chosen is not None:
        cut = _Cut.of_slices(model, slices, args)
    if args.out is not None and cut is not None:
        if args.check and (not equal if chosen is None else report.differs(chosen)):
            report.say(f"nothing written to {args.out}: these slices do not give what the whole model gives")
        else:
            companions = {} if task is None else read_companions(task, beside)
            packings, calibrated = find_packings(model, cut.manifest, task, beside, args) if args.pack else ({}, "")
            _write(cut.packed(packings), args, task, companions, report, predicted)
            if calibrated:
                report.say(f"int8 activations are calibrated on {calibrated}")
            if any(one.rounding.value for one in packings.values()):
                report.say(
                    "rounded activations change answers: measure by how much with "
                    f"har-edge evaluate --model {args.model} --slices {args.out}"
                )
            if args.plan is not None:
                _tell_plan(args.plan, report, packed=bool(args.pack))
    report.print(as_json=args.json)
    return 0 if equal else 1


def _tell_plan(path: Path, report: Report, *, packed: bool) -> None:
    """Say what of a plan is left to the person: devices that take turns, packed activations, brokers on devices."""
    from har_edge.tflite.split.plan_file import homes_of, load_plan

    plan = load_plan(path)
    if plan.packings and not packed:
        number = plural(len(plan.packings), "tensor")
        report.say(f"the plan packs {number} on the way, and this folder none: add --pack auto")
    if plan.brokers:
        named = ", ".join(f"those of slice {number} at {device}" for number, device in plan.brokers.items())
        report.say(
            f"the plan sends flows through brokers of devices ({named}): start one there, and name it in [flows] of "
            "pipeline.toml (docs/how-to/brokers-on-the-devices.md)"
        )
    for stage, names in enumerate(homes_of(plan)):
        if len(names) > 1:
            report.say(
                f"the plan lets {' and '.join(names)} take turns at stage {stage}: start it on each of them, with "
                f"--turn 0 to {len(names) - 1}; har-edge coordinator --plan {path} places all of them"
            )


def _task(model: Model, found: FoundModel, args: argparse.Namespace, folder: Path) -> tuple[Task | None, Path]:
    """Return the task of the model, with the chosen reducers, and the folder of its files.

    The task is None where neither a manifest nor options say what the model is for.
    """
    given = [flag for flag in FLAGS if getattr(args, flag) is not None]
    if found.entry is None and args.stream is None:
        for option, came in (("--reducer", args.reducer is not None), (f"--{given[0]}" if given else "", given)):
            if came:
                raise ConfigError(
                    f"{option} came, but no manifest says what this model is for; name the stream of its windows with "
                    "--stream (a TOML file, or images), or write pipeline.toml (docs/reference/pipeline-file.md)"
                )
        return None, folder
    known = resolve_model(args, found)
    if found.entry is None:
        from har_edge.codecs.spec import file_names

        specs = options.chosen_reducers(args.reducer, known.task.inputs)
        known = copy_with_files(known, folder, [name for spec in specs.values() for name in file_names(spec)])
    elif args.reducer is None:
        return known.task, known.beside
    from har_edge.runtime.slicing import settle_reducers

    reducers = options.chosen_reducers(args.reducer, known.task.inputs)
    return settle_reducers(model, known.task, reducers, known.beside), known.beside


@dataclass(frozen=True, slots=True)
class _Cut:
    """The manifest of a cut without hashes, and how its files are written into a folder beside others, given how their
    tensors travel that do not travel as they are.
    """

    manifest: SliceManifest
    write: Callable[[Path, Mapping[str, bytes], Mapping[str, TensorPacking]], SliceManifest]
    packings: Mapping[str, TensorPacking] = field(default_factory=dict)
    plans: Sequence[SplitPlan] = ()  # of a split

    @classmethod
    def of_slices(cls, model: Model, slices: Sequence[Slice], args: argparse.Namespace) -> _Cut:
        from har_edge.tflite.folder import make_manifest, write_folder

        def write(out: Path, beside: Mapping[str, bytes], packings: Mapping[str, TensorPacking]) -> SliceManifest:
            return write_folder(model, slices, out, beside, wire=args.wire, packings=packings)

        return cls(make_manifest(model, slices, wire=args.wire), write)

    @classmethod
    def of_layout(cls, layout: SplitLayout) -> _Cut:
        from har_edge.tflite.packed_cuts import with_packings
        from har_edge.tflite.split.folder import write_split

        def write(out: Path, beside: Mapping[str, bytes], packings: Mapping[str, TensorPacking]) -> SliceManifest:
            return write_split(replace(layout, manifest=with_packings(layout.manifest, packings)), out, beside)

        return cls(layout.manifest, write, plans=layout.plans)

    def packed(self, packings: Mapping[str, TensorPacking]) -> _Cut:
        """Return the cut whose tensors travel so."""
        from har_edge.tflite.packed_cuts import with_packings

        return replace(self, manifest=with_packings(self.manifest, packings), packings=packings)


def _write(
    cut: _Cut,
    args: argparse.Namespace,
    task: Task | None,
    beside: Mapping[str, bytes],
    report: Report,
    predicted: Sequence[float],
) -> None:
    """Write slices, manifest, and the pipeline file with its companions unless a person's own file is there."""
    from har_edge.config.pipeline import generation_id, keep_existing
    from har_edge.config.pipeline_config import DEFAULT_NAME
    from har_edge.config.pipeline_writer import write_pipeline

    out: Path = args.out
    kept = keep_existing(out, cut.manifest, task)  # raises before anything is written
    for option, given in (("--reducer", args.reducer), ("--name", args.name), ("--delegate", args.delegate)):
        if kept and given is not None:
            raise ConfigError(
                f"nothing is written: {option} came, but {out / 'pipeline.toml'} is there and would be kept; change it "
                "by hand, or give a new folder with --out"
            )
    if task is None and args.name is not None:
        raise ConfigError("--name came, but no manifest says what this model is for, so no pipeline file is written")
    there = out.exists()
    manifest = cut.write(out, {} if kept else beside, cut.packings)
    report.add_slices(manifest, out, predicted, cut.plans)
    stateful = [str(number) for number, entry in enumerate(manifest.slices) if entry.stateful]
    if stateful:
        report.say(
            f"slices {', '.join(stateful)} keep state from one run to the next; stages refuse them unless the pipeline "
            'file says [task] state = "reset" (docs/how-to/own-model.md#state)'
        )
    if kept:
        report.say(f"kept {out / 'pipeline.toml'}, which fits these slices too")
    elif task is not None:
        try:
            write_pipeline(out, task, name=args.name or DEFAULT_NAME, delegate=args.delegate)
        except ConfigError:
            if not there:  # slices without their pipeline file would look like those of an unknown model
                shutil.rmtree(out, ignore_errors=True)
            raise
        report.say(f"the generation of these slices, `epoch` in pipeline.toml, is {generation_id(manifest)}")
        for line in _explain(task):
            report.say(line)
    else:
        report.say(
            "no manifest says what this model is for; to run the slices write pipeline.toml "
            "(docs/reference/pipeline-file.md), or cut it with --stream"
        )
        for output, labels in manifest.labels.items():
            report.say(f"the model names the {len(labels)} classes of {output}; [task] may leave its labels out")
    if any(entry.steps for entry in manifest.slices):
        report.say("nodes that know no shards refuse this folder")
    elif manifest.wire > 1:
        report.say("nodes older than wire version 3 refuse this folder; cut with --wire 1 where there are some")
    elif manifest.version > 1:
        report.say(
            "older nodes refuse this folder: something without a batch crosses, which they would drop; cut elsewhere"
        )
    if kept or task is not None:
        report.say(f"run each slice with: har-edge stage --config {out} --index N")


def _explain(task: Task) -> list[str]:
    """Say how pictures enter, and which outputs results carry."""
    from har_edge.config.anomaly_outputs import describe_anomaly

    lines = []
    if task.image is not None:
        image = task.image
        values = "as bytes" if not image.mean else f"as (byte - {list(image.mean)}) / {list(image.std)}"
        lines.append(f"pictures of {image.shape} enter {values}; others are made so by `{image.fit.value}`")
    if task.anomaly is not None:
        lines.append(describe_anomaly(task.anomaly))
    elif task.arrays:
        names = ", ".join(one.tensor for one in task.arrays)
        lines.append(f"results carry as arrays: {names}" + ("" if task.labels else "; no labels fit an output"))
    elif task.image is not None:
        lines.append(f"results name the best of {len(task.labels)} classes")
    return lines


def _require_schema() -> None:
    """Raise ModelError where the TFLite schema is missing, before the import of a runtime fails for another reason."""
    import har_edge.tflite.schema  # noqa: F401


def _list_methods(args: argparse.Namespace) -> int:
    """Print how many devices can share each operator."""
    from har_edge.cli.reports.split_methods import print_methods
    from har_edge.config.catalog import find_model
    from har_edge.inference.tensor_observation import open_model

    print_methods(open_model(find_model(args.model).path, args.delegate), as_json=args.json)
    return 0


def _refuse_contradictions(args: argparse.Namespace) -> None:
    splitting = args.split is not None or args.plan is not None
    cutting = args.at is not None or args.stages is not None or splitting
    if splitting and args.wire < 3:
        raise ConfigError(f"--wire {args.wire} came, but shards need messages of wire version 3; leave it out")
    if args.slices is not None and (cutting or args.list or args.methods or not args.check or args.out is not None):
        raise ConfigError("--slices proves the slices of a folder: it goes with --check, and with no cuts or --out")
    if args.methods and (args.check or args.out is not None):
        raise ConfigError("--methods lists what can be shared: it goes with no --check and no --out")
    if not (cutting or args.list or args.methods or args.check):
        raise ConfigError("nothing to do; give --list, --methods, --at, --stages, --split, --plan or --check")
    if cutting and args.out is None and not (splitting and args.check):
        raise ConfigError("--at, --stages, --split and --plan write slices; give the folder for them with --out DIR")
    if args.stages is not None and args.stages < 1:
        raise ConfigError(f"--stages {args.stages}: expected at least 1")
    if args.pack and not cutting:
        raise ConfigError(
            "--pack came without --at, --stages, --split or --plan; it says how the activations between slices travel"
        )
    if args.name is not None:
        from har_edge.protocol.topics import check_id

        check_id("--name", args.name)
        if not cutting:
            raise ConfigError(
                "--name came without --at, --stages, --split or --plan; it names the pipeline that these write"
            )


def _choose(model: Model, args: argparse.Namespace) -> tuple[list[int] | None, list[float]]:
    """Return the cuts to make, None for a list only, and the predicted seconds of each slice if measured."""
    if args.at is not None:
        return list(args.at), []
    if args.stages is None:
        return None, []
    from har_edge.runtime.slicing import plan_cuts

    plan = plan_cuts(
        model,
        args.stages,
        threads=args.threads,
        watch=lambda segments, total: follow(segments, total, "timing segments"),
        delegate=args.delegate,
    )
    return list(plan.cuts), list(plan.seconds)


def _split(model: Model, args: argparse.Namespace) -> SplitLayout | None:
    """Return how the devices share the model, None where it is not split."""
    from har_edge.runtime.slicing import lay_out

    if args.split is None and args.plan is None:
        return None
    return lay_out(model, args.split if args.plan is None else args.plan)
