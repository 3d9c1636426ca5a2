"""Check the options of a training whose updates are masked, before anything is read."""

from __future__ import annotations

import argparse

from har_edge.errors import ConfigError
from har_edge.extras import require


def check_secure(args: argparse.Namespace) -> None:
    """Raise ConfigError for options with which --secure hides nothing, or without the library."""
    from har_edge.protocol.masks import LEAST_MASKED, MOST_MASKED

    if args.mode.startswith("stale"):
        raise ConfigError(
            "--secure with --mode stale: each update stands alone, so no sum hides it; choose sync or local"
        )
    if not LEAST_MASKED <= args.workers <= MOST_MASKED:
        raise ConfigError(
            f"--secure with --workers {args.workers}: each of two workers would know the other's update; ask for "
            f"{LEAST_MASKED} to {MOST_MASKED} with --workers"
        )
    if args.compress not in ("auto", "none"):
        raise ConfigError(
            f"--secure with --compress {args.compress}: masked values look random and do not compress; leave it out"
        )
    if args.int8:
        raise ConfigError(
            "--secure with --int8: each device would tell the ranges of its tensors, which no mask hides; leave one out"
        )
    require("masked sums (--secure)", "cryptography")
