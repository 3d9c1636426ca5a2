"""Arguments of a program: refused at once where they are of the wrong type, and named as Python has them in errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from reprlib import repr as short

from har_edge.errors import ConfigError, HarEdgeError

# Options of the commands, with what a program gives instead.
_ARGUMENTS = {
    "arrays": "pictures=True without labels",
    "at": "cuts=[...]",
    "labels": "labels=[...]",
    "list": "Model.cuts",
    "name": "name=...",
    "normalize": "normalize=(mean, std)",
    "out": "folder",
    "reducer": "reducers={...}",
    "stages": "stages=N",
}
# Whole commands stand in backticks: those are for a shell.
_OPTION = re.compile(r"`[^`]*`|--([a-z][a-z-]*)(?: [A-Z]{2}[A-Z,.=]*)?")


@contextmanager
def python_words() -> Iterator[None]:
    """Say in errors how an argument is given in Python, not as an option of a command."""
    try:
        yield
    except HarEdgeError as error:
        error.args = (_OPTION.sub(_as_argument, str(error)),)
        raise


def _as_argument(found: re.Match[str]) -> str:
    return _ARGUMENTS.get(found[1] or "", found[0])


def check_count(name: str, value: object) -> None:
    """Raise ConfigError for what is no whole number, None aside."""
    if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
        raise _wrong(name, value, "a whole number")


def check_number(name: str, value: object) -> None:
    """Raise ConfigError for what is no number, None aside."""
    if value is not None and (not isinstance(value, Real) or isinstance(value, bool)):
        raise _wrong(name, value, "a number")


def check_text(name: str, value: object) -> None:
    """Raise ConfigError for what is no text, None aside."""
    if value is not None and not isinstance(value, str):
        raise _wrong(name, value, "a text")


def check_path(name: str, value: object, *others: type) -> None:
    """Raise ConfigError for what is neither a path nor one of some other types."""
    if not isinstance(value, (str, os.PathLike, *others)):
        raise _wrong(name, value, " or ".join(["a path", *(f"a {kind.__name__}" for kind in others)]))


def check_counts(name: str, value: object) -> None:
    """Raise ConfigError for what is no list of whole numbers, None aside."""
    numbers = isinstance(value, Sequence) and all(
        isinstance(one, Integral) and not isinstance(one, bool) for one in value
    )
    if value is not None and (not numbers or isinstance(value, str | bytes)):
        raise _wrong(name, value, "a list of whole numbers")


def check_texts(name: str, value: object) -> None:
    """Raise ConfigError for what is no list of texts, such as a single text, None aside."""
    texts = isinstance(value, Sequence) and all(isinstance(one, str) for one in value)
    if value is not None and (not texts or isinstance(value, str)):
        raise _wrong(name, value, "a list of texts")


def check_mapping(name: str, value: object) -> None:
    """Raise ConfigError for what is no mapping of texts to texts."""
    if not isinstance(value, Mapping) or not all(isinstance(one, str) for one in (*value, *value.values())):
        raise _wrong(name, value, "a mapping of texts to texts")


def _wrong(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{name}={short(value)} came, of type {type(value).__name__}; expected {expected}")
