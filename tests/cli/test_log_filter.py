"""Repeated warnings are one line with a count."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from har_edge.cli.log_filter import EVERY_S, MAX_STATEMENTS, MAX_TEXTS, QUIET_S, RepeatFilter


class Log:
    """A logger of its own with a clock that the test moves."""

    def __init__(self) -> None:
        self.now, self.text = 0.0, io.StringIO()
        self.handler = logging.StreamHandler(self.text)
        self.repeats = RepeatFilter(lambda: self.now)
        self.handler.addFilter(self.repeats)
        self.logger = logging.Logger("test")
        self.logger.addHandler(self.handler)

    @property
    def lines(self) -> list[str]:
        return self.text.getvalue().splitlines()


@pytest.fixture
def log() -> Iterator[Log]:
    yield Log()


def test_a_thousand_of_a_kind_are_one_line_and_then_one_with_their_number(log: Log) -> None:
    for seq in range(1000):
        log.logger.warning("gave up window %d of %s", seq, "anna")
    assert log.lines == ["gave up window 0 of anna"]
    log.now = EVERY_S
    log.logger.warning("gave up window %d of %s", 1000, "anna")
    assert log.lines[1:] == ["gave up window 1000 of anna (and 999 more like this since the last such line)"]
    log.now = 2 * EVERY_S
    log.logger.warning("gave up window %d of %s", 1001, "anna")
    assert log.lines[2:] == ["gave up window 1001 of anna"]


def test_other_words_are_another_kind_and_errors_always_pass(log: Log) -> None:
    for seq in range(3):
        log.logger.warning("gave up window %d of anna", seq)
        log.logger.warning("gave up window %d of ben", seq)
        log.logger.error("broken %d", seq)
    assert log.lines == ["gave up window 0 of anna", "gave up window 0 of ben", "broken 0", "broken 1", "broken 2"]


def test_at_the_end_nothing_is_left_unsaid(log: Log) -> None:
    for seq in range(5):
        log.logger.warning("lost %d", seq)
    log.logger.warning("once")
    log.repeats.finish(log.handler)
    log.repeats.finish(log.handler)
    assert log.lines == ["lost 0", "once", "lost 4 (and 3 more like this since the last such line)"]


def test_texts_of_one_statement_are_bounded_and_all_are_counted(log: Log) -> None:
    names = ["".join(chr(97 + number // 26**place % 26) for place in range(8)) for number in range(3000)]
    for name in names:
        log.logger.warning("dropped a message on %s", f"window/{name}/chest")
    first = [f"dropped a message on window/{name}/chest" for name in names[: MAX_TEXTS + 1]]
    assert log.lines == first
    log.now = EVERY_S
    log.logger.warning("dropped a message on %s", "window/other/chest")
    log.repeats.finish(log.handler)
    assert log.lines[len(first) :] == [
        "dropped a message on window/other/chest (and 2991 more like this since the last such line)"
    ]


def test_others_beyond_the_texts_that_are_known_do_not_hide_these(log: Log) -> None:
    for name in "abcdefghijkl":
        log.logger.warning("from %s", name)
    log.now = EVERY_S
    log.logger.warning("from %s", "a")
    log.repeats.finish(log.handler)
    assert log.lines == [
        *(f"from {name}" for name in "abcdefghi"),
        "from a",
        "from l (and 2 more like this since the last such line)",
    ]


def test_texts_that_are_over_make_room(log: Log) -> None:
    for name in "abcdefghij":
        log.logger.warning("from %s", name)
    log.now = QUIET_S
    for name in "kl":
        log.logger.warning("from %s", name)
    log.repeats.finish(log.handler)
    assert log.lines == [*(f"from {name}" for name in "abcdefghi"), "from k", "from l", "from j"]


def test_one_text_of_two_statements_or_levels_is_two_kinds(log: Log) -> None:
    log.logger.warning("lost %s", "a")
    log.logger.info("lost %s", "a")
    log.logger.warning("lost a")
    assert log.lines == ["lost a"] * 3


def test_statements_are_bounded_and_what_is_forgotten_is_counted(log: Log) -> None:
    log.logger.warning("first")
    log.logger.warning("first")
    log.logger.warning("first")
    for number in range(MAX_STATEMENTS + 50):
        log.logger.warning("from " + "x" * number)
    assert len(log.lines) == MAX_STATEMENTS + 51 and len(log.repeats._statements) == MAX_STATEMENTS
    log.repeats.finish(log.handler)
    assert log.lines[-1] == "first (and 1 more like this since the last such line)"


def test_a_process_says_the_count_when_it_ends() -> None:
    program = """
import argparse, logging
from har_edge.cli.arguments import options
options.start_logging(argparse.Namespace(verbose=False))
for seq in range(100):
    logging.getLogger("x").warning("window %d", seq)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, last = done.stderr.splitlines()
    assert first.endswith("WARNING window 0")
    assert last.endswith("WARNING window 99 (and 98 more like this since the last such line)")
