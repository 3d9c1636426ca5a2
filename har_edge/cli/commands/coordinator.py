"""`har-edge coordinator`: place a model on the available nodes, and keep it running."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options, values
from har_edge.cli.arguments.model_task import ResolvedModel, add_flags, copy_with_files, resolve_model
from har_edge.cli.console import follow
from har_edge.cli.console import say as print_folded
from har_edge.cli.packed_slices import add_pack, find_packings
from har_edge.cli.trust import add_sign, open_signing_bus
from har_edge.units import duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from har_edge.config.pipeline_config import PipelineConfig
    from har_edge.config.task import Task
    from har_edge.coordinator.config import CoordinatorConfig
    from har_edge.coordinator.planner_thread import Planner
    from har_edge.coordinator.replan import PlacementSpec
    from har_edge.coordinator.shared_planner import SharedPlanner
    from har_edge.coordinator.split_planner import SplitPlanner
    from har_edge.inference.segment_timing import Segment
    from har_edge.mqtt.bus import Outgoing
    from har_edge.planner.profile import MessageCost, Profile
    from har_edge.protocol.deployment import Generation
    from har_edge.protocol.topics import Topics
    from har_edge.protocol.training_results import ModelNote
    from har_edge.runtime.status_publisher import Identity
    from har_edge.runtime.stop import Stop
    from har_edge.tflite.manifest import SliceManifest
    from har_edge.tflite.model import Model
    from har_edge.tflite.packed_cuts import PackingRequest
    from har_edge.tflite.packing import TensorPacking
    from har_edge.trust.keys import SigningKey

    PreparedModel = tuple[Identity, CoordinatorConfig, Planner | SharedPlanner | SplitPlanner]

HELP = "place a model on the available nodes, and keep it running when nodes come and go"

SWEEP_S = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        default=options.DEFAULT_MODEL,
        help=f".tflite file, or name of a shipped one (default: {options.DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--devices",
        type=Path,
        metavar="FILE",
        help="devices file with figures that nodes do not know of themselves (docs/reference/devices-file.md)",
    )
    parser.add_argument(
        "--objective",
        choices=("throughput", "latency"),
        default="throughput",
        help="most windows a second, or the shortest latency of one (default: throughput)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--stages", type=values.positive, metavar="N", help="number of slices (default: the best)")
    what.add_argument("--cuts", type=values.operator_indices, metavar="A,B", help="cut before these operators")
    what.add_argument(
        "--split", metavar="SPEC", help="share operators among nodes, as in `har-edge slice --split`; it stays so"
    )
    what.add_argument(
        "--shards",
        action="store_true",
        help="let nodes share layers where that gains; the plan follows the nodes that are there",
    )
    what.add_argument("--plan", type=Path, metavar="FILE", help="run what a plan of `har-edge plan --out FILE` says")
    parser.add_argument(
        "--replicas", type=values.positive, default=1, metavar="N", help="nodes that may share a stage (default: 1)"
    )
    parser.add_argument(
        "--margin",
        type=part,
        default=0.15,
        metavar="PART",
        help="predicted gain that justifies a change of cuts (default: 0.15)",
    )
    parser.add_argument(
        "--settle",
        type=values.seconds,
        default=10.0,
        metavar="S",
        help="seconds without a change before cuts may change (default: 10)",
    )
    parser.add_argument(
        "--local-brokers",
        action="store_true",
        help="send flows through the brokers that nodes carry (`node --own-broker`): each crosses one link less",
    )
    parser.add_argument(
        "--keep-model",
        action="store_true",
        help="deploy --model even where a training has rolled out another one in its place (train --deploy)",
    )
    add_sign(parser)
    options.add_wire(parser, None, "the lowest that carries the model (default), or 3 where no node is older")
    add_pack(parser)
    options.add_data(parser)
    options.add_reducer(parser, "what the sensors do to windows, instead of what the model's manifest says")
    options.add_delegate(parser, "xnnpack, with a plan that older nodes can read")
    add_flags(parser, deploys=True)
    options.add_pipeline(parser)
    options.add_quiet(parser)


def part(text: str) -> float:
    """Read a part of a whole: 0 or more, below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} came; expected a part such as 0.15, at least 0 and below 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Run the coordinator until it is stopped; return 3 when a younger one takes over."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="har-edge-") as folder:
        return _serve(args, Path(folder))


def _serve(args: argparse.Namespace, folder: Path) -> int:
    options.one_thread()
    options.start_logging(args)
    import time
    from functools import partial

    from har_edge.config.pipeline_config import BrokerConfig
    from har_edge.coordinator.coordinator import NAME, Coordinator
    from har_edge.coordinator.model_replacement import ModelReplacer, ModelWatch
    from har_edge.coordinator.planner_thread import PlannerThread
    from har_edge.coordinator.service import run_coordinator
    from har_edge.mqtt.address import neighbour_address
    from har_edge.mqtt.bus import Session, TakenOver
    from har_edge.protocol.text import escape
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.status_publisher import Identity
    from har_edge.runtime.stop import Stop
    from har_edge.trust.keys import load_key

    stop = Stop().catch_signals()
    topics = Topics(args.base, args.pipeline)
    client = options.chosen_client(args, BrokerConfig()).value
    known = _find_model(args, folder)
    identity = Identity(topics, NAME, NAME, client)
    setup, planner = _prepare(args, identity, known)
    central = options.find_address(args, BrokerConfig(), Path())
    key = None if args.sign_key is None else load_key(args.sign_key)

    def delete_session(client_id: str, url: str) -> None:
        """End a session at a broker by taking it over for a moment."""
        address = neighbour_address(central, url) if url else central
        found = options.reach_address(args, address, Session(client_id, clean_start=True))
        deadline = time.monotonic() + SWEEP_S
        while not found.connected and time.monotonic() < deadline:
            found.poll(0.1)
        found.close(forget=True)

    def say(text: str) -> None:
        print_folded(f"{time.strftime('%H:%M:%S')} {escape(text)}", 9)

    def prepare(note: ModelNote) -> PreparedModel:
        return _prepare_replacement(args, topics, client, folder, known, note, stop)

    bus = options.reach(args, identity.session(expiry_s=0))
    keeps = args.keep_model or key is not None  # nobody signs the models of trainings
    watch = None if keeps else ModelWatch(partial(options.reach, args), topics, f"models-{identity.instance}")
    say(f"coordinator of {topics.base}/{topics.pipeline}: {args.model}; MQTT client: {identity.client}")
    say(_signed_by(key, topics))
    while True:
        planner_thread = PlannerThread(planner.plan, delete_session)
        replacer = None if watch is None else ModelReplacer(watch, setup.model_sha256, prepare, say)
        coordinator, signing = Coordinator(setup, time.monotonic()), None
        if key is not None:
            signing, identity.signer = open_signing_bus(bus, topics, key), key.public
            coordinator.outdo = signing.outdo
        try:
            run_coordinator(signing or bus, coordinator, identity, planner_thread, stop, say, replacer)
        except TakenOver:
            print("coordinator: a younger coordinator of this pipeline has taken over; ending", file=sys.stderr)
            return options.EXIT_TAKEN_OVER
        planner_thread.close()
        if replacer is None or replacer.ready is None or stop.asked:
            break
        identity, setup, planner = replacer.ready
        bus = options.reach(args, identity.session(expiry_s=0))
    if watch is not None:
        watch.close()
    say("coordinator stopped; what is deployed runs on")
    return 0


def _signed_by(key: SigningKey | None, topics: Topics) -> str:
    """Say whether this deployment is signed."""
    if key is None:
        return (
            f"plans are unsigned: nodes follow whoever may publish at {topics.plan()} (`har-edge keys new FILE`, then "
            "--sign-key FILE, signs them)"
        )
    return f"plans are signed: nodes verify them with --trust ed25519:{key.public}; models of trainings are not taken"


def _find_model(args: argparse.Namespace, folder: Path) -> ResolvedModel:
    """Return the model that the options name; files with other names on the nodes are copied into `folder`."""
    from har_edge.codecs.spec import file_names
    from har_edge.config.catalog import find_model

    known = resolve_model(args, find_model(args.model))
    specs = options.chosen_reducers(args.reducer, known.task.inputs)
    return copy_with_files(known, folder, [name for spec in specs.values() for name in file_names(spec)])


def _prepare_replacement(
    args: argparse.Namespace,
    topics: Topics,
    client: str,
    folder: Path,
    known: ResolvedModel,
    note: ModelNote,
    stop: Stop,
) -> PreparedModel:
    """Fetch the model that a training rolls out, and prepare it for the task of the one that runs.

    A process of its own runs the file first. Raises HarEdgeError for a file that does not come, or does not fit.
    """
    from dataclasses import replace

    from har_edge.config.catalog import FoundModel
    from har_edge.coordinator.coordinator import NAME
    from har_edge.coordinator.model_replacement import check_replacement
    from har_edge.files import write_atomic
    from har_edge.inference.load_check import default_check
    from har_edge.protocol.topics import TrainingTopics
    from har_edge.runtime.artifact_store import Store, default_folder
    from har_edge.runtime.artifacts import fetch, fetch_session
    from har_edge.runtime.status_publisher import Identity
    from har_edge.tflite.model import read_model

    store = Store(default_folder())
    bus = options.reach(args, fetch_session())
    try:
        fetch(bus, TrainingTopics(topics.base, topics.pipeline), [note.sha256], store, lambda: stop.asked, note.size)
    finally:
        bus.close(forget=True)
    content = store.path(note.sha256).read_bytes()
    default_check()(content, f"the model of training {note.run}")
    check_replacement(read_model(content), known.task)
    path = folder / f"{note.run}.tflite"
    write_atomic(path, content)
    identity = Identity(topics, NAME, NAME, client)
    setup, planner = _prepare(args, identity, replace(known, found=FoundModel(path, note.sha256, None)))
    return identity, setup, planner


def _prepare(
    args: argparse.Namespace, identity: Identity, known: ResolvedModel
) -> tuple[CoordinatorConfig, Planner | SharedPlanner | SplitPlanner]:
    """Read the model and its files."""
    import hashlib
    from dataclasses import replace

    import msgspec

    from har_edge.config.model_state import starts_fresh
    from har_edge.config.pipeline import generation_id
    from har_edge.config.pipeline_config import PipelineConfig
    from har_edge.coordinator.config import CoordinatorConfig
    from har_edge.coordinator.planner_thread import Planner
    from har_edge.coordinator.shared_planner import SharedPlanner
    from har_edge.coordinator.split_planner import SplitPlanner, placeable_homes
    from har_edge.errors import ConfigError
    from har_edge.inference.tensor_observation import open_model
    from har_edge.planner.devices import load_devices
    from har_edge.planner.flow_choice import AUTO, LOSSLESS
    from har_edge.protocol.deployment import VERSION, Deployment, check_deployment
    from har_edge.runtime.slicing import lay_out, read_companions, settle_reducers
    from har_edge.tflite.model import gather_outputs, with_sent_bytes
    from har_edge.tflite.packed_cuts import with_packings
    from har_edge.tflite.split.plan_file import load_plan
    from har_edge.tflite.state import state_of

    specs = options.chosen_reducers(args.reducer, known.task.inputs)
    found = known.found
    model, beside, spec = open_model(found.path, args.delegate), known.beside, _wish(args)
    starts_fresh(state_of(model), known.task, f"model {found.path}")
    task = settle_reducers(model, known.task, specs, beside)
    model = gather_outputs(model, task.results) if task.gathers else model
    if task.image is not None:
        model = with_sent_bytes(model, {one.tensor: task.image.shape.bytes for one in task.inputs.values()})
    if Path(task.stream.description).is_absolute():
        raise ConfigError(
            f"the task names the stream description {task.stream.description}, which nodes do not have; put it beside "
            "the model and name it without a folder"
        )
    files = read_companions(task, beside)
    config = PipelineConfig(task, name=args.pipeline, base=args.base, delegate=args.delegate or msgspec.UNSET)
    devices = load_devices(args.devices) if args.devices else None
    planner: Planner | SharedPlanner | SplitPlanner
    packings: dict[str, TensorPacking] = {}
    parts = frozenset[str]()
    if args.split is not None or args.plan is not None:
        layout = lay_out(model, args.split if args.plan is None else args.plan)
        packings, calibrated = find_packings(model, layout.manifest, task, beside, args) if args.pack else ({}, "")
        parts = frozenset(part for one in packings.values() for part in one.parts)
        layout = replace(layout, manifest=with_packings(layout.manifest, packings))
        if calibrated:
            print_folded(f"int8 activations are calibrated on {calibrated}")
        homes = placeable_homes(load_plan(args.plan), layout.manifest, task) if args.plan is not None else ()
        planner = SplitPlanner(model, layout, partial(_profile, args), devices, args.devices or Path(), homes=homes)
        spec = replace(spec, split=(generation_id(planner.manifest), len(planner.manifest.slices)), homes=homes)
    elif args.pack and not args.shards:
        raise ConfigError("--pack came without --split, --plan or --shards; it packs the activations of shards")
    else:
        planner = Planner(model, spec, partial(_profile, args), devices, args.devices or Path(), wire=args.wire)
        if args.shards:
            ways = _ways(args)
            parts = frozenset(part for way in ways for part in (LOSSLESS if way == AUTO else way).split("+"))
            planner = SharedPlanner(planner, ways, partial(_pack, args, model, task, beside), args.local_brokers)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    # A plan that nodes cannot read is refused here, not by each of them.
    check_deployment(Deployment(VERSION, 0, identity.instance, identity.started, config, files=hashes))
    setup = CoordinatorConfig(
        topics=identity.topics,
        config=config,
        model_sha256=model.sha256,
        hashes=hashes,
        files=files,
        author=identity.instance,
        started=identity.started,
        first_epoch=int(identity.started),
        spec=spec,
        margin=args.margin,
        settle_s=args.settle,
        probe=lambda generation, stream, number: _probe(config, generation, stream, number, beside),
        local_brokers=args.local_brokers,
        packings=parts,
    )
    return setup, planner


def _profile(args: argparse.Namespace, model: Model) -> Profile:
    """Return the profile of the model on this machine; messages are measured on a broker of this command's own."""
    import time

    from har_edge.cli.commands.profile import device_name, measure_through_broker
    from har_edge.coordinator.planner_thread import reference_profile

    device = device_name(None)
    alone = argparse.Namespace(broker=None, client=args.client, protocol=args.protocol, delegate=args.delegate)

    def watch(segments: Iterable[Segment], total: int) -> Iterable[Segment]:
        """Print what takes so long, and how long it took."""
        began = time.monotonic()
        print_folded(f"timing {model.name} here, for the planner: the first plan comes after that")
        yield from follow(segments, total, "timing segments")
        print(f"timed {model.name} in {duration(time.monotonic() - began)}", flush=True)

    def messages() -> MessageCost | None:
        print("measuring what messages cost, on a broker of our own", flush=True)
        return measure_through_broker(alone, device, model, [])[0]

    return reference_profile(model, device, messages, watch, args.delegate)


def _ways(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the ways to pack that --shards may use. Raises ConfigError for one that names a cut."""
    from har_edge.errors import ConfigError
    from har_edge.planner.flow_choice import AUTO

    for request in args.pack or ():
        if request.cut is not None:
            way = "+".join(request.packing.parts)
            raise ConfigError(
                f"--pack {way}@{request.cut} came with --shards, which chooses the cuts; leave out @{request.cut}"
            )
    named = (AUTO if request.planned else "+".join(request.packing.parts) for request in args.pack or ())
    return tuple(dict.fromkeys(named))


def _pack(
    args: argparse.Namespace,
    model: Model,
    task: Task,
    beside: Path,
    manifest: SliceManifest,
    requests: Sequence[PackingRequest],
) -> Mapping[str, TensorPacking]:
    """Return how the tensors of slices travel, packed as a plan asks for."""
    wanted = argparse.Namespace(**{**vars(args), "pack": list(requests)})
    return find_packings(model, manifest, task, beside, wanted)[0]


def _wish(args: argparse.Namespace) -> PlacementSpec:
    from har_edge.coordinator.replan import PlacementSpec
    from har_edge.planner.plan import Objective

    cuts = None if args.cuts is None else tuple(sorted(set(args.cuts)))
    return PlacementSpec(Objective(args.objective), args.stages, cuts, args.replicas, shards=args.shards)


def _probe(config: PipelineConfig, generation: Generation, stream: str, number: int, beside: Path) -> list[Outgoing]:
    """Return the messages of a probe; files of the task lie beside the model."""
    import time

    from har_edge.config.pipeline import assemble
    from har_edge.config.pipeline_config import FILE_NAME
    from har_edge.runtime.probe import probe

    pipeline = assemble(config, generation.manifest, beside / FILE_NAME)
    return probe(pipeline, generation.epoch, stream, time.time(), number)
