"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add `--data`: the folder, zip or file with recordings."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder, zip or file with recordings (default: $HAR_EDGE_DATA, then ./data)",
    )
