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
from har_edge.timing import LEAVE_S
from har_edge.units import size

if TYPE_CHECKING:
    from har_edge.runtime.status_publisher import Identity

HELP = "offer this device to a pipeline: it fetches and runs the slices that the coordinator gives it"

# A stage gives Python's lock away while LiteRT runs, and asks for it again after: by default it may then wait for 5 ms,
# many times as long as a small slice takes.
SWITCH_S = 0.0005


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
    options.add_delegate(parser, "what the plan says")
    options.add_pipeline(parser)
    options.add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    options.one_thread()
    options.start_logging(args)
    from har_edge.config.pipeline import BrokerConfig
    from har_edge.inference.load_check import LoadCheck
    from har_edge.mqtt.bus import TakenOver
    from har_edge.protocol.artifacts import MAX_BYTES
    from har_edge.protocol.deployment import MAX_BYTES as MAX_PLAN_BYTES
    from har_edge.protocol.topics import Topics, check_node_name
    from har_edge.runtime.artifact_store import LIMIT_BYTES, Store, default_folder
    from har_edge.runtime.node.capabilities import read_memory
    from har_edge.runtime.node.node import Node, run_node
    from har_edge.runtime.node.registration import ROLE, arrive
    from har_edge.runtime.node.worker import Worker, WorkerContext
    from har_edge.runtime.status_publisher import Identity
    from har_edge.runtime.stop import Stop

    stop, topics = Stop().catch_signals(), Topics(args.base, args.pipeline)
    name = check_node_name(args.name or host_name())
    store = Store(args.cache or default_folder(), args.cache_bytes or LIMIT_BYTES)
    max_bytes = min(MAX_BYTES, read_memory() // 4)
    context = WorkerContext(
        topics,
        name,
        lambda session: options.reach(args, session),
        store,
        args.threads,
        max_bytes,
        check=LoadCheck(store.folder),
        delegate=args.delegate,
    )
    identity = Identity(topics, name, ROLE, options.chosen_client(args, BrokerConfig()).value)
    session = identity.session(expiry_s=0, max_payload_bytes=MAX_PLAN_BYTES)
    sys.setswitchinterval(SWITCH_S)
    try:
        bus = arrive(context.connect, session, identity, stop, args.delegate)
        if bus is None:
            return 0
        say(f"node {name} connected: {describe(identity)}; MQTT client: {identity.client}")
        node = Node(identity, lambda replica_id, deployment, desired: Worker(context, replica_id, deployment, desired))
        run_node(bus, node, stop, drain_timeout_s=args.drain_timeout)
    except TakenOver:
        say(f"node {name}: a younger node of this name has taken over; ending (give each its --name)", file=sys.stderr)
        return options.EXIT_TAKEN_OVER
    print(f"node {name} stopped", flush=True)
    return 0


def host_name() -> str:
    """Return the name of the host in a form that may stand in a topic."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "-", platform.node().partition(".")[0]).strip("-") or "node"


def describe(identity: Identity) -> str:
    """Return the text with a device's capabilities."""
    card = identity.device
    assert card is not None
    return f"{card.cores} cores, {size(card.memory_bytes)} of memory, reference network {card.speed:.0f} times a second"
