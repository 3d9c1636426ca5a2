"""`har-edge node`: offer this device to a pipeline; it runs the stages that the coordinator gives it."""

from __future__ import annotations

import argparse
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options, values
from har_edge.cli.console import say
from har_edge.cli.trust import add_trust, open_gate, say_unsigned
from har_edge.errors import ConfigError
from har_edge.timing import LEAVE_S
from har_edge.units import size

if TYPE_CHECKING:
    from collections.abc import Callable

    from har_edge.mqtt.bus import PollableBus, Session
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.node.carried_broker import CarriedBroker
    from har_edge.runtime.node.trainings import AnyJob, TrainingHandle
    from har_edge.runtime.node.worker import WorkerContext
    from har_edge.runtime.status_publisher import Identity

HELP = "offer this device to a pipeline: it fetches and runs the slices that the coordinator gives it"

# A stage gives Python's lock away while LiteRT runs, and asks for it again after: by default it may then wait for 5 ms,
# many times as long as a small slice takes.
SWITCH_S = 0.0005
EXIT_STUCK = 4


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", metavar="ID", help="name of this node (default: the name of the host)")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="folder for slices (default: ~/.cache/har-edge/slices)"
    )
    parser.add_argument(
        "--cache-bytes", type=values.size_bytes, metavar="N", help="limit of the cache in bytes (default: 2 GiB)"
    )
    parser.add_argument(
        "--threads", type=values.threads, default=1, metavar="N", help="threads of the runtime for each stage"
    )
    parser.add_argument(
        "--drain-timeout",
        type=values.natural,
        default=int(LEAVE_S),
        metavar="S",
        help="on stopping, wait S seconds until other nodes have taken the stages over (default: 10)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="own labelled samples to train on (idx files, a folder of pictures, .npz): they never leave this device",
    )
    add_trust(parser, "run")
    parser.add_argument(
        "--unsigned-trainings",
        action="store_true",
        help="with --trust, take part in trainings too, which nobody signs (default: in none)",
    )
    options.add_delegate(parser, "what the plan says")
    options.add_sandbox(parser)
    add_own_broker(parser)
    options.add_pipeline(parser)
    options.add_quiet(parser)


def add_own_broker(parser: argparse.ArgumentParser) -> None:
    """Add the options of a broker that the node carries itself."""
    group = parser.add_argument_group("a broker of this node's own (docs/how-to/brokers-on-the-devices.md)")
    group.add_argument(
        "--own-broker",
        choices=("mosquitto", "embedded"),
        help="carry a broker, through which the coordinator may send what stages here make (default: none)",
    )
    group.add_argument(
        "--advertise",
        metavar="HOST",
        help="name or address of this host for other nodes (default: its address on the way to the central broker)",
    )
    group.add_argument(
        "--own-broker-port", type=values.port, default=0, metavar="PORT", help="port to listen on (default: a free one)"
    )
    group.add_argument(
        "--own-broker-config",
        type=Path,
        metavar="FILE",
        help="Mosquitto configuration, needed where the central broker wants a user or TLS",
    )
    group.add_argument(
        "--own-broker-directory",
        type=Path,
        metavar="DIR",
        help="folder for its sessions and log (default: ~/.local/state/har-edge/node-NAME, as root below /var/lib)",
    )


def run(args: argparse.Namespace) -> int:
    options.one_thread()
    options.start_logging(args)
    from har_edge.config.pipeline_config import BrokerConfig
    from har_edge.inference.load_check import LoadCheck
    from har_edge.inference.sandbox import describe_sandbox
    from har_edge.mqtt.bus import TakenOver
    from har_edge.protocol.artifacts import MAX_BYTES
    from har_edge.protocol.deployment import MAX_BYTES as MAX_PLAN_BYTES
    from har_edge.protocol.topics import Topics, check_node_name
    from har_edge.runtime.artifact_store import LIMIT_BYTES, Store, default_folder
    from har_edge.runtime.node.capabilities import read_memory
    from har_edge.runtime.node.node import Node, run_node
    from har_edge.runtime.node.registration import ROLE, arrive
    from har_edge.runtime.node.trainings import Trainings
    from har_edge.runtime.node.worker import Worker, WorkerContext
    from har_edge.runtime.status_publisher import Identity
    from har_edge.runtime.stop import Stop
    from har_edge.trust.gated_bus import GatedBus

    if args.data is not None:
        check_own_samples(args.data)
    if args.sandbox:
        say(describe_sandbox())
    stop, topics = Stop().catch_signals(), Topics(args.base, args.pipeline)
    name = check_node_name(args.name or options.own_name(args, ROLE) or host_name())
    store = Store(args.cache or default_folder(), args.cache_bytes or LIMIT_BYTES)
    max_bytes = min(MAX_BYTES, read_memory() // 4)
    broker = carried_broker(args, name)
    gate = open_gate(args.trust, topics, name)
    context = WorkerContext(
        topics,
        name,
        lambda session: options.reach(args, session),
        store,
        args.threads,
        max_bytes,
        check=LoadCheck(store.folder),
        delegate=args.delegate,
        connect_to=broker.connect_to,
        trusts=(lambda _: True) if gate is None else gate.knows,
        sandbox=args.sandbox,
    )
    identity = Identity(topics, name, ROLE, options.chosen_client(args, BrokerConfig()).value)
    session = identity.session(expiry_s=0, max_payload_bytes=MAX_PLAN_BYTES)
    sys.setswitchinterval(SWITCH_S)
    try:
        bus = arrive(context.connect, session, identity, stop, args.delegate)
        if bus is None:
            return 0
        for line in broker.start(identity):
            say(line)
        say(f"node {name} connected: {describe(identity)}; MQTT client: {identity.client}")
        if gate is None:
            say_unsigned(topics)
        else:
            bus = GatedBus(bus, gate, topics)
        trainings, signed_only = None, gate is not None and not args.unsigned_trainings
        if signed_only:
            say("this node takes part in no training: nobody signs those (--unsigned-trainings permits them)")
        levels = [] if signed_only else hearable_jobs(context.connect, topics)
        if levels:
            trainings = Trainings(topics, lambda job: start_training(args, context, job), levels)
        node = Node(identity, lambda one, plan, desired: Worker(context, one, plan, desired), trainings, gate)
        stuck = run_node(bus, node, stop, drain_timeout_s=args.drain_timeout, watch=lambda: broker.watch(identity))
    except TakenOver:
        say(f"node {name}: a younger node of this name has taken over; ending (give each its --name)", file=sys.stderr)
        return options.EXIT_TAKEN_OVER
    finally:
        broker.stop()
    if stuck:
        return start_anew(name, stuck)
    print(f"node {name} stopped", flush=True)
    return 0


def start_anew(name: str, why: str) -> int:
    """Run this command again in the place of this process, which has a thread that nothing ends.

    Returns the exit code where that cannot be done.
    """
    import os

    say(f"node {name}: {why}; starting anew", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError as error:
        say(f"node {name} cannot start itself ({error}); start it again", file=sys.stderr)
    return EXIT_STUCK


def check_own_samples(path: Path) -> None:
    """Raise DataError where --data names nothing that can be read, at the start rather than with the first training."""
    from har_edge.errors import DataError
    from har_edge.learning.data.dataset_files import find_format

    try:
        find_format(path)
        if path.is_file():
            path.open("rb").close()
    except OSError as error:
        raise DataError(f"--data {path}: {error.strerror or error}; mend its permissions, or name another") from None


def hearable_jobs(connect: Callable[[Session], PollableBus], topics: Topics) -> list[str]:
    """Return the kinds of job that this node may hear of; a broker that refuses one would else end the node."""
    kinds = ["job", "split"]
    if may_hear_jobs(connect, topics, kinds):
        return kinds
    return [kind for kind in kinds if may_hear_jobs(connect, topics, [kind])]


def may_hear_jobs(connect: Callable[[Session], PollableBus], topics: Topics, kinds: list[str]) -> bool:
    """Return whether this node may hear of trainings of these kinds."""
    import secrets

    from har_edge.errors import BrokerError
    from har_edge.mqtt.bus import Session

    bus = connect(Session(f"jobs-{secrets.token_hex(8)}", clean_start=True))
    try:
        bus.subscribe([topics.training("+", kind) for kind in kinds])
        for _ in range(10):
            bus.poll(0.02)
    except BrokerError as error:
        if len(kinds) == 1:
            say(f"this node takes part in no training of the kind {kinds[0]!r}: {error}", file=sys.stderr)
        return False
    finally:
        bus.close(forget=True)
    return True


def start_training(args: argparse.Namespace, context: WorkerContext, job: AnyJob) -> TrainingHandle:
    """Return the thread that takes part in a training; what it needs is loaded with the first one."""
    from har_edge.learning.data.own_samples import read_own_samples
    from har_edge.learning.split.thread import SplitThread
    from har_edge.learning.worker.thread import LearningContext, TrainingThread
    from har_edge.protocol.split_training import SplitJob

    learning = LearningContext(
        context.topics,
        context.node,
        context.connect,
        context.store,
        context.check,
        context.max_bytes,
        context.threads,
        None if args.data is None else lambda job: read_own_samples(args.data, job),
        say,
    )
    if isinstance(job, SplitJob):
        say(f"training {job.run}: takes part with stages of {job.model}, data: {job.data}")
        return SplitThread(learning, job)
    say(f"training {job.run}: takes part, {'with own samples' if job.own else f'data: {job.data}'}")
    return TrainingThread(learning, job)


def carried_broker(args: argparse.Namespace, node: str) -> CarriedBroker:
    """Return the broker that the options ask this node to carry, if any, and the ways to those of others."""
    from har_edge.config.pipeline_config import BrokerConfig
    from har_edge.mqtt.broker.own import OwnBrokerKind, OwnBrokerSettings
    from har_edge.runtime.node.carried_broker import CarriedBroker

    lone = ("advertise", "own_broker_port", "own_broker_config", "own_broker_directory")
    given = [f"--{name.replace('_', '-')}" for name in lone if getattr(args, name)]
    if given and not args.own_broker:
        raise ConfigError(f"{', '.join(given)} came without --own-broker; say which broker this node is to carry")
    settings = None
    if args.own_broker:
        kind, folder = OwnBrokerKind(args.own_broker), args.own_broker_directory or default_directory(node)
        settings = OwnBrokerSettings(kind, folder, args.advertise, args.own_broker_port, args.own_broker_config)
    central = options.find_address(args, BrokerConfig(), Path())
    return CarriedBroker(settings, central, lambda address, session: options.reach_address(args, address, session))


def default_directory(node: str) -> Path:
    """Return the folder of the broker that a node carries; Mosquitto's user cannot enter root's home."""
    from har_edge.cli.commands.broker import state_folder

    return state_folder() / f"node-{node}"


def host_name() -> str:
    """Return the name of the host in a form that may stand in a topic."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "-", platform.node().partition(".")[0]).strip("-") or "node"


def describe(identity: Identity) -> str:
    """Return the text with a device's capabilities."""
    card = identity.device
    assert card is not None
    return f"{card.cores} cores, {size(card.memory_bytes)} of memory, reference network {card.speed:.0f} times a second"
