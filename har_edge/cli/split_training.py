"""`har-edge train --on-devices --split`: train one model over several nodes, each with the weights of its stages."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.cli.console import say
from har_edge.cli.device_training import (
    LINK_MESSAGES,
    USUAL_LINK,
    fetch_checkpoint,
    live_view,
    name_of_run,
)
from har_edge.errors import BrokerError, ConfigError
from har_edge.protocol.text import with_origin
from har_edge.units import duration, plural, speed

if TYPE_CHECKING:
    from har_edge.cli.training_inputs import TrainingInputs
    from har_edge.learning.data.datasets import Dataset
    from har_edge.learning.known_run import KnownRun
    from har_edge.learning.preparation import TrainableModel
    from har_edge.learning.published_files import PublishedFiles
    from har_edge.learning.split.server import SplitServer
    from har_edge.learning.split.server_settings import SplitPlanner, SplitSettings
    from har_edge.learning.split.state import WholeState
    from har_edge.mqtt.bus import PollableBus
    from har_edge.planner.training_devices import SplitDevice
    from har_edge.protocol.split_training import SplitJob, SplitTrainingPlan
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.artifact_store import Store
    from har_edge.runtime.stop import Stop
    from har_edge.tflite.gradient.spec import TrainingSpec

# Samples of a run of the probe that nodes time: LeNet-5, whose files are a few kilobytes.
_PROBE_BATCH = 8
# The run ended before its last epoch: what there is was written.
EXIT_INCOMPLETE = 1


@dataclass(frozen=True, slots=True)
class _Run:
    """The parts of a run that its steps pass on to each other."""

    args: argparse.Namespace
    topics: Topics
    inputs: TrainingInputs
    store: Store

    @property
    def trainable(self) -> TrainableModel:
        """The model with its weights."""
        return self.inputs.trainable

    @property
    def train(self) -> Dataset:
        """The samples to train on."""
        return self.inputs.data.train

    @property
    def test(self) -> Dataset:
        """The samples to test with."""
        return self.inputs.data.test


def run_split(args: argparse.Namespace) -> int:
    """Train, print the figures as they come, and write the model, its record and a table."""
    options.one_thread()
    options.start_logging(args)
    from har_edge.cli.deploy_trained import check_deployable
    from har_edge.cli.training_inputs import open_inputs
    from har_edge.learning.preparation import initialise
    from har_edge.learning.split.state import WholeState
    from har_edge.learning.updates.vectors import unflatten
    from har_edge.protocol.topics import Topics, check_id
    from har_edge.runtime.artifact_store import LIMIT_BYTES, Store, default_folder
    from har_edge.runtime.stop import Stop

    check_split_options(args)
    topics, stop = Topics(args.base, args.pipeline), Stop().catch_signals()
    run = check_id("name of the training", args.run_name or name_of_run(args.model))
    inputs = open_inputs(args)
    trainable = inputs.trainable
    weights = initialise(trainable.weights, trainable.spec, args.seed) if args.from_scratch else trainable.weights
    say(f"model: {Path(args.model).name}, {trainable.spec.elements} weights in {len(trainable.spec.weights)} tensors")
    parts = _Run(args, topics, inputs, Store(args.cache or default_folder(), LIMIT_BYTES))
    say(f"data: {parts.train.origin}; {plural(len(parts.test), 'sample')} held out ({inputs.data.how})")
    if args.deploy:
        check_deployable(args, topics, trainable.model, parts.train)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = make_settings(parts, run)
    whole = WholeState(0, {name: values.copy() for name, values in unflatten(weights, trainable.spec.weights).items()})
    bus, server, files = open_server(parts, settings, whole)
    try:
        if not server.ended:
            follow(parts, bus, server, files, stop)
    finally:
        bus.close(forget=True)
        store_record(args, server)
    return write_results(parts, server, stop)


def check_split_options(args: argparse.Namespace) -> None:
    """Raise ConfigError for what a training in stages does not have."""
    from har_edge.cli.training_inputs import check_options

    check_options(args)
    given = {
        "--own-data": args.own_data,
        "--clip": args.clip,
        "--noise": args.noise,
        "--global-batch": args.global_batch,
        "--local-steps": args.local_steps,
        "--compress": args.compress not in ("auto", "none"),
        "--mode": args.mode != "auto",
        "--int8": args.int8,
    }
    came = [name for name, value in given.items() if value]
    if came:
        raise ConfigError(
            f"--split came with {', '.join(came)}, which a training in stages does not have; leave it out"
        )


def make_settings(parts: _Run, run: str) -> SplitSettings:
    """Return the settings of the command, for a link of the usual speed."""
    from har_edge.learning.optimizers.optimizers import make_optimizer
    from har_edge.learning.optimizers.rates import with_steps
    from har_edge.learning.server.settings import TrainingFigures
    from har_edge.learning.split.batches import BatchOrder
    from har_edge.learning.split.server_settings import SplitSettings
    from har_edge.learning.split.thread import time_probe

    args, train = parts.args, parts.train
    order, epochs = BatchOrder(len(train), args.batch, args.seed), args.epochs or 10
    optimizer = with_steps(args.optimizer, epochs * order.steps_an_epoch)
    make_optimizer(optimizer, 1)
    job, probe, spec = make_job(parts, run)
    return SplitSettings(
        parts.topics,
        job,
        order,
        epochs=epochs,
        optimizer=optimizer,
        planner=make_planner(parts),
        model_sha256=hashlib.sha256(bytes(parts.trainable.model.data)).hexdigest(),
        workers=args.workers,
        wait_s=args.wait,
        checkpoint_s=args.checkpoint_every,
        link_bytes_per_s=USUAL_LINK,
        probe_s=time_probe(probe, spec) if args.profile is None else 0.0,
        layout=parts.trainable.layout,
        figures=TrainingFigures(Path(args.model).name[:400], train.name[:400], train.real, "", len(parts.test)),
    )


def make_job(parts: _Run, run: str) -> tuple[SplitJob, bytes, TrainingSpec]:
    """Return the job, and the probe with its description."""
    from har_edge.learning.lenet import write_lenet5
    from har_edge.learning.preparation import store_files
    from har_edge.protocol.split_training import SplitJob
    from har_edge.tflite.gradient.losses import Loss
    from har_edge.tflite.gradient.training_graph import write_training_graph
    from har_edge.tflite.model import read_model

    probe = write_training_graph(read_model(bytes(write_lenet5())), batch=_PROBE_BATCH, loss=Loss.CROSS_ENTROPY)
    graph, spec = store_files(parts.store, [bytes(probe.data), probe.spec.encode()])
    job = SplitJob(
        run=run,
        author=f"train-{secrets.token_hex(6)}",
        started=time.time(),
        probe=graph,
        probe_spec=spec,
        model=Path(parts.args.model).name[:400],
        data=parts.train.name[:400],
    )
    return job, bytes(probe.data), probe.spec


def make_planner(parts: _Run) -> SplitPlanner:
    """Return what chooses the stages, from times measured on this device or in --profile; it prints its choice."""
    from har_edge.cli.reports.split_training import print_planned_training
    from har_edge.cli.training_plans import find_training_profile, make_problem
    from har_edge.planner.devices import BrokerLink
    from har_edge.planner.training_plan import plan_training, training_planner

    args = parts.args
    profile = find_training_profile(parts.trainable.model, args.profile, args.loss)
    problem = make_problem(args, profile, (), BrokerLink())
    planner = training_planner(problem)
    shown: list[SplitTrainingPlan] = []

    def plan(devices: tuple[SplitDevice, ...]) -> SplitTrainingPlan:
        known = tuple(replace(one, memory_bytes=one.memory_bytes or args.memory) for one in devices)
        if not shown:
            asked = replace(problem, devices=known)
            planned = plan_training(asked)
            print_planned_training(planned, asked)
            shown.append(planned.plan)
            return planned.plan
        return planner(known)

    return plan


def open_server(
    parts: _Run, settings: SplitSettings, whole: WholeState
) -> tuple[PollableBus, SplitServer, PublishedFiles]:
    """Connect, see that no training of this name is alive, measure the link, and go on from a checkpoint if any."""
    from msgspec import structs

    from har_edge.config.pipeline_config import BrokerConfig
    from har_edge.learning.known_run import KnownRun, look_for_run, look_session, refuse_second
    from har_edge.learning.published_files import PublishedFiles
    from har_edge.learning.split.files import ModelStages
    from har_edge.learning.split.server import SplitServer
    from har_edge.mqtt.bus import Session
    from har_edge.mqtt.measure.link_benchmark import benchmark_link
    from har_edge.protocol.topics import TrainingTopics
    from har_edge.protocol.training import MAX_ROUND_BYTES
    from har_edge.tflite.gradient.losses import Loss

    args, topics, job = parts.args, settings.topics, settings.job
    look, found, link = options.reach(args, look_session(job.run, job.author)), KnownRun("", None), USUAL_LINK
    try:
        found = look_for_run(look, topics, job.run)
        refuse_second(found, job.run)
        link = benchmark_link(look, topics.activation(0, "link", job.author), count=LINK_MESSAGES).bytes_per_s / 2
    except BrokerError as error:
        say(f"the link was not measured, {speed(link)} are assumed: {error}")
    finally:
        look.close(forget=True)
    address = options.find_address(args, BrokerConfig(), Path())
    say(f"broker: {address.url}, {speed(link)} each way; training {job.run}, waiting for nodes")
    job = structs.replace(job, started=min(1e12, max(job.started, found.started + 1)))
    figures = replace(settings.figures, broker=address.url[:400])
    settings = replace(settings, job=job, link_bytes_per_s=link, figures=figures)
    files = PublishedFiles(
        TrainingTopics(topics.base, topics.pipeline), lambda sha256: parts.store.path(sha256).read_bytes()
    )
    files.add([job.probe, job.probe_spec])
    writer = ModelStages(parts.trainable.model, Loss(args.loss), parts.store, files)
    server = SplitServer(settings, writer, whole, parts.train, time.monotonic())
    resume(parts, server, found)
    session = Session(
        f"{topics.base}.{topics.pipeline}.train.{job.run}",
        clean_start=True,
        receive_max=4096,
        max_packet_bytes=MAX_ROUND_BYTES + 4096,
    )
    return options.reach(args, session), server, files


def checkpoint_path(args: argparse.Namespace, run: str) -> Path:
    """Return the file of a run's checkpoint."""
    folder: Path = args.out
    return folder / f"{run}.split.checkpoint"


def resume(parts: _Run, server: SplitServer, known: KnownRun) -> None:
    """Go on from the checkpoint on the disk, or else from the one at the broker, unless told to begin anew."""
    from har_edge.learning.server.checkpoints import load_checkpoint
    from har_edge.learning.split.checkpoint import read_split_checkpoint, whole_of

    settings = server.settings
    path = checkpoint_path(parts.args, settings.job.run)
    content, where = None if parts.args.fresh else load_checkpoint(path), str(path)
    if content is None and not parts.args.fresh and known.note is not None and known.note.settings == settings.hash:
        content, where = fetch_checkpoint(parts.args, settings.topics, known, parts.store), "the broker"
    if content is None:
        return
    found = read_split_checkpoint(content, settings.hash, settings.job.run)
    server.restore(whole_of(found, parts.trainable.spec.weights), found)
    if server.ended:
        if (parts.args.out / f"{settings.job.run}.tflite").exists():
            raise ConfigError(
                f"training {settings.job.run!r} has finished {plural(settings.epochs, 'epoch')} ({where}); ask for "
                "more with --epochs, or begin anew with --fresh"
            )
        say(f"the run was finished before ({where}); the model is written from it")
        return
    say(f"goes on from {where}: step {found.step}")


def follow(parts: _Run, bus: PollableBus, server: SplitServer, files: PublishedFiles, stop: Stop) -> None:
    """Run the server until it has ended, and show how far it is."""
    from har_edge.learning.server.held_out import EvaluationThread, HeldOutSamples
    from har_edge.learning.split.service import SplitService, run_split_training

    trainable = parts.trainable
    held_out = HeldOutSamples(
        trainable.model,
        trainable.spec.weights,
        parts.test,
        classes=bool(trainable.classes),
        layout=trainable.layout,
    )
    evaluation = EvaluationThread(held_out.score, len(parts.test))
    view, show = live_view()
    with view:
        service = SplitService(
            bus,
            server,
            files,
            evaluation,
            trainable.spec.weights,
            checkpoint_path(parts.args, server.settings.job.run),
            say,
            show,
        )
        stored = files.read
        files.read = lambda sha256: service.content(sha256) or stored(sha256)
        run_split_training(service, stop)


def store_record(args: argparse.Namespace, server: SplitServer) -> None:
    """Write the record of the run, whatever became of it."""
    import msgspec

    from har_edge.files import write_atomic

    if server.record.steps or server.record.recoveries:
        path = args.out / f"{server.settings.job.run}.record.json"
        write_atomic(path, msgspec.json.encode(server.record))
        say(f"{path}: {plural(len(server.record.steps), 'step')}")


def write_results(parts: _Run, server: SplitServer, stop: Stop) -> int:
    """Write what there is and say so; return the exit code."""
    from har_edge.cli.deploy_trained import deploy
    from har_edge.cli.reports.training_files import say_unfinished, store_trained
    from har_edge.protocol.training import RunState
    from har_edge.tflite.gradient.weights import replace_weights
    from har_edge.tflite.model import read_model

    args, run, record = parts.args, server.settings.job.run, server.record
    finished, step = server.state is RunState.FINISHED, server.whole.step
    if not finished:
        say_unfinished(server.problem, checkpoint_path(args, run))
    content = b""
    if step:
        content = bytes(replace_weights(parts.trainable.model, server.whole.weights))
        store_trained(args, content, f"{run}.tflite", f"float32 after {plural(step, 'step')}", parts.inputs)
    if record.steps:
        seconds = record.steps[-1].seconds
        counted = sum(row.samples for row in record.steps)
        rate = counted / seconds if seconds else 0.0
        say(
            f"{plural(counted, 'sample')} counted in {duration(seconds)}, {rate:.1f} samples/s; nodes waited "
            f"{100 * record.idle_share:.0f} % of the time"
        )
    lost = sum(row.lost_steps for row in record.recoveries)
    if record.recoveries:
        say(f"went back {plural(len(record.recoveries), 'time')}: {plural(lost, 'step')} computed again")
    if record.scores:
        score = record.scores[-1]
        data = with_origin(parts.train.name, real=parts.train.real)
        say(
            f"accuracy {score.accuracy:.4f} on {score.samples} held-out samples of {data} after "
            f"epoch {score.epoch}; broker {server.settings.figures.broker}"
        )
    if finished:
        model = read_model(content) if args.deploy else None
        if model is None or deploy(args, parts.topics, run, content, model, parts.train, stop):
            return 0
        return EXIT_INCOMPLETE
    return 128 + stop.signal if stop.asked else EXIT_INCOMPLETE
