"""Parse the text that asks for a reducer: METHOD[:OPTION...][+METHOD...]."""

from __future__ import annotations

import re
from dataclasses import dataclass

from har_edge.errors import ConfigError

# Learned methods: with a size K they are recipes, to be fitted; fitted ones name their files instead.
FITTED = frozenset({"pca", "ae", "cae", "bottleneck"})
_OPTION = re.compile(r"[A-Za-z0-9_.,+-]+")


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One method of a specification, with the texts of its options."""

    method: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ":".join((self.method, *self.options))

    @property
    def is_recipe(self) -> bool:
        """True for a learned method given by its size, such as `pca:16`."""
        return self.method in FITTED and any(option.isascii() and option.isdigit() for option in self.options)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the fitted files that the method needs."""
        return self.options if self.method in FITTED and not self.is_recipe else ()


def parse_spec(spec: str) -> tuple[MethodSpec, ...]:
    """Parse a text such as `paa:5+q8`. Raises ConfigError for an empty method or option, or a file outside its folder.

    `make_reducer` checks whether the methods exist and fit each other.
    """
    parts = []
    # No method starts with a digit: a plus before one belongs to a number, as in q8:1e+2:0.
    for text in re.split(r"\+(?![0-9])", spec):
        method, *options = text.strip().split(":")
        for option in (method, *options):
            if not _OPTION.fullmatch(option):
                raise ConfigError(
                    f"reducer {spec!r}: {option!r} in {text.strip()!r} is no method or option, expected "
                    "METHOD[:OPTION...][+METHOD...] of letters, digits, '_', '-', ',', '.'; name files without folders"
                )
        parts.append(MethodSpec(method, tuple(options)))
    return tuple(parts)


def is_recipe(spec: str) -> bool:
    """Return whether the specification has a learned method that is not fitted yet, as in `pca:16+zlib`."""
    return any(part.is_recipe for part in parse_spec(spec))


def file_names(spec: str) -> tuple[str, ...]:
    """Return the names of the files that a specification needs, in order, each once."""
    return tuple(dict.fromkeys(name for part in parse_spec(spec) for name in part.files))
