"""Picture files and watched folders: each file once it is written, each change once, and nothing is read before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from har_edge.data.pictures import PictureFault
from har_edge.errors import ConfigError, NodeError
from har_edge.runtime.sensor import picture_files
from har_edge.runtime.sensor.picture_files import SETTLED_S, PictureFiles, PictureFolder


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def names(folder: PictureFolder) -> list[str]:
    """Return the names of what is read until nothing comes."""
    found = []
    while files := folder.read():
        found += [Path(file.name).name for file in files]
    return found


def age(path: Path) -> None:
    os.utime(path, (1e9, 1e9))


def test_what_is_there_comes_by_name_and_then_what_is_new(tmp_path: Path) -> None:
    clock = Clock()
    for name in ("b.png", "a.png", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
        age(tmp_path / name)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    folder = PictureFolder(tmp_path, clock)
    assert folder.keeps and folder.reopen()
    assert names(folder) == ["a.png", "b.png"] and names(folder) == []
    (tmp_path / "c.png").write_bytes(b"x")
    clock.now += 1
    assert names(folder) == []  # it may still be written
    clock.now += SETTLED_S
    assert names(folder) == ["c.png"]
    clock.now += 10
    assert names(folder) == []


def test_a_file_that_grows_is_read_when_it_is_whole(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "a.png"
    folder = PictureFolder(tmp_path, clock)
    for part in (b"1", b"2", b"3"):
        with path.open("ab") as file:
            file.write(part)
        clock.now += SETTLED_S * 0.9
        assert folder.read() == ()
    clock.now += SETTLED_S
    (file,) = folder.read()
    assert (file.name, file.content, file.problem) == (str(path), b"123", "")


def test_a_file_that_changes_later_is_a_new_picture(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "latest.png"
    path.write_bytes(b"one")
    age(path)
    folder = PictureFolder(tmp_path, clock)
    assert folder.read()[0].content == b"one"
    path.write_bytes(b"two")
    clock.now += 1
    assert folder.read() == ()
    clock.now += SETTLED_S
    assert folder.read()[0].content == b"two"


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"12345")
    age(path)
    monkeypatch.setattr(picture_files, "MAX_FILE_BYTES", 4)
    (file,) = PictureFolder(tmp_path, Clock()).read()
    assert file.content == b"" and file.fault is PictureFault.HUGE and "it has 5 bytes" in file.problem
    files = PictureFiles([path])
    path.unlink()
    (gone,) = files.read() or ()
    assert gone.fault is PictureFault.UNREADABLE and "No such file" in gone.problem
    assert files.read() is None and not files.reopen()


def test_names_that_no_terminal_should_get_are_escaped(tmp_path: Path) -> None:
    for name in (b"a\x1b[2J.png", b"b\xff.png", "c\u00e9.png".encode()):
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(b"x")
        age(path)
    folder = PictureFolder(tmp_path, Clock())
    assert names(folder) == ["a\\x1b[2J.png", "b\\xff.png", "cé.png"]
    assert picture_files.shown("d\udcfe\n") == "d\\xfe\\n"


def test_a_look_that_takes_long_is_followed_by_a_longer_pause(tmp_path: Path) -> None:
    times = iter([0.0, 1.0, 2.0, 4.0, 5.5])
    folder = PictureFolder(tmp_path, lambda: next(times))
    assert folder._look_at == 5.0  # a look of 1 s
    assert folder.read() == () and folder.read() == ()  # at 2 s and 4 s it does not look
    times = iter([5.5, 7.0])
    assert folder.read() == () and folder._look_at == 7.0 + 6.0


def test_folders_that_are_not_there_or_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="it is no file; expected picture files, a folder of them, or -"):
        PictureFiles([tmp_path / "cat.png"])
    with pytest.raises(ConfigError, match="No such file or directory; expected a folder of pictures"):
        PictureFolder(tmp_path / "away", Clock())
    clock, place = Clock(), tmp_path / "in"
    place.mkdir()
    folder = PictureFolder(place, clock)
    shutil.rmtree(place)
    clock.now += 1
    with pytest.raises(NodeError, match="can no longer be read"):
        folder.read()
    place.mkdir()
    monkeypatch.setattr(picture_files, "MAX_FILES", 2)
    for number in range(3):
        (place / str(number)).write_bytes(b"")
    clock.now += 1
    with pytest.raises(NodeError, match="more than 2 files"):
        folder.read()
