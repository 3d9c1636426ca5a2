"""`har-edge data fetch` against a local HTTP server that misbehaves in every usual way, and `har-edge data info`."""

import io
import json
import socket
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from har_edge.cli import download as download_module
from har_edge.cli.main import main

LINE = "\t".join(["0.5"] * 23)
LOG = "".join(f"{LINE}\t{label}\n" for label in (1, 1, 0, 4, 4, 4, 1)).encode()


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


OFFICIAL = make_zip(
    {
        "MHEALTHDATASET/README.txt": "read me",
        "MHEALTHDATASET/mHealth_subject1.log": LOG,
        "MHEALTHDATASET/mHealth_subject2.log": LOG * 100,
    }
)
NESTED = make_zip({"MHEALTHDATASET.zip": OFFICIAL, "README.txt": "read me"})


@dataclass
class Behaviour:
    """What the server serves and how: `stop_after` ends one answer early, `ranges` and `length` are what it knows."""

    content: bytes = OFFICIAL
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    length: bool = True
    stop_after: int | None = None
    status: int | None = None
    requests: list = field(default_factory=list)


@pytest.fixture
def served():
    behaviour = Behaviour()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            behaviour.requests.append((asked, self.headers.get("If-Range")))
            if behaviour.status:
                self.send_error(behaviour.status)
                return
            content, start = behaviour.content, 0
            validators = (behaviour.etag, behaviour.modified)
            unchanged = self.headers.get("If-Range") in (None, *validators)
            if asked and behaviour.ranges and unchanged:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            for name, value in (("ETag", behaviour.etag), ("Last-Modified", behaviour.modified)):
                if value:
                    self.send_header(name, value)
            if behaviour.length:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            stop = len(content) if behaviour.stop_after is None else start + behaviour.stop_after
            behaviour.stop_after = None
            self.wfile.write(content[start:stop])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    behaviour.url = f"http://127.0.0.1:{server.server_port}/mhealth.zip"
    yield behaviour
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def fetch(served):
    return main(["data", "fetch", "--url", served.url])


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("content", [OFFICIAL, NESTED])
def test_fetch_brings_the_recordings_into_data(here, served, capsys, content):
    served.content = content
    assert fetch(served) == 0
    assert listed(here) == ["data/MHEALTHDATASET.zip"]
    assert (here / "data" / "MHEALTHDATASET.zip").read_bytes() == OFFICIAL
    output = capsys.readouterr()
    assert output.out.startswith("data/MHEALTHDATASET.zip: 2 recordings (mHealth, Banos et al. 2014")
    assert "mHealth" in output.err
    assert fetch(served) == 0
    assert capsys.readouterr().out == "data: 2 recordings are already here; remove them to fetch anew\n"
    assert len(served.requests) == 1
    assert main(["data", "info"]) == 0


@pytest.mark.parametrize("validator", [{"etag": '"one"'}, {"etag": None, "modified": "Tue, 06 Dec 2022 10:00:00 GMT"}])
def test_fetch_goes_on_where_it_stopped(here, served, capsys, validator):
    for name, value in validator.items():
        setattr(served, name, value)
    served.stop_after = 1000
    assert fetch(served) == 2
    error = capsys.readouterr().err
    assert f"the connection ended after 1000 of {len(OFFICIAL)} bytes; run again to go on from there" in error
    assert (here / "data" / "MHEALTHDATASET.zip.part").stat().st_size == 1000
    assert fetch(served) == 0
    assert served.requests == [
        (None, None),
        ("bytes=1000-", next(iter(value for value in validator.values() if value))),
    ]
    assert listed(here) == ["data/MHEALTHDATASET.zip"]
    assert (here / "data" / "MHEALTHDATASET.zip").read_bytes() == OFFICIAL


@pytest.mark.parametrize(
    "change",
    [
        {"ranges": False},
        {"etag": '"two"'},
        {"etag": None},
        {"etag": 'W/"weak"'},
        {"length": False},
    ],
)
def test_a_second_start_comes_to_the_same_whatever_the_server_does(here, served, change):
    served.stop_after = 1000
    assert fetch(served) == 2
    for name, value in change.items():
        setattr(served, name, value)
    assert fetch(served) == 0
    assert (here / "data" / "MHEALTHDATASET.zip").read_bytes() == OFFICIAL
    assert served.requests[1] == ("bytes=1000-", '"one"')


def test_without_a_validator_the_range_alone_is_asked_for(here, served):
    served.etag = None
    served.stop_after = 1000
    assert fetch(served) == 2
    assert fetch(served) == 0
    assert served.requests[1] == ("bytes=1000-", None)
    assert (here / "data" / "MHEALTHDATASET.zip").read_bytes() == OFFICIAL


def test_a_file_changed_without_notice_is_found_out_and_the_next_fetch_begins_anew(here, served, capsys):
    served.etag = None
    served.content = make_zip({"other.bin": bytes(5000)})
    served.stop_after = 1000
    assert fetch(served) == 2
    served.content = OFFICIAL
    assert fetch(served) == 2
    assert "what came is not mHealth" in capsys.readouterr().err
    assert listed(here) == []
    assert fetch(served) == 0


def test_a_complete_part_is_used_as_it_is(here, served):
    served.stop_after = 1000
    assert fetch(served) == 2
    (here / "data" / "MHEALTHDATASET.zip.part").write_bytes(OFFICIAL)
    assert fetch(served) == 0
    assert (here / "data" / "MHEALTHDATASET.zip").read_bytes() == OFFICIAL


def test_a_part_longer_than_the_file_is_thrown_away(here, served):
    served.stop_after = 1000
    assert fetch(served) == 2
    (here / "data" / "MHEALTHDATASET.zip.part").write_bytes(OFFICIAL + b"more")
    assert fetch(served) == 0
    assert (here / "data" / "MHEALTHDATASET.zip").read_bytes() == OFFICIAL


def test_a_part_of_another_address_is_thrown_away(here, served):
    served.stop_after = 1000
    assert fetch(served) == 2
    served.url += "?other"
    assert fetch(served) == 0
    assert served.requests[1] == (None, None)


@pytest.mark.parametrize("content", [b"<html>gone</html>", OFFICIAL[:-30], make_zip({"readme.txt": "no"}), b""])
def test_what_is_not_mhealth_is_refused(here, served, capsys, content):
    served.content = content
    assert fetch(served) == 2
    assert "what came is not mHealth: " in capsys.readouterr().err
    assert listed(here) == []


def test_an_answer_without_length_that_ends_early_is_refused(here, served, capsys):
    served.length = False
    served.stop_after = 2000
    assert fetch(served) == 2
    assert "not a readable zip" in capsys.readouterr().err


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_of_the_server_is_told(served, capsys, status):
    served.status = status
    assert fetch(served) == 2
    assert f"mhealth.zip: the server answers {status} " in capsys.readouterr().err


def test_no_server_is_told(here, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x.zip"
        assert main(["data", "fetch", "--url", url]) == 2
    error = capsys.readouterr().err
    assert (
        "Connection refused" in error
        and "; nothing came; try again, or bring the zip another way and give it with --from ZIP" in error
    )


def test_only_http_is_followed(here, capsys):
    assert main(["data", "fetch", "--url", "file:///etc/passwd"]) == 2
    assert "expected an address that begins with https:// or http://" in capsys.readouterr().err


def test_an_endless_answer_is_cut_off(here, served, capsys, monkeypatch):
    monkeypatch.setattr(download_module, "MAX_BYTES", 1000)
    assert fetch(served) == 2
    assert "expected at most 1000" in capsys.readouterr().err
    served.length = False
    assert fetch(served) == 2
    assert "more than 1000 bytes" in capsys.readouterr().err
    assert listed(here) == []


class TestFrom:
    @pytest.mark.parametrize("content", [OFFICIAL, NESTED])
    def test_a_zip_is_copied(self, here, tmp_path, content):
        (tmp_path / "mine.zip").write_bytes(content)
        assert main(["data", "fetch", "--from", str(tmp_path / "mine.zip"), "--out", "there"]) == 0
        assert listed(here) == ["there/MHEALTHDATASET.zip"]
        assert (tmp_path / "mine.zip").read_bytes() == content
        assert main(["data", "info", "--data", "there"]) == 0

    def test_a_folder_of_logs_is_copied(self, here, tmp_path):
        folder = tmp_path / "unpacked" / "MHEALTHDATASET"
        folder.mkdir(parents=True)
        (folder / "mHealth_subject1.log").write_bytes(LOG)
        (folder / "README.txt").write_text("not needed")
        assert main(["data", "fetch", "--from", str(folder.parent)]) == 0
        assert listed(here) == ["data/MHEALTHDATASET/mHealth_subject1.log"]

    def test_a_folder_with_the_zip_is_copied(self, here, tmp_path):
        (tmp_path / "downloads").mkdir()
        (tmp_path / "downloads" / "mhealth+dataset.zip").write_bytes(OFFICIAL)
        assert main(["data", "fetch", "--from", str(tmp_path / "downloads")]) == 0
        assert listed(here) == ["data/MHEALTHDATASET.zip"]

    def test_a_damaged_zip_in_place_is_replaced(self, here, tmp_path):
        (here / "data").mkdir()
        (here / "data" / "MHEALTHDATASET.zip").write_bytes(OFFICIAL[:3000])
        (tmp_path / "mine.zip").write_bytes(OFFICIAL)
        assert main(["data", "fetch", "--from", str(tmp_path / "mine.zip")]) == 0
        assert (here / "data" / "MHEALTHDATASET.zip").read_bytes() == OFFICIAL

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("cut.zip", OFFICIAL[:-30], "not a readable zip"),
            ("flipped.zip", OFFICIAL.replace(b"0.5", b"0.6", 1), "Bad CRC-32"),
            ("malformed.zip", make_zip({"mHealth_subject1.log": b"1\t2\n"}), "line 1: 2 columns"),
            ("other.zip", make_zip({"a.log": b"1"}), "no recordings of mhealth in this zip"),
            ("other.txt", b"hello", "no recordings of mhealth, expected a folder"),
        ],
    )
    def test_what_is_damaged_is_refused(self, here, tmp_path, capsys, name, content, message):
        (tmp_path / name).write_bytes(content)
        assert main(["data", "fetch", "--from", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
        assert listed(here) == []

    def test_what_is_not_there_is_refused(self, capsys):
        assert main(["data", "fetch", "--from", "nowhere.zip"]) == 2
        assert "nowhere.zip: no such file or folder" in capsys.readouterr().err


class TestInfo:
    @pytest.fixture
    def data(self, tmp_path):
        (tmp_path / "mHealth_subject1.log").write_bytes(LOG)
        return str(tmp_path / "mHealth_subject1.log")

    def test_the_table(self, data, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "100")
        assert main(["data", "info", "--data", data]) == 0
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert lines[0] == (
            f"mhealth: real data from {data}; 50 Hz; chest (5 channels), ankle (9 channels), arm (9 channels)"
        )
        for line in (
            "subject label activity rows segments seconds",
            "subject1 0 null 1 1 0.0",
            "1 standing still 3 2 0.1",
            "4 walking 3 1 0.1",
            "all 7 4 0.1",
            "all all 7 4 0.1",
        ):
            assert line in lines

    def test_json(self, data, capsys):
        assert main(["data", "info", "--data", data, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["real"], document["data"], document["rows"], document["rate_hz"]) == (True, data, 7, 50.0)
        assert document["activities"][2] == {
            "stream": "subject1",
            "label": 4,
            "activity": "walking",
            "rows": 3,
            "segments": 1,
            "seconds": 0.06,
        }

    def test_synthetic_data_are_called_so(self, capsys):
        assert main(["data", "info"]) == 0
        output = capsys.readouterr()
        assert output.out.startswith("mhealth: synthetic data; 50 Hz; ")
        assert output.err == "no recordings found: using synthetic data; get the real ones with: har-edge data fetch\n"

    def test_a_folder_without_files_is_refused(self, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        assert main(["data", "info", "--data", str(tmp_path / "empty")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --data: {tmp_path}/empty: no recordings of mhealth, expected a folder, a zip")

    def test_a_malformed_line_is_refused(self, tmp_path, capsys):
        path = tmp_path / "mHealth_subject1.log"
        path.write_bytes(LOG.replace(b"0.5", b"O.5", 1))
        assert main(["data", "info", "--data", str(path)]) == 2
        assert capsys.readouterr().err == (
            f"error: {path}, line 1: column 0 is 'O.5', expected a finite number; mend or remove that line\n"
        )


def test_a_source_that_is_not_there_is_refused_though_recordings_are_here(here, capsys, monkeypatch):
    monkeypatch.setattr("har_edge.data.archive.list_files", lambda *_: [object()])
    assert main(["data", "fetch", "--from", "nope.zip"]) == 2
    assert "--from nope.zip: no such file or folder; expected the zip or folder of mHealth" in capsys.readouterr().err
    Path("there.zip").touch()
    assert main(["data", "fetch", "--from", "there.zip"]) == 0
    assert "1 recordings are already here, so there.zip was not read; remove" in capsys.readouterr().out
