"""Manifests of shards: what their steps take must come from somewhere, in some order."""

import msgspec
import pytest

from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.config.wiring import find_wiring
from har_edge.tflite.manifest import (
    ShardStep,
    SliceEntry,
    SliceManifest,
    TensorRegion,
    TensorSpec,
    find_flaw,
    is_covered,
    versioned,
)

HASH = "0" * 64


def rows(of, start, stop, name=None, flow=0):
    region = TensorRegion(of, 1, start, stop)
    return TensorSpec(name or f"{of}[{start}:{stop}]", (1, stop - start, 4), "float32", region=region, flow=flow)


def half(number):
    """A half of the channels of a."""
    region = TensorRegion("a", 2, 2 * number, 2 * number + 2)
    return TensorSpec(f"c{number}", (1, 8, 2), "float32", region=region)


def whole(name):
    return TensorSpec(name, (1, 8, 4), "float32")


def shard(number, first, second, sent, taken):
    """A shard of two steps: rows `first` of a out of the source, then rows `second` of b out of rows of a."""
    (low, high), (begin, end) = first, second
    halo = rows("a", max(0, begin - 1), min(8, end + 1), "a")
    steps = (
        ShardStep(f"a-{number}.tflite", HASH, (rows("x", low, high, "x"),), (rows("a", low, high, "a"),)),
        ShardStep("b.tflite", HASH, (halo,), (rows("b", begin, end, "b"),)),
    )
    inputs, outputs = (whole("x"), rows("a", *taken)), (rows("a", *sent, flow=1), rows("b", begin, end))
    return SliceEntry(f"a-{number}.tflite", HASH, 0, 2, inputs, outputs, steps=steps)


def manifest(*, taken=(4, 5)):
    shards = (shard(0, (0, 4), (0, 4), (3, 4), taken), shard(1, (4, 8), (4, 8), (4, 5), (3, 4)))
    last = SliceEntry("c.tflite", HASH, 2, 3, (rows("b", 0, 4), rows("b", 4, 8)), (whole("y"),))
    return versioned(SliceManifest(0, "m", HASH, (*shards, last), 3))


def test_shards_that_wait_for_each_others_border_rows_can_run():
    made = manifest()
    assert made.version == 3 and find_flaw(made) == ""
    assert made.slices[0].files == {"a-0.tflite": HASH, "b.tflite": HASH}
    assert msgspec.json.decode(msgspec.json.encode(made), type=SliceManifest) == made


@pytest.mark.parametrize(
    ("taken", "flaw"), [((5, 6), "step 1 (b.tflite) can never run"), ((3, 4), "step 1 (b.tflite) can never run")]
)
def test_a_step_whose_rows_come_from_nowhere_is_named(taken, flaw):
    assert flaw in find_flaw(manifest(taken=taken))


def test_steps_that_wait_for_each_other_are_a_flaw():
    a = SliceEntry(
        "f", HASH, 0, 1, (whole("q"),), (whole("p"),), steps=(ShardStep("f", HASH, (whole("q"),), (whole("p"),)),)
    )
    b = SliceEntry(
        "g", HASH, 0, 1, (whole("p"),), (whole("q"),), steps=(ShardStep("g", HASH, (whole("p"),), (whole("q"),)),)
    )
    assert "can never run" in find_flaw(versioned(SliceManifest(0, "m", HASH, (a, b), 3)))


@pytest.mark.parametrize(
    ("wanted", "there", "covered"),
    [
        (rows("a", 2, 6), [rows("a", 0, 3), rows("a", 3, 8)], True),
        (rows("a", 2, 6), [rows("a", 0, 3), rows("a", 4, 8)], False),
        (rows("a", 2, 6), [whole("a")], True),
        (whole("a"), [rows("a", 4, 8), rows("a", 0, 4)], True),
        (rows("a", 0, 2), [half(0)], False),
        (rows("a", 0, 2), [half(0), half(1)], True),
        (
            TensorSpec("a", (1, 8, 4), "float32", region=TensorRegion("a", 1, 0, 8, summands=2)),
            [TensorSpec(f"p{k}", (1, 8, 4), "float32", region=TensorRegion("a", 1, 0, 8, k, 2)) for k in range(2)],
            True,
        ),
        (
            TensorSpec("a", (1, 8, 4), "float32", region=TensorRegion("a", 1, 0, 8, summands=2)),
            [TensorSpec("p0", (1, 8, 4), "float32", region=TensorRegion("a", 1, 0, 8, 0, 2))],
            False,
        ),
    ],
)
def test_pieces_side_by_side_or_summed_cover_a_region(wanted, there, covered):
    assert is_covered(wanted, there) is covered


def test_shards_send_to_each_other_in_flows_of_their_own():
    stream = StreamTask("mhealth", 50.0, 8, 8)
    task = Task(stream=stream, inputs={"chest": SourceInput("x")}, output="y", labels=["u", "v"], label_ids=[0, 1])
    first, second, last = (find_wiring(manifest(), task, index) for index in range(3))
    assert first.sources == {"chest": "x"} and first.earlier == {1: ("a[4:5]",)} and first.takers == (1, 2)
    assert first.takes == {"1-1": ("a[4:5]",)} and second.takes == {"0-1": ("a[3:4]",)}
    assert first.flows == {0: ("b[0:4]",), 1: ("a[3:4]",)} and set(first.sends) == {"b[0:4]", "a[3:4]"}
    assert last.takes == {"0": ("b[0:4]",), "1": ("b[4:8]",)} and last.answers and not last.flows


@pytest.mark.parametrize(
    ("slice_", "place", "changes", "said"),
    [
        (0, "outputs", {"dtype": "int8"}, "describes tensor 'a[3:4]' in two ways"),
        (1, "inputs", {"region": None}, "describes tensor 'a[3:4]' in two ways"),
        (1, "inputs", {"region": TensorRegion("a", 2, 0, 4)}, "describes tensor 'a[3:4]' in two ways"),
        (1, "inputs", {"shape": (1, 1, 5)}, "describes tensor 'a[3:4]' in two ways"),
        (1, "inputs", {"shape": (1, 2, 4)}, "gives tensor 'a[3:4]' 2 elements along axis 1, expected those from 3 to"),
        (1, "inputs", {"shape": (1,)}, "gives tensor 'a[3:4]' 0 elements along axis 1, expected those from 3 to 4"),
        (1, "inputs", {"shape": (1, -2, 4)}, "gives tensor 'a[3:4]' the shape [1, -2, 4], expected sizes from 0 on"),
        (
            1,
            "inputs",
            {"shape": (1, 1, 2**40)},
            "gives tensor 'a[3:4]' the shape [1, 1, 1099511627776], expected sizes",
        ),
        (1, "inputs", {"shape": (-1, 1, 4)}, ""),
    ],
)
def test_a_tensor_that_maker_and_taker_see_in_two_ways_is_refused(slice_, place, changes, said):
    made = manifest()
    entry = made.slices[slice_]
    specs = tuple(
        msgspec.structs.replace(spec, **changes) if spec.name == "a[3:4]" else spec for spec in getattr(entry, place)
    )
    assert specs != getattr(entry, place)
    slices = list(made.slices)
    slices[slice_] = msgspec.structs.replace(entry, **{place: specs})
    flaw = find_flaw(msgspec.structs.replace(made, slices=tuple(slices)))
    assert flaw.startswith(said) and bool(flaw) == bool(said)
