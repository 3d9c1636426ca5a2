"""Key files: who may read them, what damaged ones say, and the commands that make, rotate, copy and restore them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from har_edge.cli.main import main
from har_edge.errors import ConfigError
from har_edge.trust.keys import load_key, make_key, read_public, save_key, verify

pytest.importorskip("cryptography")


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_key_is_made_shown_rotated_backed_up_and_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, copy, phrase = tmp_path / "plans.key", tmp_path / "copy", tmp_path / "phrase"
    assert main(["keys", "new", str(key)]) == 0
    first = printed(capsys)[-1]
    assert key.stat().st_mode & 0o777 == 0o600
    assert read_public(f"{key}.pub") == read_public(first) == read_public(first[8:]) == load_key(key).public
    assert main(["keys", "rotate", str(key)]) == 0
    second = printed(capsys)[-1]
    assert second != first and [one.old for one in load_key(key).rotations] == [read_public(first)]
    phrase.touch(mode=0o600)
    phrase.write_text("correct horse\n")
    assert main(["keys", "backup", str(key), str(copy), "--passphrase-file", str(phrase)]) == 0
    assert "encrypted" in printed(capsys)[0] and "ENCRYPTED" in copy.read_text() and copy.stat().st_mode & 0o077 == 0
    key.unlink()
    assert main(["keys", "restore", str(key), str(copy)]) == 2 and not key.exists()
    assert "it is encrypted; expected --passphrase-file" in capsys.readouterr().err
    assert main(["keys", "restore", str(key), str(copy), "--passphrase-file", str(phrase)]) == 0
    assert printed(capsys)[-1] == second and load_key(key).rotations
    assert main(["keys", "show", str(key)]) == 0 and printed(capsys) == [second]
    assert main(["keys", "new", str(key)]) == 2 and "exists" in capsys.readouterr().err


def test_a_backup_without_a_passphrase_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_key(make_key(), tmp_path / "k")
    assert main(["keys", "backup", str(tmp_path / "k"), str(tmp_path / "c")]) == 0
    assert "not encrypted" in printed(capsys)[0]
    assert load_key(tmp_path / "c").public == load_key(tmp_path / "k").public


@pytest.mark.parametrize(
    ("content", "mode", "text"),
    [
        (None, 0o600, "make one with `har-edge keys new`|expected a file that you may read"),
        ("{", 0o600, "expected one of `har-edge keys new`"),
        ('{"version":1,"private":"none"}', 0o600, "expected one of `har-edge keys new`"),
        ("good", 0o644, r"may be read by others \(mode 0644\).*chmod 600"),
        ("version", 0o600, "no Ed25519 key of version 1"),
    ],
    ids=["missing", "no JSON", "no key", "readable by others", "later version"],
)
def test_a_key_file_that_cannot_be_used_says_why(tmp_path: Path, content: str | None, mode: int, text: str) -> None:
    path = tmp_path / "k"
    if content is not None:
        save_key(make_key(), path)
        if content == "version":
            content = json.dumps(json.loads(path.read_text()) | {"version": 2})
        path.write_text(path.read_text() if content == "good" else content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=text):
        load_key(path)


@pytest.mark.parametrize("text", ["ed25519:12", "g" * 64, "nowhere"])
def test_trust_in_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"no key, and no file.*expected ed25519: and 64 hex digits"):
        read_public(text)


def test_only_the_text_that_was_signed_is_verified() -> None:
    key = make_key()
    signature = key.sign(b"one")
    assert verify(key.public, signature, b"one") and not verify(key.public, signature, b"two")
    assert not verify("00" * 32, signature, b"one") and not verify(key.public, "00" * 64, b"one")
