"""`har-edge train --on-devices`: train a .tflite model with the nodes that are there."""

from __future__ import annotations

import argparse
import math
import re
import secrets
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.cli.console import say
from har_edge.errors import BrokerError, ConfigError
from har_edge.units import plural, speed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from har_edge.cli.training_inputs import TrainingInputs
    from har_edge.cli.version_offer import LiveWatch
    from har_edge.learning.data.datasets import Dataset
    from har_edge.learning.known_run import KnownRun
    from har_edge.learning.preparation import TrainableModel
    from har_edge.learning.quantization.tensor_ranges import TensorRanges
    from har_edge.learning.server.checkpoints import Checkpoint
    from har_edge.learning.server.held_out import EvaluationThread, HeldOutSamples
    from har_edge.learning.server.server import TrainingServer
    from har_edge.learning.server.settings import ServerSettings
    from har_edge.learning.updates.vectors import Vector
    from har_edge.mqtt.bus import PollableBus
    from har_edge.protocol.topics import Topics
    from har_edge.protocol.training import TrainingJob, TrainingProgress
    from har_edge.runtime.artifact_store import Store
    from har_edge.runtime.stop import Stop

# Chosen with the mode and the number of workers (learning/server/recipes.py).
DEFAULT_OPTIMIZER = "auto"
# Bytes a second that are assumed of a link that could not be measured: 94 Mbit/s.
USUAL_LINK = 11.75e6
# Messages of 64 KiB that measure the link.
LINK_MESSAGES = 100
# Between two lines of progress where no terminal shows it live.
_LINE_S = 10.0


def run_on_devices(args: argparse.Namespace) -> int:
    """Train, print the figures as they come, and write the model, a table and a chart."""
    options.one_thread()
    options.start_logging(args)
    from har_edge.cli.deploy_trained import check_deployable
    from har_edge.cli.reports.training_files import write_results
    from har_edge.cli.training_inputs import check_options, open_inputs
    from har_edge.cli.version_offer import LiveWatch
    from har_edge.learning.preparation import initialise
    from har_edge.learning.server.held_out import EvaluationThread, HeldOutSamples
    from har_edge.protocol.topics import Topics, check_id
    from har_edge.runtime.artifact_store import LIMIT_BYTES, Store, default_folder
    from har_edge.runtime.stop import Stop

    check_options(args)
    topics, stop = Topics(args.base, args.pipeline), Stop().catch_signals()
    run = check_id("name of the training", args.run_name or name_of_run(args.model))
    inputs = open_inputs(args)
    trainable, train, test = inputs.trainable, inputs.data.train, inputs.data.test
    weights = initialise(trainable.weights, trainable.spec, args.seed) if args.from_scratch else trainable.weights
    say(f"model: {_title(args)}, {trainable.spec.elements} weights in {len(trainable.spec.weights)} tensors")
    say(f"data: {train.origin}; {plural(len(test), 'sample')} held out ({inputs.data.how})")
    if args.deploy:
        check_deployable(args, topics, trainable.model, train)
    store = Store(args.cache or default_folder(), LIMIT_BYTES)
    settings = make_settings(args, topics, make_job(args, run, trainable, train, store), train, len(test))
    args.out.mkdir(parents=True, exist_ok=True)
    live = LiveWatch(args, topics) if args.deploy and args.trial else None
    bus, settings, server, before = open_server(args, settings, weights, store)
    held_out = HeldOutSamples(
        trainable.model, trainable.spec.weights, test, classes=bool(trainable.classes), layout=trainable.layout
    )
    try:
        evaluation = EvaluationThread(held_out.score, len(test))
        ranges = follow(args, bus, server, store, evaluation, stop, before, inputs)
    finally:
        bus.close(forget=True)
    code = write_results(args, server, inputs, stop)
    try:
        return code or finish_model(args, topics, server, inputs, ranges, held_out, stop, live)
    finally:
        if live is not None:
            live.close()


def finish_model(
    args: argparse.Namespace,
    topics: Topics,
    server: TrainingServer,
    inputs: TrainingInputs,
    ranges: TensorRanges | None,
    held_out: HeldOutSamples,
    stop: Stop,
    live: LiveWatch | None,
) -> int:
    """Quantise and roll out the model of a training that has finished, as asked; return the exit code."""
    from har_edge.cli.int8_result import write_int8
    from har_edge.cli.reports.training_files import EXIT_INCOMPLETE, trained_content
    from har_edge.cli.version_offer import offer_trained

    run, content = server.settings.job.run, trained_content(server, inputs)
    if args.int8:
        made = write_int8(args, run, content, ranges, inputs, held_out)
        if made is None:
            return EXIT_INCOMPLETE
        content = made if args.deploy == "int8" else content
    if not args.deploy or offer_trained(args, topics, run, content, inputs, held_out, live, stop):
        return 0
    return EXIT_INCOMPLETE


def _title(args: argparse.Namespace) -> str:
    return Path(args.model).name


def name_of_run(model: str | Path) -> str:
    """Return the name of a training that was given none: that of its model."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "-", Path(model).stem).strip("-") or "training"


def make_job(
    args: argparse.Namespace, run: str, trainable: TrainableModel, train: Dataset, store: Store
) -> TrainingJob:
    """Return the job, its files in the store. Raises ConfigError for samples that make too many blocks."""
    from har_edge.learning.preparation import store_blocks, store_files
    from har_edge.learning.privacy import check_privacy
    from har_edge.protocol.masks import MASKED_VERSION
    from har_edge.protocol.training import TrainingJob
    from har_edge.protocol.training_fields import VERSION

    graph, spec = store_files(store, [trainable.graph, trainable.spec.encode()])
    job = TrainingJob(
        version=MASKED_VERSION if args.secure else VERSION,
        run=run,
        author=f"train-{secrets.token_hex(6)}",
        started=time.time(),
        graph=graph,
        spec=spec,
        batch=args.batch,
        parameters=trainable.spec.elements,
        shape=trainable.shape,
        classes=train.classes,
        blocks=() if args.own_data else store_blocks(store, train, args.seed),
        own=args.own_data,
        compress="none" if args.secure else args.compress,
        seed=args.seed,
        clip=args.clip or 0.0,
        noise=args.noise / math.sqrt(args.workers),  # each adds its share: the sum has all of it
        mask=args.secure,
        data=train.name[:400],
        sources=train.sources if trainable.layout.widths else (),
    )
    check_privacy(job)
    if hint := topk_hint(args.compress, args.optimizer, args.mode):
        say(hint)
    return job


def topk_hint(compress: str, optimizer: str, mode: str) -> str:
    """Return what speaks against an optimizer with top-k; "" for nothing. Values that come late keep a momentum up."""
    if (
        compress.startswith("topk")
        and not optimizer.startswith(("sgd", DEFAULT_OPTIMIZER))
        and mode in ("auto", "sync")
    ):
        return "top-k loses accuracy with momentum at the server (--mode sync): take --optimizer sgd:lr=0.3,warmup=50"
    return ""


def make_settings(
    args: argparse.Namespace, topics: Topics, job: TrainingJob, train: Dataset, held_out: int
) -> ServerSettings:
    """Return the settings of the server, for a link of the usual speed."""
    from har_edge.learning.server.modes import TrainingMode, parse_mode
    from har_edge.learning.server.settings import ServerSettings, TrainingFigures

    mode, number = parse_mode(args.mode)
    figures = TrainingFigures(_title(args)[:400], train.name[:400], train.real, "", held_out)
    return ServerSettings(
        topics,
        job,
        epochs=args.epochs or 10,
        optimizer=args.optimizer,
        mode=mode,
        server_optimizer=args.server_optimizer,
        least_budget_s=args.budget,
        local_steps=number if mode is TrainingMode.LOCAL else args.local_steps,
        staleness=number if mode is TrainingMode.STALE and number else 2,
        global_batch=args.global_batch,
        workers=args.workers,
        wait_s=args.wait,
        # A restarted run would forget the privacy that rounds after the last checkpoint spent.
        checkpoint_s=0.0 if args.noise else args.checkpoint_every,
        delta=args.delta,
        link_bytes_per_s=USUAL_LINK,
        by_speed=args.shares == "speed",
        decays=args.loss == "cross-entropy",
        figures=figures,
    )


def open_server(
    args: argparse.Namespace, settings: ServerSettings, weights: Vector, store: Store
) -> tuple[PollableBus, ServerSettings, TrainingServer, KnownRun]:
    """Connect, see that no training of this name is alive, measure the link, and go on from a checkpoint if any."""
    from dataclasses import replace

    from msgspec import structs

    from har_edge.config.pipeline_config import BrokerConfig
    from har_edge.learning.known_run import KnownRun, look_for_run, look_session, refuse_second
    from har_edge.learning.server.server import TrainingServer
    from har_edge.mqtt.bus import Session
    from har_edge.mqtt.measure.link_benchmark import benchmark_link
    from har_edge.protocol.training import MAX_ROUND_BYTES

    job, topics = settings.job, settings.topics
    look = options.reach(args, look_session(job.run, job.author))
    found = KnownRun("", None)
    try:
        found = look_for_run(look, topics, job.run)
        refuse_second(found, job.run)
        # Megabytes, since links that are shaped let the first hundreds of kilobytes pass at once.
        link = benchmark_link(look, topics.activation(0, "link", job.author), count=LINK_MESSAGES).bytes_per_s / 2
    except BrokerError as error:
        say(f"the link was not measured, {speed(USUAL_LINK)} are assumed: {error}")
        link = USUAL_LINK
    finally:
        look.close(forget=True)
    address = options.find_address(args, BrokerConfig(), Path())
    say(f"broker: {address.url}, {speed(link)} each way; training {job.run}, waiting for nodes")
    figures = replace(settings.figures, broker=address.url[:400])
    # Later than the job that a server has left whose clock was ahead (TrainingServer.rival).
    job = structs.replace(job, started=min(1e12, max(job.started, found.started + 1)))
    settings = replace(settings, job=job, link_bytes_per_s=link, figures=figures)
    server = TrainingServer(settings, weights.copy(), time.monotonic())
    resume(args, server, found, store)
    session = Session(
        f"{topics.base}.{topics.pipeline}.train.{job.run}",
        clean_start=True,
        receive_max=4096,
        max_packet_bytes=MAX_ROUND_BYTES + 4096,
    )
    return options.reach(args, session), settings, server, found


def resume(args: argparse.Namespace, server: TrainingServer, found: KnownRun, store: Store) -> None:
    """Go on from the checkpoint on the disk, or else from the one at the broker, unless told to begin anew."""
    from har_edge.learning.server.checkpoints import load_checkpoint, read_checkpoint
    from har_edge.protocol.training import RunState

    if args.fresh:
        return
    settings, where = server.settings, checkpoint_path(args, server.settings.job.run)
    content, origin = load_checkpoint(where), str(where)
    if content is None and found.note is not None and found.note.settings == settings.hash:
        content, origin = fetch_checkpoint(args, settings.topics, found, store), "the broker"
    if content is None:
        return
    checkpoint: Checkpoint = read_checkpoint(content, settings.hash, settings.job.run, settings.job.parameters)
    done = checkpoint.epoch > settings.epochs
    if done and (args.out / f"{settings.job.run}.tflite").exists():
        raise ConfigError(
            f"training {settings.job.run!r} has finished {plural(checkpoint.epoch - 1, 'epoch')} ({origin}); ask for "
            "more with --epochs, or begin anew with --fresh"
        )
    server.restore(checkpoint)
    if done:
        server.state = RunState.FINISHED
        say(f"{plural(checkpoint.epoch - 1, 'epoch')} were finished before ({origin}); the model is written from it")
        return
    say(f"goes on from {origin}: epoch {checkpoint.epoch}, round {checkpoint.round}")


def checkpoint_path(args: argparse.Namespace, run: str) -> Path:
    """Return the file of a run's checkpoint."""
    folder: Path = args.out
    return folder / f"{run}.checkpoint"


def fetch_checkpoint(args: argparse.Namespace, topics: Topics, found: KnownRun, store: Store) -> bytes | None:
    """Return the checkpoint that the broker names; None where it does not come."""
    from har_edge.protocol.topics import TrainingTopics
    from har_edge.runtime.artifacts import ArtifactUnavailable, fetch, fetch_session

    assert found.note is not None
    sha256 = found.note.file.sha256
    bus = options.reach(args, fetch_session())
    try:
        fetch(bus, TrainingTopics(topics.base, topics.pipeline), [sha256], store, lambda: False, timeout_s=5.0)
    except ArtifactUnavailable as error:
        say(f"the checkpoint at the broker is not used: {error}")
        return None
    finally:
        bus.close(forget=True)
    return store.path(sha256).read_bytes()


def follow(
    args: argparse.Namespace,
    bus: PollableBus,
    server: TrainingServer,
    store: Store,
    evaluation: EvaluationThread,
    stop: Stop,
    before: KnownRun,
    inputs: TrainingInputs | None = None,
) -> TensorRanges | None:
    """Run the server until it has ended, and show how far it is; return the ranges that --int8 asks for.

    `before` is what an earlier server of this run left.
    """
    from har_edge.cli.int8_result import measure_ranges
    from har_edge.learning.known_run import files_of
    from har_edge.learning.published_files import PublishedFiles
    from har_edge.learning.server.service import TrainingService, run_training
    from har_edge.protocol.topics import TrainingTopics

    settings, job = server.settings, server.settings.job
    service: TrainingService | None = None

    def read(sha256: str) -> bytes:
        own = service.content(sha256) if service is not None else None
        return own if own is not None else store.path(sha256).read_bytes()

    files = PublishedFiles(TrainingTopics(settings.topics.base, settings.topics.pipeline), read)
    files.add(files_of(job))
    view, show = live_view()
    with view:
        path = checkpoint_path(args, job.run)
        service = TrainingService(bus, server, files, evaluation, path, say, show, before.files)
        if not args.int8 or inputs is None:
            run_training(service, server, stop)
            return None
        measured: list[TensorRanges | None] = []
        started, given = service, inputs

        def measure() -> None:
            measured.append(measure_ranges(started, server, given, store, stop))

        run_training(service, server, stop, measure)
    return measured[0] if measured else None


def live_view() -> tuple[AbstractContextManager[object], Callable[[TrainingProgress], None]]:
    """Return the live view and what draws it: a line now and then where there is no terminal."""
    from rich.console import Console
    from rich.live import Live

    from har_edge.cli.reports.training import draw_progress, head_line
    from har_edge.protocol.text import escape

    console = Console()
    if console.is_terminal:
        live = Live(console=console, refresh_per_second=4)
        return live, lambda progress: live.update(draw_progress(progress))
    told = [time.monotonic(), 0.0]

    def tell(progress: TrainingProgress) -> None:
        now = time.monotonic()
        if now - told[0] >= _LINE_S:
            told[0] = now
            say(escape(progress.detail) or head_line(progress))

    return nullcontext(), tell
