"""Where recordings are looked for, and what happens where there are none."""

import pytest

from har_edge.data.locate import find_data
from har_edge.errors import DataError

NAME = "mHealth_subject7.log"


@pytest.fixture
def here(tmp_path, monkeypatch):
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def put(folder, log):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_bytes(log)
    return folder


def test_what_is_given_comes_first_then_the_variable_then_data(tmp_path, here, log, monkeypatch):
    assert find_data(None) is None
    put(here / "data", log)
    assert str(find_data(None)) == "data"
    variable = put(tmp_path / "variable", log)
    monkeypatch.setenv("HAR_EDGE_DATA", str(variable))
    assert find_data(None) == variable
    given = put(tmp_path / "given", log)
    assert find_data(given) == given


def test_a_named_place_without_recordings_is_an_error(here, monkeypatch):
    (here / "data").mkdir()
    (here / "data" / "README.md").write_text("get them first")
    assert find_data(None) is None
    with pytest.raises(DataError, match=r"^--data: data: no recordings of mhealth, .*har-edge data fetch$"):
        find_data(here.joinpath("data").relative_to(here))
    monkeypatch.setenv("HAR_EDGE_DATA", "elsewhere")
    with pytest.raises(DataError, match=r"^HAR_EDGE_DATA: elsewhere: no such file or folder"):
        find_data(None)


def test_a_damaged_zip_is_never_passed_over_in_silence(here):
    (here / "data").mkdir()
    (here / "data" / "MHEALTHDATASET.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"MHEALTHDATASET\.zip: not a readable zip"):
        find_data(None)
