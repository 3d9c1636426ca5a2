"""`har-edge data`: download recordings, and print what they hold."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.cli.console import make_console, say

if TYPE_CHECKING:
    from rich.progress import Progress

    from har_edge.data.description import StreamDescription
    from har_edge.data.recording import Recording
    from har_edge.data.summary import Share

HELP = "download recordings, or print what they hold"
URL = "https://archive.ics.uci.edu/static/public/319/mhealth+dataset.zip"
LICENCE = "mHealth, Banos et al. 2014, UCI Machine Learning Repository 319, CC BY 4.0"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add `fetch` and `info` and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fetch = actions.add_parser(
        "fetch",
        help="download mHealth or MNIST into a folder",
        description="Download mHealth or MNIST into a folder, and check what came. An interrupted download goes on.",
    )
    fetch.add_argument(
        "what", nargs="?", choices=("mhealth", "mnist"), default="mhealth", help="data set (default: mhealth)"
    )
    fetch.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="target folder (default: data)")
    origin = fetch.add_mutually_exclusive_group()
    origin.add_argument(
        "--from",
        dest="origin",
        metavar="ZIP|DIR|URLS",
        help="copy from this zip or folder instead of downloading; for mnist a folder, or mirrors to try in turn, with "
        "commas between",
    )
    origin.add_argument("--url", help=f"URL to download from (default: several mirrors for mnist, {URL})")
    info = actions.add_parser(
        "info",
        help="print rows, segments and seconds by subject and activity",
        description="Print rows, segments and seconds by subject and activity.",
    )
    options.add_data(info)
    info.add_argument(
        "--stream", default="mhealth", metavar="NAME|TOML", help="the data set's description (default: mhealth)"
    )
    # The option's earlier name. The help omits it. Its default is not None, which would overwrite that of --stream.
    info.add_argument("--description", dest="stream", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    info.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run `har-edge data fetch` or `har-edge data info`."""
    if args.action != "fetch":
        return _info(args)
    return _fetch(args) if args.what == "mhealth" else _fetch_mnist(args)


def _fetch_mnist(args: argparse.Namespace) -> int:
    from har_edge.cli.mirrors import copy_files, fetch_files
    from har_edge.data.mnist import FILES, FOLDER, LICENCE, MIRRORS

    folder = args.out / FOLDER
    origin = args.origin or args.url
    if not [file for file in FILES if not file.is_at(folder / file.name)]:
        unread = "" if origin is None else f", so {origin} was not read"
        say(f"{folder}: the {len(FILES)} files of MNIST are already here{unread}; remove them to fetch anew")
        return 0
    mirrors = MIRRORS if origin is None else tuple(mirror for mirror in origin.split(",") if mirror)
    if args.origin is not None and not any("://" in mirror for mirror in mirrors):
        copy_files(FILES, Path(args.origin), folder)
    else:
        with _progress() as bar:
            fetch_files(FILES, mirrors, folder, lambda name: _bar(bar, name), lambda text: say(text, file=sys.stderr))
    say(f"{folder}: 60,000 samples to train on and 10,000 to test with ({LICENCE})")
    return 0


def _bar(progress: Progress, name: str) -> Callable[[int, int | None], None]:
    task = progress.add_task(name, total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)


def _fetch(args: argparse.Namespace) -> int:
    from har_edge.data.archive import list_files
    from har_edge.data.description import load_description
    from har_edge.data.install import install
    from har_edge.errors import DataError

    description = load_description("mhealth")
    origin = None if args.origin is None else Path(args.origin)
    if origin is not None and not origin.exists():
        raise DataError(f"--from {origin}: no such file or folder; expected the zip or folder of mHealth")
    try:
        files = list_files(args.out, description)
    except DataError:
        place = install(origin, args.out, description) if origin else _download(args, description)
        say(f"{place}: {len(list_files(args.out, description))} recordings ({LICENCE})")
    else:
        unread = "" if origin is None else f", so {origin} was not read"
        say(f"{args.out}: {len(files)} recordings are already here{unread}; remove them to fetch anew")
    return 0


def _download(args: argparse.Namespace, description: StreamDescription) -> Path:
    from har_edge.cli.download import StorageError, download, forget
    from har_edge.data.install import install
    from har_edge.errors import DataError

    url = args.url or URL
    args.out.mkdir(parents=True, exist_ok=True)
    part = args.out / "MHEALTHDATASET.zip.part"
    try:
        with _progress() as bar:
            download(url, part, _bar(bar, "mHealth"))
    except StorageError:
        raise
    except DataError as error:
        raise DataError(f"{error}; try again, or bring the zip another way and give it with --from ZIP") from error
    try:
        place = install(part, args.out, description)
    except DataError as error:
        forget(part)
        raise DataError(f"{url}: what came is not mHealth: {error}") from error
    forget(part)
    return place


def _progress() -> AbstractContextManager[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr))


def _info(args: argparse.Namespace) -> int:
    from har_edge.data.description import load_description
    from har_edge.data.locate import find_data
    from har_edge.data.summary import summarize

    description = load_description(args.stream)
    where = find_data(args.data, description)
    recordings, origin = options.load_recordings(args, description, None, keep_null=True)
    shares = [share for recording in recordings for share in summarize(recording, description.labels)]
    if args.json:
        _print_json(where, description, recordings, shares)
    else:
        _print_table(origin, description, shares)
    return 0


def _print_json(
    where: Path | None, description: StreamDescription, recordings: list[Recording], shares: list[Share]
) -> None:
    from dataclasses import asdict

    document = {
        "data": None if where is None else str(where),
        "real": all(recording.real for recording in recordings),
        "description": description.name,
        "rate_hz": description.rate_hz,
        "sources": {source.name: source.channels for source in description.sources},
        "rows": sum(len(recording) for recording in recordings),
        "activities": [asdict(share) for share in shares],
    }
    print(json.dumps(document, indent=2))


def _print_table(origin: str, description: StreamDescription, shares: list[Share]) -> None:
    from rich import box
    from rich.table import Table

    sources = ", ".join(f"{source.name} ({len(source.channels)} channels)" for source in description.sources)
    table = Table(box=box.SIMPLE, title_justify="left")
    for heading in ("subject", "label", "activity", "rows", "segments", "seconds"):
        words = heading in ("subject", "activity")
        table.add_column(heading, justify="left" if words else "right", no_wrap=not words)
    streams = list(dict.fromkeys(share.stream for share in shares))
    for stream in streams:
        own = [share for share in shares if share.stream == stream]
        for index, share in enumerate(own):
            table.add_row(stream if index == 0 else "", str(share.label), share.activity, *_numbers([share]))
        table.add_row("", "", "all", *_numbers(own), end_section=True)
    table.add_row("all", "", "all", *_numbers(shares))
    say(f"{description.name}: {origin}; {description.rate_hz:g} Hz; {sources}")
    make_console().print(table)


def _numbers(shares: list[Share]) -> tuple[str, str, str]:
    rows, segments = sum(share.rows for share in shares), sum(share.segments for share in shares)
    return f"{rows:,}", f"{segments:,}", f"{sum(share.seconds for share in shares):,.1f}"
