"""What may be installed: bounds of what reads bytes of the network, and lock files that are current and whole."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

packaging = pytest.importorskip("packaging.requirements")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# These take apart messages, models or codes that came from elsewhere.
PARSERS = (
    "ai-edge-litert",
    "cryptography",
    "flatbuffers",
    "mqtt5",
    "msgspec",
    "numpy",
    "paho-mqtt",
    "tflite-runtime",
    "zstandard",
)
# Flower pins what it requires, also libraries that others need newer, and the quantizer one release of LiteRT: each has
# a lock file of its own.
EVERY = sorted({*PROJECT["optional-dependencies"]} - {"flower", "quantize"})
LOCKS = {"device.txt": [], "all.txt": EVERY, "flower.txt": ["flower"], "quantize.txt": ["quantize"]}
ENVIRONMENTS = [(python, machine) for python in ("3.10", "3.11", "3.12", "3.13") for machine in ("x86_64", "aarch64")]


def requirements(*extras: str) -> Iterator[packaging.Requirement]:
    """Yield what the project requires by itself and for these extras, and what extras of extras do."""
    texts = list(PROJECT["dependencies"])
    waiting = list(extras)
    while waiting:
        for text in PROJECT["optional-dependencies"][waiting.pop()]:
            requirement = packaging.Requirement(text)
            waiting += requirement.extras if requirement.name == "har-edge" else []
            texts += [text] if requirement.name != "har-edge" else []
    return map(packaging.Requirement, texts)


def pinned(name: str, python: str, machine: str) -> dict[str, str]:
    """Return the version of each package that a lock file holds for an environment; no package twice."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "platform_machine": machine,
        "sys_platform": "linux",
        "platform_python_implementation": "CPython",
    }
    held: dict[str, str] = {}
    for line in re.findall(
        r"^([a-z0-9].*?)(?: \\)?$", (ROOT / "locks" / name).read_text(encoding="utf-8"), re.MULTILINE
    ):
        requirement = packaging.Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in held, f"{requirement.name} twice for {environment}"
            held[requirement.name] = str(requirement.specifier).removeprefix("==")
    return held


@pytest.mark.parametrize("parser", PARSERS)
def test_what_reads_bytes_of_others_has_two_bounds(parser: str) -> None:
    found = [requirement for requirement in requirements("secure", "zstd") if requirement.name == parser]
    assert found
    for requirement in found:
        assert sorted(part.operator for part in requirement.specifier) == ["<", ">="], requirement


@pytest.mark.parametrize(("python", "machine"), ENVIRONMENTS)
@pytest.mark.parametrize(("name", "extras"), LOCKS.items())
def test_a_lock_file_has_what_the_project_requires(name: str, extras: list[str], python: str, machine: str) -> None:
    held = pinned(name, python, machine)
    environment = {"python_version": python, "python_full_version": f"{python}.7", "platform_machine": machine}
    wanted = [
        requirement
        for requirement in requirements(*extras)
        if requirement.marker is None or requirement.marker.evaluate(environment)
    ]
    assert [str(one) for one in wanted if not one.specifier.contains(held.get(one.name, "0"))] == [], "run `make lock`"
    assert len(wanted) >= 7


@pytest.mark.parametrize(("python", "machine"), ENVIRONMENTS)
def test_both_lock_files_agree(python: str, machine: str) -> None:
    every, device = pinned("all.txt", python, machine), pinned("device.txt", python, machine)
    assert device and device.items() <= every.items()


def test_make_lock_resolves_every_extra() -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    assert [line.split()[2:] for line in lines if line.startswith("EVERY :=")] == [EVERY]


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_hashes_and_no_place_is_named(name: str) -> None:
    text = (ROOT / "locks" / name).read_text(encoding="utf-8")
    assert "://" not in text and "index" not in text
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 10
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []
    assert [entry for entry in entries if "==" not in entry.partition("\n")[0]] == []
