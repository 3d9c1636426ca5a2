"""A command whose extra is missing says so before it works: nothing is read, computed or written."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from har_edge import extras
from har_edge.cli.arguments import options
from har_edge.cli.main import main
from har_edge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
# What each command needs, and what it says where that is missing.
CASES = [
    (["evaluate", "--png", "x.png"], "matplotlib", "--png needs matplotlib", "evaluation"),
    (["evaluate", "--protocol", "loso"], "matplotlib", "--protocol needs matplotlib", "evaluation"),
    (["evaluate", "--protocol", "loso", "--baseline"], "sklearn", "--protocol needs scikit-learn", "evaluation"),
    (["evaluate", "--protocol", "loso"], "tensorflow", "training needs TensorFlow", "training"),
    (
        ["evaluate", "--protocol", "loso", "--reducer", "pca:4+zstd"],
        "zstandard",
        "reducer 'pca:4+zstd' needs zstandard",
        "zstd",
    ),
    (["train", "--out", "models"], "tensorflow", "training needs TensorFlow", "training"),
    (["train", "--out", "models", "--reducer", "pca:4+zstd:9"], "zstandard", "reducer 'pca:4+zstd:9' needs", "zstd"),
    (
        ["slice", "int8", "--out", "x", "--stages", "2", "--reducer", "zstd"],
        "zstandard",
        "reducer 'zstd' needs zstandard",
        "zstd",
    ),
    (["sensor", "--images", "x.png"], "PIL", "--images needs Pillow", "images"),
    (["demo", "--reducer", "chest=zstd:1"], "zstandard", "reducer 'zstd:1' needs zstandard", "zstd"),
]


@pytest.mark.parametrize(("command", "module", "said", "extra"), CASES)
def test_it_is_said_before_any_work(
    command: list[str],
    module: str,
    said: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(options, "load_recordings", lambda *_: pytest.fail("it reads recordings first"))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"error: {said}" in error
    assert re.search(rf"pip install 'har-edge\[{extra}\]'", error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("study", [[], ["--protocol", "loso"]])
def test_the_native_client_is_missed_before_any_work(
    study: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mqtt5", None)
    monkeypatch.setattr(options, "load_recordings", lambda *_: pytest.fail("it reads recordings first"))
    assert main(["evaluate", *study, "--mqtt", "--client", "native", "--broker", "mqtt://127.0.0.1:9"]) == 2
    assert "error: client 'native' needs the library mqtt5" in capsys.readouterr().err


def test_a_picture_that_cannot_be_drawn_is_said_before_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from har_edge.cli.commands import bench
    from har_edge.emulation import machine

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(machine, "check_machine", lambda: None)
    before: list[str] = []

    def measure(*_: object) -> list[object]:
        before.append(capsys.readouterr().err)
        return []

    monkeypatch.setattr(bench, "_measure", measure)
    assert main(["bench", "speedup", "--model", "int8", "--out", "out"]) == 0
    assert before == [
        "no picture will be drawn: matplotlib is not installed; pip install 'har-edge[evaluation]'\n",
    ]
    assert "measured.csv; no picture, since matplotlib is not installed" in capsys.readouterr().out


def test_several_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorflow", "sklearn", "zstandard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ConfigError,
        match=r"^this needs TensorFlow and scikit-learn, which are not installed; pip install 'har-edge\[training\]'$",
    ):
        extras.require("this", "tensorflow", "sklearn")
    with pytest.raises(ConfigError, match=r"pip install 'har-edge\[evaluation,zstd\]', or not$"):
        extras.require("this", "sklearn", "zstandard", instead=", or not")


def test_what_is_installed_is_no_error() -> None:
    extras.require("this")
    pytest.importorskip("zstandard")
    extras.require("this", "zstandard")
    assert extras.is_installed("zstandard")


def test_a_tensorflow_that_does_not_load_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise ImportError('built for another processor')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    assert main(["train", "--out", str(tmp_path / "models")]) == 2
    error = capsys.readouterr().err
    assert "which is installed but does not load (built for another processor)" in error


def test_the_table_says_what_the_project_file_says() -> None:
    """Each library is in the extra that the table names, and each extra for users has its libraries in the table."""
    stated = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    names = {extra: {re.split(r"[^\w-]", text)[0] for text in texts} for extra, texts in stated.items()}
    distributions = {"PIL": "pillow", "dp_accounting": "dp-accounting", "sklearn": "scikit-learn"}
    distributions["ai_edge_quantizer"] = "ai-edge-quantizer"
    told: dict[str, set[str]] = {}
    for library in extras.LIBRARIES.values():
        told.setdefault(library.extra, set()).add(distributions.get(library.module, library.module))
    told["training"] |= {"tensorflow-cpu", "har-edge"}
    assert {extra: names[extra] for extra in told} == told
    assert set(names) - set(told) == {"broker", "test", "docs"} and names["broker"] == set()
