"""Which runtime pip can install: by the interpreter's bits, and refused with a reason where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from har_edge.inference.wheels import (
    Platform,
    missing,
    read_platform,
    refusal,
    resolve_requirements,
    runtime_for,
    wheel_machine,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
BOOKWORM_32 = Platform("Linux", "aarch64", 32, (3, 11), ("glibc", "2.36"))


def host(machine: str, bits: int, python: tuple[int, int] = (3, 11), libc: str = "2.36") -> Platform:
    return Platform("Linux", machine, bits, python, ("glibc", libc))


@pytest.mark.parametrize(
    ("came", "machine", "runtime"),
    [
        (host("aarch64", 64), "aarch64", "ai-edge-litert"),
        (host("aarch64", 64, (3, 13), "2.41"), "aarch64", "ai-edge-litert"),
        (host("x86_64", 64), "x86_64", "ai-edge-litert"),
        # 32-bit Raspberry Pi OS: on a 64-bit kernel, on it under linux32, on a 32-bit kernel
        (BOOKWORM_32, "armv7l", "tflite-runtime"),
        (host("armv8l", 32), "armv7l", "tflite-runtime"),
        (host("armv7l", 32), "armv7l", "tflite-runtime"),
    ],
)
def test_what_runs_takes_the_runtime_of_its_interpreter(came: Platform, machine: str, runtime: str) -> None:
    assert (wheel_machine(came), runtime_for(came), refusal(came)) == (machine, runtime, None)


@pytest.mark.parametrize(
    ("came", "said"),
    [
        (
            host("aarch64", 32, (3, 13), "2.41"),
            "32-bit Python 3.13 for armv7l on Linux: on 32-bit ARM the only",
        ),
        (host("aarch64", 32, (3, 11), "2.31"), "wheels of tflite-runtime need glibc 2.34 or later"),
        (host("aarch64", 64, (3, 10), "2.26"), "wheels of ai-edge-litert need glibc 2.27 or later"),
        (host("armv6l", 32), "32-bit Python 3.11 for armv6l on Linux: no runtime has wheels for it"),
        (host("x86_64", 32), "for i686 on Linux: no runtime has wheels for it"),
        (host("riscv64", 64), "for riscv64 on Linux: no runtime has wheels for it"),
        (Platform("Linux", "aarch64", 64, (3, 12), ("", "")), "C library unknown"),
        (Platform("Darwin", "x86_64", 64, (3, 12), ("", "")), "for x86_64 on Darwin: no runtime has wheels for it"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason_and_what_to_do(came: Platform, said: str) -> None:
    reason = refusal(came) or ""
    assert said in reason
    assert "use a 64-bit Debian, Ubuntu or Raspberry Pi OS" in reason
    assert missing(came, "No module") == f"there is no runtime for slices here: {reason}"


def test_a_missing_runtime_is_named_with_the_command_for_this_interpreter() -> None:
    assert missing(BOOKWORM_32, "No module named 'tflite_runtime'") == (
        "there is no runtime for slices here (No module named 'tflite_runtime'); for this interpreter: "
        "pip install 'tflite-runtime>=2.14' 'numpy<2'"
    )
    assert refusal(read_platform()) is None


def test_a_command_that_needs_a_runtime_says_so_without_a_traceback() -> None:
    script = (
        "import sys\nfor name in ('ai_edge_litert', 'tflite_runtime'):\n    sys.modules[name] = None\n"
        "from har_edge.cli.main import main\nsys.exit(main(['evaluate', '--model', 'float', '--subjects', '7']))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)
    assert "there is no runtime for slices here" in ended.stderr
    assert "pip install 'ai-edge-litert" in ended.stderr


def test_a_build_settles_the_markers_for_the_interpreter() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = {text.split(";")[0] for text in resolve_requirements(stated, "armv7l")}
    assert any(name.startswith("tflite-runtime") for name in names)
    assert not any(name.startswith(("ai-edge-litert", "mqtt5")) for name in names)
    assert [name for name in names if name.startswith("numpy")] == ["numpy<2,>=1.24"]
    others = {text.split(";")[0] for text in resolve_requirements(stated, "aarch64")}
    assert any(name.startswith("ai-edge-litert") for name in others)
    assert not any(name.startswith("tflite-runtime") for name in others)
    assert all("platform_machine" not in text for text in resolve_requirements(stated, "armv7l"))
