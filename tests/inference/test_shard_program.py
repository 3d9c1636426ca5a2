"""Regions put together from pieces, and the steps of a shard."""

import numpy as np
import pytest

from har_edge.errors import MessageError, ModelError
from har_edge.inference.assembly import MESSAGE, find_assembly
from har_edge.inference.shard_program import ShardProgram, ShardRun
from har_edge.tflite.manifest import ShardStep, SliceEntry, TensorRegion, TensorSpec

HASH = "0" * 64
WHOLE = np.arange(2 * 6 * 4, dtype=np.float32).reshape(2, 6, 4)


def spec(start, stop, *, axis=1, of="a", name=None, summand=0, summands=0):
    shape = [2, 6, 4]
    shape[axis] = stop - start
    region = TensorRegion(of, axis, start, stop, summand, summands)
    return TensorSpec(name or f"{of}[{axis}:{start}:{stop}+{summand}]", tuple(shape), "float32", region=region)


def whole(of="a"):
    return TensorSpec(of, (2, 6, 4), "float32")


def cut(one):
    region = one.region
    return WHOLE if region is None else np.take(WHOLE, range(region.start, region.stop), region.axis)


@pytest.mark.parametrize(
    ("wanted", "pieces"),
    [
        (spec(1, 5), [spec(0, 2), spec(2, 4), spec(4, 6)]),
        (spec(1, 5), [spec(0, 4), spec(3, 6)]),
        (spec(2, 4), [spec(0, 6)]),
        (spec(2, 4), [whole()]),
        (whole(), [whole()]),
        (whole(), [spec(3, 6), spec(0, 3)]),
        (whole(), [spec(0, 1, axis=2), spec(1, 4, axis=2)]),
        (spec(1, 5), [spec(0, 1, axis=2), spec(1, 4, axis=2)]),
        (spec(1, 2, axis=2), [spec(0, 3), spec(3, 6)]),
    ],
)
def test_a_region_is_put_together_from_pieces_along_any_axis(wanted, pieces):
    there = [((MESSAGE, one.name), one) for one in pieces]
    made = find_assembly(wanted, there).make({key: cut(one) for key, one in there})
    assert made.tobytes() == cut(wanted).tobytes() and made.shape == cut(wanted).shape


def test_summands_are_added_in_their_order_so_that_floats_give_the_same_bits():
    values = [np.full((2, 6, 4), value, np.float32) for value in (1e8, 1.0, -1e8)]
    there = [((MESSAGE, f"s{k}"), spec(0, 6, name=f"s{k}", summand=k, summands=3)) for k in (2, 0, 1)]
    wanted = spec(2, 4, summands=3)
    made = find_assembly(wanted, there).make({(MESSAGE, f"s{k}"): value for k, value in enumerate(values)})
    assert made.shape == (2, 2, 4) and (made == (np.float32(1e8) + np.float32(1.0)) - np.float32(1e8)).all()


def test_a_shard_takes_its_own_rows_rather_than_those_that_come():
    there = [((MESSAGE, "m"), spec(0, 6, name="m")), ((0, "own"), spec(0, 4, name="own"))]
    assembly = find_assembly(spec(1, 5), there)
    assert [(part.key, part.start, part.stop) for part in assembly.summands[0]] == [
        ((0, "own"), 1, 4),
        ((MESSAGE, "m"), 4, 5),
    ]


@pytest.mark.parametrize("pieces", [[], [spec(0, 2)], [spec(0, 2), spec(3, 6)], [spec(0, 6, summand=0, summands=2)]])
def test_a_region_that_nothing_covers_is_refused(pieces):
    with pytest.raises(ModelError, match="covers it; cut the model again"):
        find_assembly(spec(1, 5), [((MESSAGE, one.name), one) for one in pieces])


def program(log):
    """A shard of three steps: its border row of b, its other rows, then c of b with a row that comes."""

    def step(number, name):
        def run(values):
            log.append(number)
            (value,) = values.values()
            return {name: value + 1}

        return run

    steps = (
        ShardStep("f", HASH, (spec(2, 3, name="x"),), (spec(2, 3, of="b", name="y"),)),
        ShardStep("f", HASH, (spec(0, 2, name="x"),), (spec(0, 2, of="b", name="y"),)),
        ShardStep("g", HASH, (spec(0, 4, of="b", name="x"),), (spec(0, 4, of="c", name="z"),)),
    )
    inputs = (spec(0, 3, name="a"), spec(3, 4, of="b", name="halo"))
    outputs = (spec(0, 3, of="c", name="c"), spec(2, 3, of="b", name="border"))
    entry = SliceEntry("f", HASH, 0, 2, inputs, outputs, steps=steps)
    return ShardProgram(entry, [step(0, "y"), step(1, "y"), step(2, "z")])


def test_steps_run_as_soon_as_what_they_take_is_there_and_outputs_go_when_they_are_made():
    log = []
    shard = program(log)
    assert shard.roots == {"a"}
    run = ShardRun(shard, shard.outputs)
    assert run.next is None and run.covered == run.due == []
    run.add({"a": WHOLE[:, :3]})
    assert run.next == 0 and run.due == [0]  # the border alone leads to something that can leave
    run.step(0)
    assert run.covered == ["border"] and (run.take("border") == WHOLE[:, 2:3] + 1).all() and run.covered == []
    run.step(run.next)
    assert run.next is None and not run.complete and run.due == []
    run.add({"halo": WHOLE[:, 3:4] + 1})
    assert run.next == 2 and run.due == [2]
    run.step(2)
    assert run.complete and log == [0, 1, 2] and run.next is None
    assert run.covered == ["c"] and (run.take("c") == WHOLE[:, :3] + 2).all()
    assert not [key for key in run._store if key[0] != MESSAGE], "what nobody needs any more stays in memory"


def test_all_steps_run_at_once_give_the_outputs_and_say_what_is_missing():
    shard = program([])
    made = shard.run({"a": WHOLE[:, :3], "halo": WHOLE[:, 3:4] + 1})
    assert set(made) == {"border", "c"} and (made["c"] == WHOLE[:, :3] + 2).all()
    with pytest.raises(MessageError, match="inputs a came; expected all"):
        shard.run({"a": WHOLE[:, :3]})
