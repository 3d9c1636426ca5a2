"""Labelled samples: their checks, their split, their blocks."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.errors import ConfigError, DataError
from har_edge.learning.data.blocks import cut_blocks, read_block, samples_a_block, write_block
from har_edge.learning.data.datasets import (
    MAX_DATASET_BYTES,
    Dataset,
    Fingerprint,
    batches,
    check_size,
    rename_classes,
    split_samples,
)
from tests.learning.made_data import pictures


def windows(count=24, groups=("a", "b", "c"), overlap=0):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(count, 5, 3)).astype(np.float32)
    names = np.array([groups[at * len(groups) // count] for at in range(count)]) if groups else None
    sources = (("left", 2), ("right", 1))
    return Dataset(
        x, np.arange(count) % 2, ("rest", "move"), "made", False, sources=sources, groups=names, overlap=overlap
    )


class TestDataset:
    def test_bytes_stay_bytes_until_they_are_used(self):
        data = pictures()
        assert data.x.dtype == np.uint8
        values = data.values(np.array([3, 5]))
        assert values.dtype == np.float32
        assert np.allclose(values, data.x[[3, 5]] / 255)
        assert np.array_equal(data.one_hot(slice(0, 2)), [[1, 0, 0, 0], [0, 1, 0, 0]])
        assert data.origin == "rows (synthetic): 40 samples, 4 classes"
        assert data.counts == (10, 10, 10, 10)

    def test_sources_share_the_last_axis(self):
        data = windows()
        inputs = data.inputs(slice(0, 4))
        assert {name: values.shape for name, values in inputs.items()} == {"left": (4, 5, 2), "right": (4, 5, 1)}
        assert np.array_equal(np.concatenate(list(inputs.values()), -1), data.x[:4])
        assert pictures().inputs(slice(0, 4))["x"].shape == (4, 6, 6)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"y": np.array([0, 1, 9, 1])}, "made: sample 2 has label 9, expected 0 to 1 for 2 classes; mend"),
            ({"y": np.array([0, -1, 9, 1])}, r"sample 1 has label -1, .* \(2 labels are out of range\)"),
            ({"y": np.array([0.0, 1, 0, 1])}, "labels came as float64"),
            ({"y": np.array([0, 1])}, r"samples came as float32 \[4, 5, 3\] with 2 labels"),
            ({"x": np.zeros((4, 5, 3))}, "samples came as float64"),
            ({"classes": ()}, "0 classes, expected 1 to 10000"),
            ({"scale": math.nan}, "expected finite numbers"),
            ({"sources": (("left", 2),)}, "its sources have 2 channels together, and a sample has 3"),
            ({"groups": np.array(["a"])}, "1 groups came for 4 samples"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, change, message):
        data = windows(4)
        fields = ("x", "y", "classes", "name", "real", "scale", "sources")
        with pytest.raises(DataError, match=message):
            Dataset(**{**{name: getattr(data, name) for name in fields}, **change})

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_value_that_is_no_number_is_refused_with_its_place(self, value):
        x = windows(4).x.copy()
        x[2, 1, 0] = value
        with pytest.raises(DataError, match=rf"made: sample 2 holds {value} at \[1, 0\], expected finite numbers \(1 "):
            Dataset(x, np.zeros(4, np.int64), ("a",), "made", True)

    def test_large_numbers_are_no_infinity(self):
        x = np.full((3, 4), np.finfo(np.float32).max, np.float32)
        assert len(Dataset(x, np.zeros(3, np.int64), ("a",), "made", True)) == 3

    def test_only_axes_of_length_one_come_and_go(self):
        assert pictures().reshaped((6, 6, 1)).shape == (6, 6, 1)
        with pytest.raises(DataError, match=r"have shape \[6, 6\], expected \[28, 28, 1\], which the model takes"):
            pictures().reshaped((28, 28, 1))

    def test_sizes_are_bounded_before_anything_is_allocated(self):
        with pytest.raises(DataError, match=r"take 1\.2 GB, expected at most 1\.1 GB"):
            check_size(400_000, (3000,), 1, "much")
        check_size(1, (MAX_DATASET_BYTES,), 1, "just right")


class TestFingerprint:
    def test_another_shape_and_other_classes_are_told(self):
        own = pictures().fingerprint
        assert own == Fingerprint((6, 6), ("0", "1", "2", "3"))
        assert own.digest == pictures(count=8, seed=4).fingerprint.digest
        assert own.difference(own) == ""
        other = Fingerprint((8, 8), ("0", "1", "x"))
        assert other.digest != own.digest
        assert own.difference(other) == (
            "samples of shape [8, 8] came, expected [6, 6]; 3 classes came, expected 4; unknown: x; missing: 2, 3"
        )
        swapped = Fingerprint((6, 6), ("1", "0", "2", "3"))
        assert own.difference(swapped) == "4 classes came, expected 4; their order differs"

    def test_classes_take_the_order_of_the_model(self):
        data = windows()
        renamed = rename_classes(data, ("move", "jump", "rest"))
        assert renamed.classes == ("move", "jump", "rest")
        assert [renamed.classes[label] for label in renamed.y] == [data.classes[label] for label in data.y]
        with pytest.raises(DataError, match="made: 2 classes came, expected 2; unknown: rest; missing: jump; rename"):
            rename_classes(data, ("move", "jump"))
        with pytest.raises(ConfigError, match="two classes have one name"):
            rename_classes(data, ("move", "move"))

    def test_numbers_stand_for_the_classes_of_a_model(self):
        data = rename_classes(pictures(), ("zero", "one", "two", "three", "four"))
        assert np.array_equal(data.y, pictures().y)
        assert data.fingerprint.classes[3] == "three"


class TestSplit:
    def test_whole_groups_are_held_back(self):
        train, test = split_samples(windows(), 0)
        assert set(train.groups) == {"a", "b"}
        assert set(test.groups) == {"c"}

    def test_without_groups_a_share_of_each_class_is_drawn(self):
        train, test = split_samples(pictures(), 3)
        assert (train.counts, test.counts) == ((8,) * 4, (2,) * 4)
        again = split_samples(pictures(), 3)[1]
        assert np.array_equal(test.x, again.x)
        assert not np.array_equal(test.x, split_samples(pictures(), 4)[1].x)

    def test_windows_that_overlap_are_on_one_side(self):
        data = windows(20, groups=("a",), overlap=2)
        train, test = split_samples(data, 0)
        for label in range(2):
            own = data.x[data.y == label]
            assert np.array_equal(test.x[test.y == label], own[8:])
            assert np.array_equal(train.x[train.y == label], own[:6])

    def test_one_sample_cannot_be_split(self):
        with pytest.raises(DataError, match="1 sample cannot be split"):
            split_samples(pictures(1), 0)


class TestBlocks:
    def test_every_sample_is_in_one_block(self):
        data = pictures(40)
        blocks = list(cut_blocks(data, 5, 7))
        assert [len(block) for block in blocks] == [7, 7, 7, 7, 7, 5]
        rows = np.concatenate([block.x for block in blocks])
        assert sorted(row.tobytes() for row in rows) == sorted(row.tobytes() for row in data.x)
        assert not np.array_equal(rows, data.x)

    def test_one_seed_gives_the_same_bytes(self):
        first, again, other = ([write_block(b) for b in cut_blocks(pictures(), seed, 9)] for seed in (5, 5, 6))
        assert first == again
        assert first != other

    def test_a_block_has_about_a_megabyte(self):
        assert samples_a_block(pictures()) == (1 << 20) // 36
        assert samples_a_block(windows(), target=1) == 1

    @pytest.mark.parametrize("data", [pictures(), windows()], ids=["uint8", "float32"])
    def test_a_block_comes_back_as_it_went(self, data):
        read = read_block(write_block(data), data.fingerprint)
        for name in ("classes", "name", "real", "scale", "offset", "sources", "shape"):
            assert getattr(read, name) == getattr(data, name)
        assert read.x.dtype == data.x.dtype
        assert np.array_equal(read.x, data.x)
        assert np.array_equal(read.y, data.y)

    def test_names_of_persons_stay_behind(self):
        assert read_block(write_block(windows(groups=("somebody",)))).groups is None
        assert b"somebody" not in write_block(windows(groups=("somebody",)))

    def test_every_truncation_is_refused(self):
        content = write_block(pictures(2))
        for length in range(len(content)):
            with pytest.raises(DataError, match="cannot be read"):
                read_block(content[:length])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"count": 3}, r"announces 3 samples \[6, 6\] of uint8, 108 and 6 bytes, and holds 72 and 4"),
            ({"count": 1 << 30}, "cannot be read"),
            ({"shape": [65536] * 4}, "holds 72 and 4"),
            ({"shape": [0]}, "cannot be read"),
            ({"shape": [1] * 5}, "cannot be read"),
            ({"dtype": "object"}, "cannot be read"),
            ({"version": 2}, "has version 2, expected 1; install the same har-edge"),
            ({"y": b"\1\0\x09\0"}, "a block of rows: sample 1 has label 9, expected 0 to 3"),
            ({"classes": ["a", "b", "c", "d"]}, "4 classes came, expected 4; unknown: a, b, c, d; missing: 0, 1, 2, 3"),
            ({"shape": [36]}, r"samples of shape \[36\] came, expected \[6, 6\]"),
            ({"scale": math.inf}, "expected finite numbers"),
            ({"dtype": "float32", "x": b"\0\0\xc0\x7f" * 72}, r"sample 0 holds nan at \[0, 0\]"),
        ],
    )
    def test_what_is_no_block_is_refused(self, change, message):
        fields = {**msgspec.msgpack.decode(write_block(pictures(2))), **change}
        with pytest.raises(DataError, match=message):
            read_block(msgspec.msgpack.encode(fields), pictures().fingerprint)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_refused_or_read(self, content):
        with pytest.raises(DataError):
            read_block(content)


def test_batches_take_every_sample_once():
    taken = list(batches(10, 4, np.random.default_rng(0)))
    assert [len(batch) for batch in taken] == [4, 4, 2]
    assert sorted(np.concatenate(taken).tolist()) == list(range(10))
