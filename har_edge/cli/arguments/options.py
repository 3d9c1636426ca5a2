"""Options that several commands share, and the objects that they stand for."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import values
from har_edge.cli.console import say
from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.config.pipeline import Pipeline
    from har_edge.config.pipeline_config import BrokerConfig
    from har_edge.config.task import Task
    from har_edge.data.description import StreamDescription
    from har_edge.data.recording import Recording
    from har_edge.mqtt.address import Address
    from har_edge.mqtt.bus import PollableBus, Session
    from har_edge.mqtt.connect import ClientLibrary, MqttVersion
    from har_edge.protocol.status import SliceInfo
    from har_edge.runtime.status_publisher import Identity
    from har_edge.runtime.stop import Stop
    from har_edge.trust.credentials import ClientCredentials

EXIT_TAKEN_OVER = 3
DEFAULT_MODEL = "bottleneck"
MODEL_HELP = "the .tflite file, or the name of a shipped model (bottleneck, float, int8 and more: models/README.md)"
EXIT_INTERRUPTED = 130
DEFAULT_CONFIG = Path("pipeline.toml")
BROKER_VARIABLE = "HAR_EDGE_BROKER"
CREDENTIALS_VARIABLE = "HAR_EDGE_CREDENTIALS"
SYNTHETIC_SUBJECTS = ("subject7", "subject8")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add `--data`: the folder, zip or file with recordings."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder, zip or file with recordings (default: $HAR_EDGE_DATA, then ./data)",
    )


def add_broker(
    parser: argparse.ArgumentParser,
    *,
    embedded: bool = False,
    version: str = "--protocol",
    default: str = f"${BROKER_VARIABLE}, then the pipeline file",
    clients: bool = True,
) -> None:
    """Add the options for the broker and the credentials; without `clients`, the help omits the MQTT client."""
    default = "one of its own" if embedded else default
    group = parser.add_argument_group("broker")
    group.add_argument("--broker", metavar="URL", help=f"mqtt[s]://HOST[:PORT] (default: {default})")
    group.add_argument("--username", metavar="NAME", help="user name (default: $HAR_EDGE_USERNAME)")
    group.add_argument(
        "--password-file",
        metavar="FILE",
        help="file with the password (default: $HAR_EDGE_PASSWORD_FILE, or $HAR_EDGE_PASSWORD)",
    )
    group.add_argument(
        "--ca-file",
        metavar="FILE",
        help="PEM file of the authority to trust, for mqtts:// (default: $HAR_EDGE_CA_FILE)",
    )
    group.add_argument(
        "--cert-file", metavar="FILE", help="PEM file with this client's certificate (default: $HAR_EDGE_CERT_FILE)"
    )
    group.add_argument(
        "--key-file", metavar="FILE", help="PEM file with this client's key (default: $HAR_EDGE_KEY_FILE)"
    )
    group.add_argument(
        "--credentials",
        metavar="FOLDER",
        help="folder of `har-edge credentials add`, instead of all of these (default: $HAR_EDGE_CREDENTIALS)",
    )
    client, protocol = "MQTT client (default: auto)", "MQTT version (default: 5)"
    if not clients:
        client = protocol = argparse.SUPPRESS
    group.add_argument("--client", choices=("auto", "paho", "native"), help=client)
    group.add_argument(version, dest="protocol", choices=("5", "3.1.1"), help=protocol)


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Add the options for a deployed pipeline, for commands without a pipeline file, and the options for the broker."""
    parser.add_argument("--pipeline", metavar="NAME", default="har", help="name of the pipeline (default: har)")
    parser.add_argument("--base", metavar="NAME", default="har", help="first level of all topics (default: har)")
    add_broker(parser, default=f"${BROKER_VARIABLE}, then mqtt://127.0.0.1:1883")


def add_deployed(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a pipeline: a folder of fixed slices, or a name that a coordinator deploys."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FOLDER",
        help="folder that `har-edge slice` made, or its pipeline file (default: what a coordinator deploys)",
    )
    add_pipeline(parser)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the options for the source of the pipeline: a file, or the plan that a coordinator keeps at the broker."""
    either = parser.add_mutually_exclusive_group()
    add_config(either)
    either.add_argument(
        "--pipeline", metavar="NAME", help="follow the plan of this pipeline, which a coordinator keeps at the broker"
    )
    parser.add_argument(
        "--base", metavar="NAME", default="har", help="first level of all topics, with --pipeline (default: har)"
    )


def load_source(args: argparse.Namespace) -> Pipeline:
    """Return the fixed pipeline that `add_source` names. Raises ConfigError when there is none."""
    from har_edge.config.pipeline import load_pipeline

    if args.config == DEFAULT_CONFIG and not args.config.exists():
        raise ConfigError(
            f"no {DEFAULT_CONFIG} is in this folder; say --config FOLDER for slices that `har-edge slice` made, or "
            "--pipeline NAME for what a coordinator deploys (its name is har unless it was given another)"
        )
    return load_pipeline(args.config)


def add_probe(parser: argparse.ArgumentParser) -> None:
    """Add the options of a probe window: its timeout, and the folder of the files that sensors reduce windows with."""
    parser.add_argument(
        "--timeout",
        type=values.seconds,
        default=5.0,
        metavar="S",
        help="seconds that a probe window may take (default: 5)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder for the pipeline's files (default: ~/.cache/har-edge/slices)",
    )


def add_config(parser: argparse._ActionsContainer) -> None:
    """Add `--config`: the pipeline file."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=DEFAULT_CONFIG,
        help="pipeline file, or the folder that `har-edge slice` made (default: ./pipeline.toml)",
    )


def add_reducer(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--reducer`: the reduction methods of the sources."""
    parser.add_argument(
        "--reducer",
        metavar="SPEC",
        help=f"{purpose}: METHOD[:OPTION...][+METHOD...] for all sources, or SOURCE=SPEC,SOURCE=SPEC",
    )


def add_wire(parser: argparse.ArgumentParser, default: int | None, text: str) -> None:
    """Add `--wire`: the version of messages that nodes may send."""
    parser.add_argument("--wire", type=int, choices=(1, 3), default=default, help=f"version of messages: {text}")


def add_delegate(parser: argparse.ArgumentParser, default: str = "xnnpack") -> None:
    """Add `--delegate`: the code that computes."""
    parser.add_argument(
        "--delegate",
        choices=("xnnpack", "none"),
        help="xnnpack computes the operators that the runtime hands to it; with none the runtime computes all, slower "
        f"(docs/reference/runtimes.md; default: {default})",
    )


def add_sandbox(parser: argparse.ArgumentParser) -> None:
    """Add `--sandbox`: run slices in processes without rights."""
    parser.add_argument(
        "--sandbox",
        action="store_true",
        help="load and run slices in processes of their own without network, files and other programs: for models "
        "from people whom you do not trust (docs/explanation/sandbox.md)",
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add `--verbose`: log more."""
    parser.add_argument("--verbose", action="store_true", help="log more to standard error")


def one_thread() -> None:
    """Keep NumPy's linear algebra from starting threads, since a node needs none and each costs memory.

    Call this before NumPy is imported.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def interrupted(stop: Stop) -> int:
    """Return the exit code of a command that a signal ended: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + stop.signal


def start_logging(args: argparse.Namespace) -> None:
    """Send warnings, or everything with --verbose, to standard error; see cli/log_filter.py."""
    from har_edge.cli.log_filter import start

    start(verbose=args.verbose)


def connect(args: argparse.Namespace, pipeline: Pipeline, session: Session) -> PollableBus:
    """Open the bus for the options and the pipeline file."""
    return reach(args, session, pipeline.config.broker, pipeline.folder)


def reach(
    args: argparse.Namespace, session: Session, settings: BrokerConfig | None = None, folder: Path | None = None
) -> PollableBus:
    """Open the bus for the options; `settings` fills in what they leave open, with files relative to `folder`."""
    from har_edge.config.pipeline_config import BrokerConfig

    settings = settings or BrokerConfig()
    address = find_address(args, settings, folder or Path())
    return reach_address(args, address, session, settings)


def reach_address(
    args: argparse.Namespace, address: Address, session: Session, settings: BrokerConfig | None = None
) -> PollableBus:
    """Open the bus for the options to another broker than the one that they name."""
    from har_edge.config.pipeline_config import BrokerConfig
    from har_edge.mqtt.connect import open_bus

    settings, given = settings or BrokerConfig(), find_credentials(args)
    if given is not None:
        from har_edge.trust.credentials import secret_id

        session = replace(session, client_id=secret_id(session.client_id, given.secret))
    return open_bus(address, session, chosen_client(args, settings), chosen_protocol(args, settings))


def find_credentials(args: argparse.Namespace) -> ClientCredentials | None:
    """Return the credentials of this device, where a folder of them is named."""
    folder = credentials_folder(args)
    if folder is None:
        return None
    from har_edge.trust.credentials import read_client

    return read_client(folder)


def credentials_folder(args: argparse.Namespace) -> Path | None:
    """Return the folder of the credentials of this device; None where there is none for the broker of the options."""
    if getattr(args, "credentials", None):
        return Path(args.credentials)
    named, url = os.environ.get(CREDENTIALS_VARIABLE), args.broker or os.environ.get(BROKER_VARIABLE)
    # Those of the environment belong to an encrypted broker, not to one that a command starts for its own processes.
    return Path(named) if named and (not url or url.startswith("mqtts:")) else None


def own_name(args: argparse.Namespace, role: str) -> str:
    """Return the name that the credentials of this device give it, where they are for this role; empty otherwise."""
    given = find_credentials(args)
    return given.username if given is not None and given.role == role else ""


def find_address(args: argparse.Namespace, settings: BrokerConfig, folder: Path) -> Address:
    """Return the broker's address and credentials; see `reach`."""
    from har_edge.mqtt.address import read_address

    given = find_credentials(args)
    if given is not None:
        authority = (credentials_folder(args) or Path()) / "ca.crt"
        found = read_address(args.broker or given.url, username=given.username, ca_file=authority)
        return replace(found, password=given.password)
    url = args.broker or os.environ.get(BROKER_VARIABLE) or settings.url

    def choose(name: str) -> Path | None:
        """Return a file from the option, else from the environment, else from the pipeline file."""
        option, setting = getattr(args, name), getattr(settings, name)
        if option is not None:
            return Path(option)
        # Certificates of the environment belong to an encrypted broker, not to one that this command starts.
        variable = os.environ.get(f"HAR_EDGE_{name.upper()}")
        if variable and (name == "password_file" or url.startswith("mqtts:")):
            return Path(variable)
        return folder / setting if setting is not None else None

    return read_address(
        url,
        username=args.username or settings.username,
        password_file=choose("password_file"),
        ca_file=choose("ca_file"),
        cert_file=choose("cert_file"),
        key_file=choose("key_file"),
    )


def chosen_client(args: argparse.Namespace, settings: BrokerConfig) -> ClientLibrary:
    """Return the MQTT client from options and settings."""
    from har_edge.mqtt.connect import ClientLibrary, choose_client

    text = args.client or settings.client
    try:
        return choose_client(ClientLibrary(text), chosen_protocol(args, settings))
    except ValueError:
        raise ConfigError(f"client is {text!r}; expected auto, paho or native") from None


def chosen_protocol(args: argparse.Namespace, settings: BrokerConfig) -> MqttVersion:
    """Return the MQTT version from options and settings."""
    from har_edge.mqtt.connect import MqttVersion

    text = args.protocol or settings.protocol
    try:
        return MqttVersion(text)
    except ValueError:
        raise ConfigError(f"protocol is {text!r}; expected 5 or 3.1.1") from None


def chosen_reducers(text: str | None, sources: Iterable[str]) -> dict[str, str]:
    """Read `--reducer`: one specification for all sources, or one for each source that it names.

    Raises ConfigError for another text, and when a method's library is missing.
    """
    from har_edge.codecs.catalog import check_libraries

    if text is None:
        return {}
    if "=" not in text:
        check_libraries(text)
        return dict.fromkeys(sources, text)
    chosen: dict[str, str] = {}
    for part in re.split(r",(?=[^,]*=)", text):  # other commas stand inside options, as in sod:1,0.5
        source, _, spec = (piece.strip() for piece in part.partition("="))
        if not source or not spec or source in chosen:
            raise ConfigError(
                f"--reducer {text!r}: {part!r} came; expected one SPEC for all sources, or SOURCE=SPEC,SOURCE=SPEC "
                "with each source once"
            )
        check_libraries(spec)
        chosen[source] = spec
    return chosen


def listed_reducers(task: Task, sources: Iterable[str]) -> str:
    """Return the text with the reducers of a node's sources."""
    reducers = {source: task.inputs[source].reducer for source in sources}
    if len(set(reducers.values())) == 1:
        return next(iter(reducers.values()))
    return ", ".join(f"{source} {spec}" for source, spec in reducers.items())


def batch_delay(task: Task, batch: int, speed: float | None) -> str:
    """Return the text that says how much time several windows a message cost, an empty text where they cost none."""
    if batch == 1 or speed is None:
        return ""
    hops, hop_s = batch - 1, task.stream.hop / (task.stream.rate_hz * speed)
    unit = "hop" if hops == 1 else "hops"
    return f"the first window of a message waits {hops} {unit} ({hops * hop_s:.3g} s) for the last"


def identity_of(
    args: argparse.Namespace,
    pipeline: Pipeline,
    node: str,
    role: str,
    detail: str,
    *,
    epoch: int = 0,
    card: SliceInfo | None = None,
    sources: Sequence[str] = (),
) -> Identity:
    """Return a node's identity: for a stage its generation and slice, for a sensor its sources."""
    from har_edge.protocol.topics import check_node_name
    from har_edge.runtime.build import topics_of
    from har_edge.runtime.status_publisher import Identity

    check_node_name(node)
    client = chosen_client(args, pipeline.config.broker).value
    return Identity(topics_of(pipeline), node, role, client, detail, epoch=epoch, slice=card, sources=tuple(sources))


def load_recordings(
    args: argparse.Namespace,
    stream: StreamDescription,
    names: Sequence[str] | None,
    *,
    keep_null: bool = False,
    sources: Sequence[str] | None = None,
) -> tuple[list[Recording], str]:
    """Return the requested recordings and their origin. Without recordings, return synthetic ones and print a notice.

    The recordings hold the samples of `sources` alone, by default of all.
    """
    from dataclasses import replace

    from har_edge.data.files import read_recordings
    from har_edge.data.locate import SYNTHETIC_NOTICE, find_data
    from har_edge.data.synthetic import synthesize

    found = find_data(args.data, stream)
    if found is not None:
        kind = "synthetic" if stream.synthetic else "real"
        return read_recordings(stream, found, names, keep_null, sources), f"{kind} data from {found}"
    if stream.name != "mhealth":
        raise ConfigError(f"no recordings of {stream.name!r} found; name them with --data or HAR_EDGE_DATA")
    if not getattr(args, "no_notice", False):
        say(SYNTHETIC_NOTICE, file=sys.stderr)
    kept = sources or [source.name for source in stream.sources]
    return [
        replace(one, samples={source: one.samples[source] for source in kept})
        for name in names
        or SYNTHETIC_SUBJECTS  # one by one, so that dropped samples are freed before the next recording
        for one in synthesize([name])
    ], "synthetic data"
