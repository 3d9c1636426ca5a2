"""Topic names: the only place that builds or reads them, and their quality of service and retain flag.

    <base>/v1/<pipeline>/window/<stream>/<source>      codes from a sensor
    <base>/v1/<pipeline>/act/<epoch>/<stage>/<stream>  activations
    <base>/v1/<pipeline>/result/<stream>               JSON a person can read
    <base>/v1/<pipeline>/node/<node>/status            what a node says of itself; its last will says that it is lost
    <base>/v1/<pipeline>/beat/<node>                   a sign of life, several a second, with what its stages do
    <base>/v1/<pipeline>/plan                          what is deployed where (protocol/deployment.py)
    <base>/v1/<pipeline>/signature                     that of the plan, where it has one (protocol/signatures.py)
    <base>/v1/<pipeline>/slice/<sha256>                one slice, or another file of the pipeline: its size, its chunks
    <base>/v1/<pipeline>/chunk/<sha256>/<number>       the bytes of one chunk of it
    <base>/v1/<pipeline>/train/<run>/<what>[/<worker>] a training on the devices (protocol/training.py)
    <base>/v1/<pipeline>/file/<sha256>                 one file of a training, as slice/<sha256>
    <base>/v1/<pipeline>/part/<sha256>/<number>        the bytes of one chunk of it

Everything travels at QoS 1 (MQTT 5, section 4.3.2): at least once, duplicates end at the sink.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from functools import lru_cache

from har_edge.errors import ConfigError, MessageError

VERSION = "v1"
QOS = 1
# The level of the source in the topic of a message that carries all sources.
ALL_SOURCES = "all"
# Streams of this name are windows that only test whether the pipeline answers: no result for a person.
PROBE = "_probe-"
# The statuses of all nodes of all pipelines that a broker knows, for whoever looks for one under another name.
EVERY_STATUS = f"+/{VERSION}/+/node/+/status"
# The name of the coordinator among the nodes of a pipeline; who else took it would take its session.
COORDINATOR = "coordinator"
_ID = re.compile(r"[a-zA-Z0-9_-]+\Z")
MAX_ID_LENGTH = 128
# The same few names and topics come with every message: the last so many are remembered.
REMEMBERED = 4096


class Kind(enum.Enum):
    """The kinds of topic; the value is the level after the pipeline's name."""

    WINDOW = "window"
    ACTIVATION = "act"
    RESULT = "result"
    STATUS = "node"
    HEARTBEAT = "beat"
    PLAN = "plan"
    SIGNATURE = "signature"
    SLICE = "slice"
    CHUNK = "chunk"
    TRAINING = "train"
    TRAINING_FILE = "file"
    TRAINING_CHUNK = "part"


RETAINED = frozenset(
    {
        Kind.STATUS,
        Kind.PLAN,
        Kind.SIGNATURE,
        Kind.SLICE,
        Kind.CHUNK,
        Kind.TRAINING_FILE,
        Kind.TRAINING_CHUNK,
    }
)
# The retained messages of a training, by the level after its run.
RETAINED_OF_TRAINING = frozenset({"job", "progress", "checkpoint", "split", "stages", "model"})
# How many levels may follow the kind.
_LEVELS = {
    Kind.WINDOW: (2,),
    Kind.ACTIVATION: (3,),
    Kind.RESULT: (1,),
    Kind.STATUS: (2,),
    Kind.HEARTBEAT: (1,),
    Kind.PLAN: (0,),
    Kind.SIGNATURE: (0,),
    Kind.SLICE: (1,),
    Kind.CHUNK: (2,),
    Kind.TRAINING: (2, 3),
    Kind.TRAINING_FILE: (1,),
    Kind.TRAINING_CHUNK: (2,),
}


def is_id(text: str) -> bool:
    """Return whether a name may stand in a topic: [a-zA-Z0-9_-]+, at most 128 characters."""
    return len(text) <= MAX_ID_LENGTH and _matches(text)


@lru_cache(maxsize=REMEMBERED)
def _matches(text: str) -> bool:
    return _ID.match(text) is not None


def is_probe(stream: str) -> bool:
    """Return whether windows of a stream only test the pipeline."""
    return stream.startswith(PROBE)


def check_id(what: str, text: str) -> str:
    """Return a name that may stand in a topic; raise ConfigError for any other."""
    if not is_id(text):
        raise ConfigError(
            f"{what} is {text!r}; expected 1 to {MAX_ID_LENGTH} letters, digits, '_' or '-'; choose another name"
        )
    return text


def check_node_name(name: str) -> str:
    """Return a name that a node may have; raise ConfigError for any other."""
    if name == COORDINATOR:
        raise ConfigError(f"name of the node is {name!r}, which is that of the coordinator; choose another with --name")
    return check_id("name of the node", name)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic read back: its kind and the levels after it, and whose it is."""

    kind: Kind
    levels: tuple[str, ...]
    base: str
    pipeline: str

    @property
    def retained(self) -> bool:
        if self.kind is Kind.TRAINING:
            return self.levels[1] in RETAINED_OF_TRAINING
        return self.kind in RETAINED

    def __str__(self) -> str:
        return "/".join((self.base, VERSION, self.pipeline, self.kind.value, *self.levels))


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one pipeline.

    Pass `+` for a level to get a subscription filter. Raises ConfigError when base or pipeline is no id.
    """

    base: str
    pipeline: str

    def __post_init__(self) -> None:
        check_id("base of the topics", self.base)
        check_id("name of the pipeline", self.pipeline)

    @property
    def prefix(self) -> str:
        return f"{self.base}/{VERSION}/{self.pipeline}/"

    def window(self, stream: str, source: str) -> str:
        return f"{self.prefix}window/{stream}/{source}"

    def activation(self, epoch: int | str, stage: int | str, stream: str) -> str:
        return f"{self.prefix}act/{epoch}/{stage}/{stream}"

    def result(self, stream: str) -> str:
        return f"{self.prefix}result/{stream}"

    def status(self, node: str) -> str:
        return f"{self.prefix}node/{node}/status"

    def heartbeat(self, node: str) -> str:
        return f"{self.prefix}beat/{node}"

    def plan(self) -> str:
        return f"{self.prefix}plan"

    def signature(self) -> str:
        return f"{self.prefix}signature"

    def slice(self, sha256: str) -> str:
        return f"{self.prefix}slice/{sha256}"

    def chunk(self, sha256: str, number: int | str) -> str:
        return f"{self.prefix}chunk/{sha256}/{number}"

    def training(self, run: str, what: str, worker: str | None = None) -> str:
        return f"{self.prefix}train/{run}/{what}" + ("" if worker is None else f"/{worker}")

    def read(self, topic: str) -> Topic:
        """Read a topic of this pipeline; raise MessageError for any other."""
        return _read(self.prefix, topic)


@dataclass(frozen=True, slots=True)
class TrainingTopics(Topics):
    """The same topics, but with files of trainings instead of those of the pipeline.

    A coordinator removes every file at `slice/` that its plan does not name.
    """

    def slice(self, sha256: str) -> str:
        return f"{self.prefix}file/{sha256}"

    def chunk(self, sha256: str, number: int | str) -> str:
        return f"{self.prefix}part/{sha256}/{number}"


@lru_cache(maxsize=REMEMBERED)  # of topics that could be read, none longer than some 700 characters
def _read(prefix: str, topic: str) -> Topic:
    if not topic.startswith(prefix):
        raise MessageError(f"topic {topic!r} came; expected one below {prefix!r}")
    base, _, pipeline, _ = prefix.split("/")
    return _read_levels(topic, topic[len(prefix) :], base, pipeline)


@lru_cache(maxsize=REMEMBERED)
def read_topic(topic: str) -> Topic:
    """Read a topic of any pipeline; raise MessageError for what is none."""
    base, _, rest = topic.partition(f"/{VERSION}/")
    pipeline, slash, rest = rest.partition("/")
    if not is_id(base) or not is_id(pipeline) or not slash:
        raise MessageError(f"topic {topic!r} came; expected <base>/{VERSION}/<pipeline>/<kind>")
    return _read_levels(topic, rest, base, pipeline)


def _read_levels(topic: str, rest: str, base: str, pipeline: str) -> Topic:
    """Read the levels from the kind on."""
    kind_text, *levels = rest.split("/")
    try:
        kind = Kind(kind_text)
    except ValueError:
        known = ", ".join(kind.value for kind in Kind)
        raise MessageError(f"topic {topic!r} has the kind {kind_text!r}; expected one of {known}") from None
    if len(levels) not in _LEVELS[kind] or not all(map(is_id, levels)):
        expected = " or ".join(map(str, _LEVELS[kind]))
        raise MessageError(f"topic {topic!r} is malformed; expected {expected} ids after {kind.value!r}")
    return Topic(kind, tuple(levels), base, pipeline)
