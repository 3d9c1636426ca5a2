"""Modules of extras that a test cannot do without: skipped by name on a machine without, never in CI."""

from __future__ import annotations

import importlib.util
import os

import pytest

from har_edge.extras import LIBRARIES, install_line


def needs(module: str) -> pytest.MarkDecorator:
    """Return a mark that skips where a library is missing; in CI the test then runs, and fails."""
    missing = importlib.util.find_spec(module) is None and os.environ.get("CI") != "true"
    return pytest.mark.skipif(missing, reason=f"needs {LIBRARIES[module].name}: {install_line(module)}")
