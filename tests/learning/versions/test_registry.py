"""The versions of a model: which is better, what is kept of each, and what a crash or a damaged file leaves."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from har_edge.cli.main import main
from har_edge.errors import DataError, ModelError
from har_edge.learning.versions import registry as registry_module
from har_edge.learning.versions.registry import MAX_VERSIONS, VersionRegistry, VersionState, compare

DEPLOYED, REFUSED, REPLACED = VersionState.DEPLOYED, VersionState.REFUSED, VersionState.REPLACED


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def registry(folder: Path) -> VersionRegistry:
    return VersionRegistry(folder, Clock())


def add(kept: VersionRegistry, content: bytes, accuracy: float, state: VersionState, reason: str = "") -> str:
    figures = {"accuracy": accuracy, "loss": 1 - accuracy}
    return kept.add(content, "lenet", figures, samples=100, data="mnist", real=True, state=state, reason=reason).sha256


@pytest.mark.parametrize(
    ("candidate", "deployed", "margin", "better"),
    [
        ({"accuracy": 0.91, "loss": 0.4}, {"accuracy": 0.90, "loss": 0.3}, 0.0, True),
        ({"accuracy": 0.90, "loss": 0.2}, {"accuracy": 0.91, "loss": 0.3}, 0.0, False),
        ({"accuracy": 0.90, "loss": 0.2}, {"accuracy": 0.90, "loss": 0.3}, 0.0, True),
        ({"accuracy": 0.90, "loss": 0.3}, {"accuracy": 0.90, "loss": 0.3}, 0.0, False),
        ({"accuracy": 0.91}, {"accuracy": 0.90}, 0.02, False),
        ({"loss": 0.2}, {"loss": 0.3, "accuracy": 0.9}, 0.0, True),
        ({"image_auroc": 0.95, "accuracy": 0.1}, {"image_auroc": 0.94, "accuracy": 0.9}, 0.0, True),
        ({"accuracy": float("nan")}, {"accuracy": 0.90}, 0.0, False),
    ],
)
def test_the_better_one_of_two(
    candidate: Mapping[str, float], deployed: Mapping[str, float], margin: float, better: bool
) -> None:
    found = compare(candidate, deployed, margin)
    assert found.better is better and "of the deployed version" in found.text


def test_both_figures_are_said_and_figures_that_share_none_are_refused() -> None:
    assert (
        compare({"accuracy": 0.5}, {"accuracy": 0.75}).text == "accuracy 0.5000 against 0.7500 of the deployed version"
    )
    with pytest.raises(
        DataError, match="the figures loss of the candidate and accuracy of the deployed version cannot"
    ):
        compare({"loss": 0.5}, {"accuracy": 0.75})


def test_versions_are_kept_with_their_models_and_read_again(tmp_path: Path) -> None:
    kept = registry(tmp_path)
    assert (kept.versions, kept.deployed, kept.previous) == ([], None, None)
    first = add(kept, b"one", 0.9, DEPLOYED)
    add(kept, b"worse", 0.8, REFUSED, "accuracy 0.8000 against 0.9000 of the deployed version")
    second = add(kept, b"two", 0.95, DEPLOYED)
    again = VersionRegistry(tmp_path)
    assert again.versions == kept.versions and [one.state for one in again.versions] == [REPLACED, REFUSED, DEPLOYED]
    assert again.deployed is not None and again.deployed.sha256 == second
    assert again.previous is not None and again.previous.sha256 == first
    assert again.previous.reason == f"{second[:12]} took its place"
    assert again.content(first) == b"one" and again.find(first[:8]).figures == {
        "accuracy": 0.9,
        "loss": pytest.approx(0.1),
    }
    assert again.deployed.held_out == "100 held-out samples of mnist (real)"


def test_going_back_makes_the_one_before_the_deployed_one(tmp_path: Path) -> None:
    kept = registry(tmp_path)
    first, second = add(kept, b"one", 0.9, DEPLOYED), add(kept, b"two", 0.95, DEPLOYED)
    kept.change(second, VersionState.ROLLED_BACK, "live accuracy 0.5 against 0.9", epoch=7)
    kept.change(first, DEPLOYED, "the version before", epoch=8)
    assert [(one.state, one.epoch) for one in VersionRegistry(tmp_path).versions] == [
        (DEPLOYED, 8),
        (VersionState.ROLLED_BACK, 7),
    ]


def test_a_model_that_is_another_one_or_gone_is_not_given(tmp_path: Path) -> None:
    kept = registry(tmp_path)
    first, second = add(kept, b"one", 0.9, DEPLOYED), add(kept, b"two", 0.95, DEPLOYED)
    kept.path(first).write_bytes(b"oNe")
    kept.path(second).unlink()
    with pytest.raises(ModelError, match="is not the version"):
        kept.content(first)
    with pytest.raises(ModelError, match="No such file or directory; this version cannot be deployed again"):
        kept.content(second)
    with pytest.raises(DataError, match="no version 'ffff'; expected one of"):
        kept.find("ffff")


@pytest.mark.parametrize("content", [b"", b"{", b'{"version":1}', b'{"version":2,"versions":[]}', b"[" * 5000])
def test_a_damaged_list_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "versions.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"versions\.json (is no list of versions|has version 2, expected 1)"):
        VersionRegistry(tmp_path)


def test_a_full_disk_leaves_the_list_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = registry(tmp_path)
    add(kept, b"one", 0.9, DEPLOYED)
    before = (tmp_path / "versions.json").read_bytes()

    def full(path: Path, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(registry_module, "write_atomic", full)
    with pytest.raises(DataError, match="No space left on device; make room"):
        add(kept, b"two", 0.95, DEPLOYED)
    assert (tmp_path / "versions.json").read_bytes() == before and len(kept.versions) == 1


def test_the_oldest_go_with_their_models_and_the_deployed_one_stays(tmp_path: Path) -> None:
    kept = registry(tmp_path)
    first = add(kept, b"first", 0.9, DEPLOYED)
    refused = [add(kept, f"{number}".encode(), 0.5, REFUSED) for number in range(MAX_VERSIONS)]
    assert len(kept.versions) == MAX_VERSIONS and kept.deployed is not None and kept.deployed.sha256 == first
    assert not kept.path(refused[0]).exists() and kept.content(refused[1]) == b"1" and kept.content(first) == b"first"


def test_the_command_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["versions", str(tmp_path)]) == 2
    assert "has no versions.json; expected the --out folder of" in capsys.readouterr().err
    kept = VersionRegistry(tmp_path)
    add(kept, b"one", 0.9, DEPLOYED)
    add(kept, b"worse", 0.8, REFUSED, "accuracy 0.8000 against 0.9000 of the deployed version")
    assert main(["versions", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    text = " ".join(said.split())
    assert max(map(len, said.splitlines()[:-1])) <= 80  # the last line is folded on terminals alone
    assert "deployed 0.9000 0.1000 100 0 s ago -" in text and "refused 0.8000 0.2000 100" in text
    assert f"2 versions; deployed: {kept.versions[0].sha256[:12]}, accuracy 0.9000, loss 0.1000 on 100 held-out" in text
    assert main(["versions", str(tmp_path), "--json"]) == 0
    assert '"state":"refused"' in capsys.readouterr().out.splitlines()[1]
