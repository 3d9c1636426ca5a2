"""Print text that fits the terminal: lines break between words; tables drop a bar or stack names before figures are
cut.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Item = TypeVar("Item")
LEAST_COLUMNS = 40
# Seconds between two lines of progress when no terminal shows a bar.
TOLD_EVERY_S = 10.0
_COMMAND = re.compile(r"(.*: )(har-edge .*)")
_GLUE = "\0"  # in place of a space that no line ends at
_QUOTED = re.compile(r"`([^`]+)`")


def columns() -> int:
    """Return the width of the output: $COLUMNS, else the terminal's width, else 80."""
    return max(LEAST_COLUMNS, shutil.get_terminal_size((80, 24)).columns)


def folds(file: TextIO | None = None) -> bool:
    """Return whether lines are broken: on a terminal only, since programs that read a file look for whole lines."""
    return (file or sys.stdout).isatty()


def fold(text: str, indent: int = 4, file: TextIO | None = None) -> str:
    """Return the text with lines broken between words and the following lines indented, on a terminal only (see
    `folds`).

    Words are not split, so a path or a hash stays whole however long it is. A command at the end of a line stays whole,
    too, so that it can be copied.
    """
    if not folds(file):
        return text
    if "\n" in text:
        return "\n".join(fold(line, indent, file) for line in text.split("\n"))
    found = _COMMAND.fullmatch(text) if len(text) > columns() else None
    said, command = (found[1].rstrip(), found[2]) if found else (text, "")
    wrapper = textwrap.TextWrapper(
        columns(),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
        tabsize=8,
    )
    lines = wrapper.fill(said) if len(said) > columns() else said
    return f"{lines}\n{' ' * indent}{command}" if command else lines


def fold_commands(text: str, indent: int = 4, file: TextIO | None = None) -> str:
    """Return text broken like `fold`, but not within a command in backquotes, so that it can be copied whole.

    A command longer than a line stands alone, and its lines end with a backslash, so that a shell reads them as one.
    """
    if not folds(file) or len(text) <= columns():
        return text
    lines, margin, sentence = list[str](), " " * indent, ""
    for number, part in enumerate(_QUOTED.split(text)):
        if number % 2 == 0:
            sentence += part
        elif len(part) + indent + 2 <= columns():
            sentence += f"`{part.replace(' ', _GLUE)}`"
        else:
            lines += [*_wrap(sentence, margin if lines else "", margin), *continue_command(part, columns(), margin)]
            sentence = ""
    lines += _wrap(sentence.lstrip(";, "), margin if lines else "", margin)
    return "\n".join(lines).replace(_GLUE, " ")


def split_command(text: str) -> tuple[str, str]:
    """Return a text without the command at its end, and the command; empty where it ends with none."""
    found = _COMMAND.fullmatch(text)
    return (found[1].rstrip(), found[2]) if found else (text, "")


def continue_command(command: str, width: int, margin: str) -> list[str]:
    """Return the lines of a command in so many columns; all but the last end with a backslash."""
    if len(margin + command) <= width:
        return [margin + command]
    *firsts, last = textwrap.wrap(command, width - len(margin) - 2, break_long_words=False, break_on_hyphens=False)
    return [*(f"{margin}{line} \\" for line in firsts), margin + last]


def _wrap(text: str, first: str, margin: str) -> list[str]:
    return textwrap.wrap(
        text, columns(), initial_indent=first, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )


def say(text: str, indent: int = 4, file: TextIO | None = None) -> None:
    """Print text that fits the terminal; see `fold`."""
    print(fold(text, indent, file), file=file or sys.stdout, flush=True)


def make_console() -> Console:
    """Return a console of the output's width, on a terminal or not."""
    from rich.console import Console

    return Console(highlight=False, width=columns())


def first_fit(console: Console, layouts: Iterable[Callable[[], Table]]) -> Table:
    """Return the first of these layouts of one table that is no wider than the console, else the last.

    The widest layout comes first. The last one must not wrap figures, whatever the width of names.
    """
    table: Table | None = None
    for layout in layouts:
        table = layout()
        if table.__rich_measure__(console, console.options.update(max_width=10_000)).maximum <= console.width:
            break
    assert table is not None
    return table


def count(items: Iterable[Item], what: str, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Item]:
    """Pass items on and show how many came, when their number is not known; see `follow`."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(what) as status:
            for number, item in enumerate(items, start=1):
                status.update(f"{what}: {number}")
                yield item
        return
    yield from _tell(items, what, " so far", clock)


def follow(
    items: Iterable[Item], total: int, what: str, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Item]:
    """Pass items on and show the progress on standard error: a bar on a terminal, else a line every 10 s."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description=what, total=total, console=Console(stderr=True), transient=True)
        return
    yield from _tell(items, what, f" of {total}", clock)


def _tell(items: Iterable[Item], what: str, of: str, clock: Callable[[], float]) -> Iterator[Item]:
    """Pass items on, and print a line with their number now and then."""
    told = clock()
    for done, item in enumerate(items):
        if clock() - told >= TOLD_EVERY_S:
            told = clock()
            print(f"{what}: {done}{of}", file=sys.stderr, flush=True)
        yield item
