"""The store of files by hash: whole or not at all, checked before use, bounded."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from har_edge.errors import MessageError, NodeError
from har_edge.runtime.artifact_store import Store, default_folder


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(store: Store, content: bytes) -> str:
    store.put(sha256_of(content), content)
    return sha256_of(content)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_put_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b")
    assert not store.has(sha256_of(b"x"))
    name = put(store, b"x")
    assert store.has(name) and store.path(name).read_bytes() == b"x"
    assert Store(tmp_path / "a" / "b").path(name).read_bytes() == b"x"  # another process finds it
    assert put(store, b"") == sha256_of(b"") and store.path(sha256_of(b"")).read_bytes() == b""


def test_content_of_another_hash_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(MessageError, match=f"1 bytes with sha256 {sha256_of(b'y')} came for .*: forged or corrupt"):
        store.put(sha256_of(b"x"), b"y")
    assert files(tmp_path) == set()


@pytest.mark.parametrize("name", ["", "../" + "0" * 61, "0" * 63, "A" * 64, "0" * 63 + "\n"])
def test_what_is_no_hash_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    for use in (Store(tmp_path).has, Store(tmp_path).path, lambda name: Store(tmp_path).put(name, b"")):
        with pytest.raises(MessageError, match="expected a SHA-256 as 64 hex digits"):
            use(name)


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=f"0000 is not in {tmp_path}; expected a file that was fetched before"):
        Store(tmp_path).path("0" * 64)


@pytest.mark.parametrize("damage", [b"hellp", b"hell", b"hello!"])
def test_a_file_damaged_on_disk_is_thrown_away(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    name = put(Store(tmp_path), b"hello")
    (tmp_path / name).write_bytes(damage)
    store = Store(tmp_path)
    assert not store.has(name) and not (tmp_path / name).exists()
    assert f"{name} is damaged: its content is not what its name says" in caplog.text
    assert put(store, b"hello") == name and store.path(name).read_bytes() == b"hello"


def test_a_file_that_another_process_replaced_is_hashed_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    name = put(store, b"hello")
    (tmp_path / "new").write_bytes(b"other")
    (tmp_path / "new").replace(tmp_path / name)
    assert not store.has(name)


def test_a_file_is_hashed_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = put(Store(tmp_path), b"hello")
    store, hashed = Store(tmp_path), []
    from har_edge.runtime import artifact_store as module

    real = module._hash_of
    monkeypatch.setattr(module, "_hash_of", lambda file: hashed.append(Path(file.name)) or real(file))
    for _ in range(3):
        assert store.has(name) and store.path(name)
    assert hashed == [tmp_path / name]


def age(folder: Path, name: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / name, (then, then))


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=30)
    oldest, middle, newest = (put(store, bytes([k]) * 10) for k in range(3))
    for seconds, name in ((30, oldest), (20, middle), (10, newest)):
        age(tmp_path, name, seconds)
    store.path(oldest)  # used just now
    last = put(store, b"x" * 5)
    assert files(tmp_path) == {oldest, newest, last}
    assert not store.has(middle)


def test_what_is_to_be_kept_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=30)
    oldest, middle, newest = (put(store, bytes([k]) * 10) for k in range(3))
    for seconds, name in ((30, oldest), (20, middle), (10, newest)):
        age(tmp_path, name, seconds)
    store.keep([oldest])
    store.keep_also([middle])
    fresh = put(store, b"x" * 10)
    assert files(tmp_path) == {oldest, middle, fresh}
    text = rf"11 bytes more do not fit into {tmp_path}: 20 bytes there are in use and the limit is 30; .* at least 31"
    with pytest.raises(NodeError, match=text):
        put(store, b"y" * 11)
    assert files(tmp_path) == {oldest, middle, fresh}  # nothing is lost for what does not fit anyway
    store.keep([])
    put(store, b"y" * 11)
    assert len(files(tmp_path)) == 2


def test_what_is_released_goes_only_when_room_is_needed(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=20)
    first, second = sha256_of(b"a" * 10), sha256_of(b"b" * 10)
    store.keep_also([first, second])
    put(store, b"a" * 10)
    put(store, b"b" * 10)
    store.release([first, first])
    assert files(tmp_path) == {first, second}
    third = put(store, b"c" * 10)
    assert files(tmp_path) == {second, third}


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    text = rf"cannot keep 100000 bytes in {tmp_path}: File too large; \d+ bytes are free: make room .* with --cache"
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(NodeError, match=text):
            put(Store(tmp_path), bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == set()  # the half that was written is gone
    put(Store(tmp_path), bytes(100_000))


def test_what_the_disk_cannot_hold_is_said_before_it_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", limit_bytes=2**62)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(
        NodeError, match=rf"cannot keep \d+ bytes in {tmp_path}/cache: No space left on device; \d+ bytes"
    ):
        store.make_room(2 * free)
    store.make_room(free // 100)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a file system that nobody can write to")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (Path("/proc/har-edge"), tmp_path / "file" / "cache"):
        with pytest.raises(NodeError, match=rf"cannot keep 1 bytes in {folder}: .*; give|cannot keep .* with --cache"):
            put(Store(folder), b"x")
        assert not Store(folder).has(sha256_of(b"x"))


def test_a_process_killed_while_it_writes_leaves_nothing_that_counts(tmp_path: Path) -> None:
    script = """
import hashlib, os, pathlib, sys
from har_edge.runtime.artifact_store import Store
real = pathlib.Path.replace
pathlib.Path.replace = lambda *_: os._exit(9)
content = bytes(1000)
Store(pathlib.Path(sys.argv[1])).put(hashlib.sha256(content).hexdigest(), content)
"""
    assert subprocess.run([sys.executable, "-c", script, tmp_path], timeout=60).returncode == 9
    (left,) = files(tmp_path)
    assert not Store(tmp_path).has(sha256_of(bytes(1000)))
    age(tmp_path, left, 7200)
    name = put(Store(tmp_path), b"x")
    assert files(tmp_path) == {name}


def test_a_draft_of_a_living_process_stays(tmp_path: Path) -> None:
    (tmp_path / ".draft-1").write_bytes(b"half")
    put(Store(tmp_path), b"x")
    assert (tmp_path / ".draft-1").exists()


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "har-edge" / "slices"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "har-edge" / "slices"


def test_threads_may_share_a_folder(tmp_path: Path) -> None:
    """Some with a store of their own, as processes have; whatever they evict, no file is ever half there."""
    shared, limit = Store(tmp_path, limit_bytes=20_000), 20_000

    def work(seed: int) -> None:
        store = shared if seed % 2 else Store(tmp_path, limit)
        for number in range(25):
            content = bytes([seed % 4, number]) * 500  # two threads write the same
            store.put(sha256_of(content), content)
            assert not store.has("0" * 64)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    left = list(tmp_path.iterdir())
    assert all(sha256_of(path.read_bytes()) == path.name for path in left)
    assert 10 <= len(left) <= 20 + 8  # each of eight may have looked before the others wrote
