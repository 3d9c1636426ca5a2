"""`har-edge data fetch mnist` against mirrors on this machine that misbehave."""

from __future__ import annotations

import gzip
import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from har_edge.cli.main import main
from har_edge.data import mnist
from har_edge.learning.data.dataset_files import read_data
from tests.learning.made_data import idx, pictures

TRAIN, TEST = pictures(400, side=12), pictures(80, side=12, seed=1)
CONTENT = {
    f"{part}-{kind}-ubyte.gz": idx(values)
    for part, data in (("train", TRAIN), ("t10k", TEST))
    for kind, values in (("images-idx3", data.x), ("labels-idx1", data.y.astype(np.uint8)))
}
FILES = tuple(
    mnist.PackedFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in CONTENT.items()
)
IMAGES = "train-images-idx3-ubyte.gz"


@dataclass
class Mirror:
    """What one mirror does: `stop_after` breaks every answer off, `breaks` says how often, `replaced` holds lies."""

    status: int | None = None
    stop_after: int = 0
    breaks: int = 0
    ranges: bool = True
    replaced: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def mirrors():
    known = {name: Mirror() for name in ("one", "two")}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            _, mirror_name, name = self.path.split("/")
            mirror, asked = known[mirror_name], self.headers.get("Range")
            mirror.requests.append((name, asked))
            if mirror.status:
                self.send_error(mirror.status)
                return
            # Each mirror packs anew, as real ones do.
            content = mirror.replaced.get(name, gzip.compress(CONTENT[name], 1 if mirror_name == "one" else 9, mtime=0))
            start = 0
            if asked and mirror.ranges:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("ETag", f'"{mirror_name}"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            stop = len(content)
            if mirror.breaks:
                mirror.breaks -= 1
                stop = start + mirror.stop_after
            self.wfile.write(content[start:stop])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name, mirror in known.items():
        mirror.url = f"http://127.0.0.1:{server.server_port}/{name}/"
    yield known["one"], known["two"]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, mirrors):
    monkeypatch.setattr(mnist, "FILES", FILES)
    monkeypatch.setattr(mnist, "MIRRORS", tuple(mirror.url for mirror in mirrors))
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fetch(*options):
    return main(["data", "fetch", "mnist", *options])


def listed(folder: Path = Path("data/mnist")):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_four_files_come_verified_and_are_read(mirrors, capsys):
    assert fetch() == 0
    output = capsys.readouterr()
    assert output.out.startswith("data/mnist: 60,000 samples to train on and 10,000 to test with (MNIST, LeCun")
    assert IMAGES in output.err
    assert listed() == sorted(CONTENT)
    data = read_data(Path("data/mnist"))
    assert np.array_equal(data.train.x, TRAIN.x) and np.array_equal(data.test.y, TEST.y)
    assert mnist.find_mnist(FILES) == Path("data/mnist")
    assert (len(mirrors[0].requests), mirrors[1].requests) == (4, [])
    assert fetch() == 0
    assert capsys.readouterr().out == ("data/mnist: the 4 files of MNIST are already here; remove them to fetch anew\n")
    assert len(mirrors[0].requests) == 4


def test_a_connection_that_breaks_goes_on_by_itself(mirrors):
    mirrors[0].stop_after, mirrors[0].breaks = 5000, 3
    assert fetch() == 0
    assert mirrors[0].requests[:4] == [
        (IMAGES, None), (IMAGES, "bytes=5000-"), (IMAGES, "bytes=10000-"), (IMAGES, "bytes=15000-")
    ]  # fmt: skip
    assert mirrors[1].requests == []
    assert listed() == sorted(CONTENT)


def test_a_mirror_that_sends_nothing_more_is_left(mirrors, capsys):
    mirrors[0].stop_after, mirrors[0].breaks = 0, 99
    assert fetch() == 0
    assert "trying the next mirror" in capsys.readouterr().err
    assert [name for name, _ in mirrors[0].requests] == list(CONTENT)
    assert listed() == sorted(CONTENT)


def test_an_interrupted_fetch_goes_on_where_it_began(mirrors, capsys):
    """The second mirror broke off: the next fetch asks it first, since parts of two mirrors do not fit together."""
    mirrors[0].status = 503
    mirrors[1].stop_after, mirrors[1].breaks = 100, 5
    assert fetch() == 2
    error = capsys.readouterr().err
    assert "came from none of 2 mirrors" in error and "answers 503" in error
    assert "the connection ended after 500 of" in error
    assert listed() == [f"{IMAGES}.part", f"{IMAGES}.part.json"]
    mirrors[0].status = None
    assert fetch() == 0
    assert mirrors[1].requests[5] == (IMAGES, "bytes=500-")
    assert listed() == sorted(CONTENT)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"<html>sign in</html>", "is not packed with gzip, or damaged"),
        (gzip.compress(CONTENT[IMAGES])[:-20], "is not packed with gzip, or damaged"),
        (gzip.compress(CONTENT[IMAGES] + b"\0"), "more bytes came, expected 57616 bytes with sha256"),
        (gzip.compress(CONTENT[IMAGES][:-1]), "57615 bytes came, expected 57616 bytes"),
        (gzip.compress(CONTENT[IMAGES][:-1] + b"\xff"), "others came, expected 57616 bytes"),
        (gzip.compress(bytes(10_000_000)), "more bytes came"),
    ],
    ids=["no gzip", "cut", "longer", "shorter", "changed", "bomb"],
)
def test_what_has_another_hash_is_thrown_away(mirrors, capsys, sent, message):
    mirrors[0].replaced[IMAGES] = sent
    assert fetch() == 0
    error = capsys.readouterr().err
    assert message in error and "trying the next mirror" in error
    assert listed() == sorted(CONTENT)
    mirrors[1].replaced[IMAGES] = sent
    (Path("data/mnist") / IMAGES).unlink()
    assert fetch() == 2
    assert (
        "came from none of 2 mirrors; give others, or a folder with the file, with --from:" in capsys.readouterr().err
    )
    assert IMAGES not in listed() and f"{IMAGES}.part" not in listed()


def test_a_damaged_file_in_place_is_fetched_anew(mirrors):
    assert fetch() == 0
    (Path("data/mnist") / IMAGES).write_bytes(b"damaged")
    assert fetch() == 0
    assert [name for name, _ in mirrors[0].requests] == [*CONTENT, IMAGES]


def test_own_mirrors_take_the_place_of_the_known_ones(mirrors, monkeypatch):
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/",))
    mirrors[0].status = 404
    assert fetch("--from", f"{mirrors[0].url},{mirrors[1].url}", "--out", "there") == 0
    assert listed(Path("there/mnist")) == sorted(CONTENT)


def test_a_folder_is_copied(here, capsys):
    origin = here / "usb"
    origin.mkdir()
    for name, content in CONTENT.items():
        (origin / name).write_bytes(gzip.compress(content))
    assert fetch("--from", str(origin)) == 0
    assert listed() == sorted(CONTENT)
    (origin / IMAGES).write_bytes(gzip.compress(b"other"))
    assert fetch("--from", str(origin), "--out", "there") == 2
    assert "does not hold train-images-idx3-ubyte.gz of MNIST: 5 bytes came" in capsys.readouterr().err
    assert listed(Path("there/mnist")) == []
    (origin / IMAGES).unlink()
    assert fetch("--from", str(origin), "--out", "there") == 2
    assert f"no {IMAGES} there; expected all of 4 files" in capsys.readouterr().err
    assert fetch("--from", "nowhere", "--out", "there") == 2
    assert "no such folder; expected one with" in capsys.readouterr().err


def test_a_full_disk_is_told_once_and_no_other_mirror_is_asked(mirrors, capsys):
    Path("data/mnist").mkdir(parents=True)
    Path(f"data/mnist/{IMAGES}.part").symlink_to("/dev/full")
    assert fetch() == 2
    error = capsys.readouterr().err
    assert "No space left on device; what came is kept: make room or take another folder (--out), and run" in error
    assert mirrors[1].requests == []


def test_a_folder_that_cannot_be_made_is_told(capsys):
    Path("data").write_text("a file is in the way")
    assert fetch() == 2
    assert "data/mnist: Not a directory; take another folder (--out)" in capsys.readouterr().err


@pytest.mark.dataset
def test_the_real_files_have_the_hashes_in_the_code(dataset, monkeypatch):
    monkeypatch.undo()
    assert all(file.is_at(dataset / "mnist" / file.name) for file in mnist.FILES)
