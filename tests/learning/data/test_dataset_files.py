"""Data sets in files: idx, folders of pictures, .npz, recordings."""

import io
import os
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from har_edge.data.description import load_description
from har_edge.data.pictures import PictureShape
from har_edge.data.synthetic import synthesize
from har_edge.errors import DataError
from har_edge.learning.data.dataset_files import DataFormat, ReadOptions, find_format, read_data, read_test_data
from har_edge.learning.data.datasets import Dataset, split_samples
from har_edge.learning.data.digits import load_digits
from har_edge.learning.data.recorded_windows import WindowFormat, cut_windows
from tests.learning.made_data import idx, pictures, write_mnist

GREY = PictureShape(6, 6, 1)


class TestIdx:
    @pytest.mark.parametrize("packed", [True, False])
    def test_the_files_of_mnist(self, tmp_path, packed):
        folder = write_mnist(tmp_path / "mnist", pictures(), pictures(12, seed=1), packed=packed)
        data = read_data(folder)
        assert (data.train.origin, len(data.test)) == ("mnist (real): 40 samples, 4 classes", 12)
        assert np.array_equal(data.train.x, pictures().x)
        assert (data.train.x.dtype, data.train.scale, data.how) == (np.uint8, 1 / 255, "those that the files name")

    def test_without_a_test_set_a_share_is_held_back(self, tmp_path):
        data = read_data(write_mnist(tmp_path, pictures()))
        assert (len(data.train), len(data.test), data.how) == (32, 8, "20% of each class, held back")

    def test_one_file_finds_its_labels(self, tmp_path):
        write_mnist(tmp_path, pictures(), pictures(12))
        assert len(read_data(tmp_path / "train-images-idx3-ubyte.gz").train) == 32

    def test_the_classes_of_a_model(self, tmp_path):
        data = read_data(write_mnist(tmp_path, pictures()), ReadOptions(classes=("a", "b", "c", "d", "e")))
        assert data.train.classes == ("a", "b", "c", "d", "e")

    def test_a_label_that_no_class_has_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="sample 3 has label 3, expected 0 to 2 for 3 classes"):
            read_data(write_mnist(tmp_path, pictures()), ReadOptions(classes=("a", "b", "c")))

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("train-labels-idx1-ubyte", None, "and no train-labels-idx1-ubyte; expected the labels beside"),
            ("train-labels-idx1-ubyte", idx(np.zeros(3, np.uint8)), "expected a label a sample"),
            ("train-images-idx3-ubyte", None, "and no train-images-idx3-ubyte; get it, too"),
            ("train-images-idx3-ubyte", b"<html>", "is no idx file"),
        ],
    )
    def test_what_is_missing_or_damaged_is_told(self, tmp_path, name, content, message):
        write_mnist(tmp_path, pictures(), pictures(8), packed=False)
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_data(tmp_path)

    def test_two_sets_in_one_folder_are_told(self, tmp_path):
        write_mnist(tmp_path, pictures())
        (tmp_path / "emnist-train-images-idx3-ubyte").write_bytes(idx(pictures().x))
        with pytest.raises(DataError, match="holds emnist-train-images-idx3-ubyte and train-images-idx3-ubyte"):
            read_data(tmp_path)


class TestPictures:
    @pytest.fixture
    def folder(self, tmp_path):
        for part in ("train", "test"):
            for name, grey in (("cat", 40), ("dog", 200)):
                (tmp_path / part / name).mkdir(parents=True)
                for number in range(5):
                    Image.new("L", (9, 9), grey + number).save(tmp_path / part / name / f"{number}.png")
        return tmp_path

    def test_a_folder_a_class(self, folder):
        data = read_data(folder / "train", ReadOptions(shape=GREY))
        assert (data.train.classes, len(data.train), len(data.test)) == (("cat", "dog"), 8, 2)
        assert data.train.shape == (6, 6, 1)
        assert data.train.origin.startswith("pictures of train (nothing is known of their origin): 8 samples")
        assert all(row.max() < 100 for row in data.train.x[data.train.y == 0])
        assert all(row.min() > 100 for row in data.train.x[data.train.y == 1])

    def test_parts_are_kept_apart(self, folder):
        data = read_data(folder, ReadOptions(shape=PictureShape(4, 5, 3)))
        assert (len(data.train), len(data.test), data.train.shape) == (10, 10, (4, 5, 3))
        assert data.how == "those that the files name"

    def test_a_class_that_only_the_test_has_is_refused(self, folder):
        (folder / "test" / "dog").rename(folder / "test" / "fox")
        with pytest.raises(DataError, match="holds fox; expected folders of the classes cat, dog"):
            read_data(folder, ReadOptions(shape=GREY))

    def test_a_damaged_picture_is_named(self, folder):
        bad = folder / "train" / "dog" / "2.png"
        bad.write_bytes(bad.read_bytes()[:40])
        with pytest.raises(DataError, match=r"dog/2\.png"):
            read_data(folder, ReadOptions(shape=GREY))

    def test_the_size_must_be_known(self, folder):
        with pytest.raises(DataError, match="the size that the model takes must be given"):
            read_data(folder)

    def test_hidden_files_and_others_do_not_count(self, folder):
        (folder / "train" / "cat" / "notes.txt").write_text("no picture")
        (folder / "train" / "cat" / ".DS_Store.png").write_text("no picture")
        (folder / "train" / ".cache").mkdir()
        assert len(read_data(folder / "train", ReadOptions(shape=GREY)).train) == 8


class Harmful:
    def __reduce__(self):
        raise AssertionError("pickled")


class TestNpz:
    def test_arrays_by_their_usual_names(self, tmp_path):
        data = pictures()
        np.savez_compressed(tmp_path / "rows.npz", x=data.x, y=data.y, classes=np.array(list("abcd")), real=False)
        read = read_data(tmp_path / "rows.npz")
        assert (read.train.classes, read.train.real, read.train.name) == (("a", "b", "c", "d"), False, "rows")
        assert (len(read.train), len(read.test), read.train.x.dtype) == (32, 8, np.uint8)

    def test_the_names_of_keras_and_groups(self, tmp_path):
        data = pictures()
        np.savez(tmp_path / "k.npz", x_train=data.x, y_train=data.y[:, None], x_test=data.x[:4], y_test=data.y[:4])
        read = read_data(tmp_path / "k.npz")
        assert (len(read.train), len(read.test), read.train.real) == (40, 4, True)
        groups = np.array(["p1", "p2"])[np.arange(40) // 20]
        np.savez(tmp_path / "g.npz", x=data.x.astype(np.float64), y=data.y.astype(np.float32), groups=groups)
        read = read_data(tmp_path / "g.npz")
        assert (set(read.train.groups), set(read.test.groups)) == ({"p1"}, {"p2"})
        assert read.how == "all of p2, held back"
        assert read.train.x.dtype == np.float32

    def test_fortran_order_and_big_endian(self, tmp_path):
        x = np.asfortranarray(np.arange(60, dtype=">f4").reshape(10, 2, 3))
        np.savez(tmp_path / "a.npz", x=x, y=np.zeros(10, ">i4"))
        data = read_data(tmp_path / "a.npz")
        together = np.concatenate([data.train.x, data.test.x])
        assert np.array_equal(together[np.argsort(together[:, 0, 0])], x)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": np.zeros((4, 2), np.float32)}, "holds x; expected the arrays x and y"),
            ({"x": np.zeros((2, 2), np.float32), "y": np.array([0.5, 1])}, "label 0.5 of sample 0 is no integer"),
            ({"x": np.zeros((2, 2), np.float32), "y": np.array([0, -1])}, "sample 1 has label -1"),
            ({"x": np.zeros((2, 2), np.float32), "y": np.array(["a", "b"])}, "labels came as <U1"),
            ({"x": np.full((2, 2), np.nan), "y": np.array([0, 1])}, r"sample 0 holds nan at \[0\]"),
            ({"x": np.zeros((2, 2), complex), "y": np.array([0, 1])}, "holds complex128; expected numbers or text"),
            ({"x": np.array([Harmful], dtype=object), "y": np.array([0])}, "objects would need pickle"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path, arrays, message):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=message):
            read_data(tmp_path / "a.npz")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is no array of NumPy"),
            (b"\x93NUMPY\x01\x00\xff\xff", "its header is damaged"),
            (b"\x93NUMPY\x01\x00\x03\x00[[[", "is no array of NumPy"),
            (b"\x93NUMPY\x01\x00\x02\x00{}", "is no array of NumPy"),
        ],
    )
    def test_a_damaged_header_is_refused(self, tmp_path, content, message):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", content)
        with pytest.raises(DataError, match=message):
            read_data(tmp_path / "a.npz")

    def test_a_header_that_announces_more_than_there_is_allocates_nothing(self, tmp_path):
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**6)})
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", buffer.getvalue())
        with pytest.raises(DataError, match=r"announces \[1000000000, 1000000\] of float32 and holds 0 bytes"):
            read_data(tmp_path / "a.npz")

    @pytest.mark.parametrize(
        ("descr", "shape"),
        [
            ("<U0", "(10000000000000,)"),
            ("|u1", "(1000000000000000000000000000000, 0)"),
            ("|u1", "(4294967295, 4294967295, 4294967295, 0)"),
            ("<f4", "(1e999,)"),
        ],
    )
    def test_a_header_of_no_values_in_an_impossible_shape_is_refused(self, tmp_path, descr, shape):
        header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode()
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        with pytest.raises(DataError, match=r"of a shape that no array has|is no array of NumPy: cannot convert"):
            read_data(tmp_path / "a.npz")

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_what_no_bound_holds_for_is_refused(self, tmp_path, method):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
            archive.writestr("x.npy", np.random.default_rng(0).bytes(4000))
        with pytest.raises(DataError, match=f"is packed by method {method}, which has no bounds; expected it stored"):
            read_data(tmp_path / "a.npz")

    def test_a_truncated_file_is_refused(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=pictures().x, y=pictures().y)
        whole = (tmp_path / "a.npz").read_bytes()
        (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match="cannot be read"):
            read_data(tmp_path / "a.npz")


class TestRecordings:
    layout = WindowFormat.of_description("mhealth")

    def test_windows_of_one_activity_with_the_person_behind(self):
        data = cut_windows(synthesize(["anna", "bert"], seconds_per_activity=20), self.layout, "made")
        assert (data.real, data.name, data.shape, data.overlap) == (False, "mhealth", (250, 23), 1)
        assert data.sources == (("chest", 5), ("ankle", 9), ("arm", 9))
        assert set(data.groups) == {"anna", "bert"}
        assert data.counts == (14,) * 12
        assert isinstance(data, Dataset)

    def test_no_window_is_told(self):
        with pytest.raises(DataError, match="made: no window of 250 rows with one of the labels"):
            cut_windows(synthesize(["anna"], seconds_per_activity=2), self.layout, "made")

    def test_one_person_is_split_by_time(self):
        (recording,) = synthesize(["anna"], seconds_per_activity=60)
        rows = np.arange(len(recording), dtype=np.float32)  # a value that names its row
        samples = {name: np.tile(rows[:, None], values.shape[1]) for name, values in recording.samples.items()}
        data = cut_windows([replace(recording, samples=samples)], self.layout, "made")
        train, test = split_samples(data, 0)
        assert (train.counts, test.counts) == ((17,) * 12, (5,) * 12)
        assert not set(train.x.reshape(-1).tolist()) & set(test.x.reshape(-1).tolist())

    def test_a_description_beside_recordings_says_what_they_are(self, tmp_path):
        (tmp_path / "pump.toml").write_text(
            'name = "pump"\nrate_hz = 10.0\nlabels = ["off", "on", "odd"]\nnull_label = 0\nsynthetic = true\n'
            '[files]\nlabel = "state"\n'
            '[[sources]]\nname = "motor"\nchannels = ["x", "y"]\ncolumns = ["x", "y"]\n'
        )
        for name in ("a", "b"):
            rows = [f"{number},{-number},{label}" for label in (1, 0, 2) for number in range(60)]
            (tmp_path / f"{name}.csv").write_text("\n".join(["x,y,state", *rows]))
        data = read_data(tmp_path, ReadOptions(length=20))
        assert (data.train.name, data.train.classes, data.train.real) == ("pump", ("on", "odd"), False)
        assert (data.train.shape, data.train.counts, data.how) == ((20, 2), (5, 5), "all of b, held back")
        (tmp_path / "other.toml").write_text("")
        with pytest.raises(DataError, match=r"holds several descriptions \(other.toml, pump.toml\)"):
            read_data(tmp_path)

    @pytest.mark.dataset
    def test_real_recordings(self, dataset):
        data = read_data(dataset)
        assert (data.train.real, len(data.train) + len(data.test)) == (True, 2054)
        assert set(data.test.groups) == {"subject7", "subject8"}


def test_a_pipe_is_no_data(tmp_path):
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match="is neither a file nor a folder; expected idx files, a folder of pictures"):
        read_data(tmp_path / "train-images-idx3-ubyte")


def test_formats_are_told_apart(tmp_path):
    assert find_format(write_mnist(tmp_path / "mnist", pictures())) is DataFormat.IDX
    (tmp_path / "logs").mkdir()
    assert find_format(tmp_path / "logs") is DataFormat.RECORDINGS
    (tmp_path / "a.npz").touch()
    assert find_format(tmp_path / "a.npz") is DataFormat.NPZ
    with pytest.raises(DataError, match="no such file or folder, expected idx files, a folder of pictures"):
        find_format(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no recordings of mhealth"):
        read_data(tmp_path / "logs")
    assert load_description("mhealth").name == "mhealth"


def test_digits_stand_in_the_middle_and_say_what_they_are():
    train, test = load_digits(28)
    assert (len(train), len(test), train.shape, train.real) == (1438, 359, (28, 28), True)
    assert train.name == "scikit-learn's digits"
    assert not train.x[:, :2].any()
    assert not train.x[:, :, -2:].any()
    assert train.values().max() == 1.0
    assert np.array_equal(train.x[:, 2:26:3, 2:26:3], train.x[:, 4:26:3, 4:26:3])


def test_samples_to_test_with_are_all_that_a_file_holds(tmp_path):
    data = pictures()
    np.savez(tmp_path / "test.npz", x=data.x, y=data.y)
    read = read_test_data(tmp_path / "test.npz")
    np.testing.assert_array_equal(read.test.x, data.x)
    np.testing.assert_array_equal(read.test.y, data.y)
    assert read.how == "all of them; nodes train on their own"
    named = read_test_data(write_mnist(tmp_path / "both", pictures(), pictures(8, seed=1)))
    np.testing.assert_array_equal(named.test.x, pictures(8, seed=1).x)
    assert named.how.startswith("those that the files name")
