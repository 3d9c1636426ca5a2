"""The help of every command, held by snapshots, tests/cli/help/*.txt, and the page docs/reference/commands.md.

After a change that is meant: HAR_EDGE_UPDATE=1 pytest tests/cli/test_help.py, and read the difference.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from har_edge.cli.arguments import values
from har_edge.cli.main import COMMANDS, build_parser, main
from har_edge.protocol import wire

FOLDER = Path(__file__).parent / "help"


def check(name: str, text: str) -> None:
    path = FOLDER / f"{name}.txt"
    if os.environ.get("HAR_EDGE_UPDATE"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


def test_what_others_said_cannot_move_the_cursor() -> None:
    """Errors and logs name what came over the network."""
    program = """
import argparse, logging
from har_edge.cli import main
from har_edge.cli.arguments import options
from har_edge.errors import NodeError

def run(args):
    options.start_logging(argparse.Namespace(verbose=False))
    logging.warning("node a: %s", "\\x1b[2J")
    raise NodeError("node b: \\x9b31m\\nsecond line")

main.COMMANDS = ("data",)
import har_edge.cli.commands.data
har_edge.cli.commands.data.run = run
main.main(["data", "info"])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert r"WARNING node a: \x1b[2J" in ended.stderr and "error: node b: \\x9b31m\nsecond line" in ended.stderr
    assert "\x1b" not in ended.stderr and "\x9b" not in ended.stderr


def test_output_that_cannot_be_written_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "har_edge.cli.main", "slice", "float", "--list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    expected = "error: cannot write the output: No space left on device; make room, or send it elsewhere\n"
    assert (ended.returncode, ended.stderr) == (2, expected)


def test_output_that_nobody_reads_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "har_edge.cli.main", "slice", "float", "--list"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize(("fd", "name"), [(1, "output"), (2, "error")])
def test_a_closed_stream_is_an_error(fd: int, name: str) -> None:
    command = [sys.executable, "-m", "har_edge.cli.main", "slice", "float", "--list"]
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {fd}>&-', "sh", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = f"error: standard {name} is closed; send it elsewhere, such as {fd if fd > 1 else ''}> /dev/null\n"
    assert (ended.returncode, ended.stdout + ended.stderr) == (2, said)


def test_main_help() -> None:
    check("har-edge", build_parser().format_help())


def _paths() -> dict[str, list[str]]:
    """Return every command, and every action of a command, by the name of its snapshot."""
    paths: dict[str, list[str]] = {}
    todo: list[tuple[list[str], argparse.ArgumentParser]] = [([], build_parser())]
    while todo:
        path, parser = todo.pop()
        if path:
            paths["-".join(path)] = path
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                todo += [([*path, name], inner) for name, inner in action.choices.items()]
    return paths


def test_actions_are_found() -> None:
    assert {"data-fetch", "data-info", *COMMANDS} <= set(_paths())


@pytest.mark.parametrize("name", sorted(_paths()))
def test_command_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*_paths()[name], "--help"])
    assert exit_.value.code == 0
    check(name, capsys.readouterr().out)


def test_the_page_of_commands_is_what_the_parsers_say() -> None:
    script = Path(__file__).parents[2] / "docs" / "tools" / "commands.py"
    spec = importlib.util.spec_from_file_location("commands", script)
    assert spec is not None and spec.loader is not None
    commands = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(commands)
    if os.environ.get("HAR_EDGE_UPDATE"):
        commands.PAGE.write_text(commands.render(), encoding="utf-8")
    assert commands.PAGE.read_text(encoding="utf-8") == commands.render()


def test_every_snapshot_has_its_command() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == {"har-edge", *_paths()}


def test_an_error_the_user_can_mend_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stage", "--config", "nowhere.toml", "--index", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot read nowhere.toml: No such file or directory")


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fly"])
    assert "invalid choice: 'fly'" in capsys.readouterr().err


def test_the_batch_limit_of_the_options_is_that_of_the_wire() -> None:
    assert values.MAX_BATCH == wire.MAX_BATCH


def test_an_error_of_the_parser_and_an_address_in_help_break_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("har_edge.cli.console.folds", lambda file=None: True)
    with pytest.raises(SystemExit) as ended:
        main(["stage", "--index", "0", *(f"--no-such-option-{number}" for number in range(6))])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 60 and lines[-1] == "    --no-such-option-4 --no-such-option-5"
    with pytest.raises(SystemExit):
        main(["data", "fetch", "--help"])
    assert "https://archive.ics.uci.edu/static/public/319/mhealth+dataset.zip)" in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["train"], "usage: har-edge train [--help] [OPTION ...] --out DIR"),
        (["slice"], "usage: har-edge slice [--help] [OPTION ...] MODEL"),
    ],
)
def test_a_usage_error_names_what_is_needed_and_the_error_alone(
    words: list[str], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    first, second = capsys.readouterr().err.splitlines()
    assert (ended.value.code, first) == (2, usage)
    assert second.startswith(f"har-edge {words[0]}: error: the following arguments are required: ")
