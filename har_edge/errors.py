"""Every error har_edge raises on purpose, split by who can act on it.

    HarEdgeError
    ├── InputError            the person at the keyboard: something given to a command is wrong
    │   ├── ConfigError       a configuration or description file, an option, a name
    │   ├── DataError         a recording: malformed line, missing file, wrong columns
    │   └── ModelError        a model or slice: no flatbuffer, wrong hash, wrong shapes
    │       └── CutError      the model is fine, but it cannot be cut there
    ├── MessageError          the sender of one message: it is dropped, counted and logged
    ├── BrokerError           the operator of the broker: unreachable, refused, not permitted
    └── NodeError             the operator of the nodes: a process ended, or another one took its place

Rooms derive finer classes from these leaves where a caller must tell them apart. A text says what came, what was
expected, and what to do. A MessageError never ends a running node.
"""

MAX_MESSAGE_TEXT = 1000  # characters of a MessageError


class HarEdgeError(Exception):
    """Base of all errors that har_edge raises on purpose."""


class InputError(HarEdgeError):
    """An input from the person at the keyboard is wrong."""


class ConfigError(InputError):
    """A configuration file, an option or a name is wrong."""


class DataError(InputError):
    """A recording cannot be read; the text names file and line."""


class ModelError(InputError):
    """A model or slice cannot be used."""


class CutError(ModelError):
    """The model cannot be cut at the operator asked for."""


class MessageError(HarEdgeError):
    """One message is unusable; it is dropped and counted, and the node goes on.

    The text is cut, since much of it may come from the sender.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text if len(text) <= MAX_MESSAGE_TEXT else f"{text[: MAX_MESSAGE_TEXT - 1]}…")


class BrokerError(HarEdgeError):
    """The broker cannot be reached or refuses a request."""


class NodeError(HarEdgeError):
    """A node ended by itself, or another process has taken its place."""
