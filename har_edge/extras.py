"""The libraries of each extra, and the error when one is missing before the work starts."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from har_edge.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Library:
    """A library of an extra (pyproject.toml): its module, its usual name, and the extra that installs it."""

    module: str
    name: str
    extra: str


LIBRARIES = {
    library.module: library
    for library in (
        Library("PIL", "Pillow", "images"),
        Library("ai_edge_quantizer", "ai-edge-quantizer", "quantize"),
        Library("cryptography", "cryptography", "secure"),
        Library("distributed", "dask.distributed", "dask"),
        Library("dp_accounting", "dp-accounting", "privacy"),
        Library("flwr", "Flower", "flower"),
        Library("joblib", "joblib", "evaluation"),
        Library("matplotlib", "matplotlib", "evaluation"),
        Library("sklearn", "scikit-learn", "evaluation"),
        Library("tensorflow", "TensorFlow", "training"),
        Library("zstandard", "zstandard", "zstd"),
    )
}


def is_installed(module: str) -> bool:
    """Return whether a library of LIBRARIES is installed, without importing it."""
    return importlib.util.find_spec(LIBRARIES[module].module) is not None


def install_line(*modules: str) -> str:
    """Return the command that installs the extras of some libraries.

    pip keeps the har-edge that is installed, wheel or clone, and adds only what the extras need.
    """
    extras = dict.fromkeys(LIBRARIES[module].extra for module in modules)
    # The extra `training` brings `evaluation` too.
    named = [extra for extra in extras if extra != "evaluation" or "training" not in extras]
    return f"pip install 'har-edge[{','.join(named)}]'"


def require(purpose: str, *modules: str, instead: str = "") -> None:
    """Raise ConfigError when one of these libraries is missing; `instead` names another way than to install it."""
    missing = [module for module in modules if not is_installed(module)]
    if missing:
        names = " and ".join(LIBRARIES[module].name for module in missing)
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(f"{purpose} needs {names}, which {verb} not installed; {install_line(*missing)}{instead}")
