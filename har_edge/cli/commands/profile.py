"""`har-edge profile`: measure the costs of a model on this device, for the planner."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from har_edge.cli.arguments import options, values
from har_edge.cli.arguments.split_training import add_profile_options
from har_edge.cli.console import follow

if TYPE_CHECKING:
    from har_edge.config.catalog import FoundModel
    from har_edge.mqtt.bus import Bus
    from har_edge.planner.profile import LinkCost, MessageCost, PackingFigures, Profile
    from har_edge.tflite.model import Model

HELP = "measure time, memory, messages and link of a model on this device"

Item = TypeVar("Item")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=options.MODEL_HELP)
    parser.add_argument("--device", metavar="NAME", help="name of this device (default: its host name)")
    parser.add_argument("--out", type=values.writable_file, metavar="FILE", help="write the profile to FILE, too")
    parser.add_argument(
        "--threads", type=values.threads, default=1, metavar="N", help="threads of the runtime (default: 1)"
    )
    options.add_delegate(parser)
    options.add_data(parser)
    parser.add_argument("--again", action="store_true", help="measure again, even with a profile in the cache")
    parser.add_argument("--json", action="store_true", help="print the profile as JSON instead of text")
    add_profile_options(parser)
    options.add_broker(parser, embedded=True)


def run(args: argparse.Namespace) -> int:
    """Measure, store and print a profile."""
    options.one_thread()
    if args.train:
        from har_edge.cli.training_plans import run_training_profile

        return run_training_profile(args)
    from har_edge.cli.reports.profile import print_profile
    from har_edge.config.catalog import find_model
    from har_edge.inference.tensor_observation import open_model
    from har_edge.planner.profile import load_profile, profile_path, store_profile

    device = device_name(args.device)
    found = find_model(args.model)
    model = open_model(found.path, args.delegate)
    path = profile_path(device, model.sha256, args.threads, args.delegate)
    remarks: list[str] = []
    if path.is_file() and not args.again:
        profile = load_profile(path, args.delegate)
        remarks.append("measured before; --again measures anew")
        if args.broker:
            profile = _with_messages(profile, *measure_through_broker(args, device, model, remarks))
    else:
        messages = measure_through_broker(
            args, device, model, remarks
        )  # before the long measurement, since a broker may be out of reach
        profile = _with_messages(_measure(model, found, device, args, remarks), *messages)
    store_profile(profile, path)
    if args.out is not None:
        store_profile(profile, args.out)
    print_profile(profile, remarks, args.out or path, as_json=args.json)
    return 0


def device_name(asked: str | None) -> str:
    """Return the name of this device. Raises ConfigError for one that cannot stand in a topic."""
    import re
    import socket

    from har_edge.protocol.topics import check_id

    if asked is not None:
        return check_id("--device", asked)
    return re.sub(r"[^a-zA-Z0-9_-]", "-", socket.gethostname())[:64] or "device"


def _measure(model: Model, found: FoundModel, device: str, args: argparse.Namespace, remarks: list[str]) -> Profile:
    """Measure the time and memory of the model, and what packing its activations saves and costs."""
    import msgspec

    from har_edge.planner.profile import cached_profiles
    from har_edge.runtime.profiling import make_profile, measure_memory, measure_weight_rate, time_model

    others = [
        profile
        for profile in cached_profiles(device, args.delegate)
        if profile.threads == args.threads and profile.model_sha256 != model.sha256
    ]
    told: str | None = args.delegate
    timing = time_model(model, threads=args.threads, others=others, watch=_progress, delegate=told)
    remarks += timing.remarks
    profile = make_profile(model, device, timing, threads=args.threads, others=others, delegate=told)
    profile = msgspec.structs.replace(profile, weight_bytes_per_s=measure_weight_rate(told) or msgspec.UNSET)
    memory = measure_memory(model, timing.bounds, told)
    if memory is None:
        remarks.append("memory was not measured: it takes Linux, and a model that the runtime here can run")
    return msgspec.structs.replace(profile, memory=memory, packings=_measure_packings(model, found, args, remarks))


def _measure_packings(
    model: Model, found: FoundModel, args: argparse.Namespace, remarks: list[str]
) -> tuple[PackingFigures, ...]:
    """Measure what packing saves and costs; what the data lack must not lose the other measurements."""
    from har_edge.cli.packed_slices import sample_activations
    from har_edge.errors import InputError
    from har_edge.runtime.packing_costs import measure_packings

    try:
        tensors, data = sample_activations(model, found, args)
    except InputError as error:
        remarks.append(f"packing was not measured: {error}")
        return ()
    if data.startswith("random inputs"):
        remarks.append(f"packing was measured on {data}: real activations may pack in more or fewer bytes")
    return measure_packings(tensors, data)


def measure_through_broker(
    args: argparse.Namespace, device: str, model: Model, remarks: list[str]
) -> tuple[MessageCost | None, LinkCost | None]:
    """Measure the cost of messages, and the link too if a broker was named."""
    from har_edge.mqtt.broker.launcher import find_mosquitto
    from har_edge.runtime.profiling import find_shorter_work, find_work, measure_messages

    if not args.broker and find_mosquitto() is None:
        remarks.append("messages were not measured: Mosquitto is not installed here; name a broker with --broker")
        return None, None
    with _bus(args, device) as (bus, broker):
        work, shorter = find_work(model, args.delegate), find_shorter_work(model, args.delegate)
        message, link = measure_messages(bus, device, broker, work=work, shorter=shorter if work else ())
    if args.broker:
        return message, link
    remarks.append("the link was not measured: name the broker with --broker")
    return message, None


def _with_messages(profile: Profile, message: MessageCost | None, link: LinkCost | None) -> Profile:
    import msgspec

    return msgspec.structs.replace(profile, message=message, link=link)


@contextlib.contextmanager
def _bus(args: argparse.Namespace, device: str) -> Iterator[tuple[Bus, str]]:
    """Connect to the named broker, else to one that this command starts; yield the bus and a name for the broker."""
    import secrets
    import tempfile

    from har_edge.config.pipeline_config import BrokerConfig
    from har_edge.mqtt.broker.launcher import start_mosquitto
    from har_edge.mqtt.bus import Session
    from har_edge.mqtt.connect import ClientLibrary, MqttVersion, open_bus
    from har_edge.resources import find_folder

    with contextlib.ExitStack() as stack:
        if args.broker:
            address = options.find_address(args, BrokerConfig(), Path())
            broker = address.url
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-profile-")))
            folder.chmod(0o755)  # Mosquitto, started by root, becomes a user of its own and must get in
            own = start_mosquitto(find_folder("brokers") / "mosquitto.conf", folder / "broker")
            stack.callback(own.stop)
            address, broker = own.address, f"{own.description} on this device"
        session = Session(f"profile-{device}-{secrets.token_hex(4)}", clean_start=True)
        bus = open_bus(address, session, ClientLibrary(args.client or "auto"), MqttVersion(args.protocol or "5"))
        stack.callback(bus.close, forget=True)
        yield bus, broker


def _progress(items: Iterable[Item], total: int) -> Iterable[Item]:
    return follow(items, total, "timing segments")
