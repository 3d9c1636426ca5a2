"""Plans whose numbers cannot be are refused: nobody may be led to figures that cannot be counted on from."""

import re

import msgspec
import pytest

from har_edge.config.pipeline_config import PipelineConfig
from har_edge.errors import MessageError
from har_edge.protocol.deployment import (
    MAX_GENERATIONS,
    MAX_REVISION,
    VERSION,
    Deployment,
    decode_deployment,
    encode_deployment,
)
from tests.runtime.deployed import deployment, generation
from tests.runtime.rig import TASK

PLAN = Deployment(VERSION, 1, "author", 1.0, PipelineConfig(TASK))
PLACED = deployment(generation("a", "b", "c", epoch=7), epoch=7)


@pytest.mark.parametrize("revision", [0, MAX_REVISION - 1])
@pytest.mark.parametrize("started", [0.0, 1.7e9, 1e300])
def test_a_plan_within_bounds_is_read(revision: int, started: float) -> None:
    written = msgspec.structs.replace(PLAN, revision=revision, started=started)
    assert decode_deployment(encode_deployment(written)) == written


@pytest.mark.parametrize("revision", [-1, MAX_REVISION, 2**64, 10**30])
def test_a_revision_out_of_range_is_refused(revision: int) -> None:
    payload = encode_deployment(PLAN).replace(b'"revision":1,', b'"revision":%d,' % revision)
    with pytest.raises(
        MessageError, match=r"what came is no plan: (Expected `int` (>= 0|<= 9007199254740991)|Integer)"
    ):
        decode_deployment(payload)


@pytest.mark.parametrize(
    ("started", "text"),
    [
        (b"-1.0", r"what came is no plan: Expected `float` >= 0.0 - at `\$.started`"),
        (b"1e999", "what came is no plan: Number out of range"),
        (b"NaN", "what came is no plan: JSON is malformed"),
    ],
)
def test_a_start_that_no_clock_tells_is_refused(started: bytes, text: str) -> None:
    payload = encode_deployment(PLAN).replace(b'"started":1.0,', b'"started":%s,' % started)
    assert started in payload
    with pytest.raises(MessageError, match=text):
        decode_deployment(payload)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (b'"epoch":7,"manifest"', b'"epoch":0,"manifest"', "Expected `int` >= 1 - at `$.generations[0].epoch`"),
        (b'"epoch":7,"manifest"', b'"epoch":%d,"manifest"' % 2**62, " - at `$.generations[0].epoch`"),
        (b'"stage":0,', b'"stage":-1,', "Expected `int` >= 0 - at `$.generations[0].placements[0].stage`"),
        (b'"stage":0,', b'"stage":256,', "Expected `int` <= 255 - at `$.generations[0].placements[0].stage`"),
    ],
)
def test_numbers_out_of_bounds_are_refused_with_their_place(old: bytes, new: bytes, text: str) -> None:
    payload = encode_deployment(PLACED)
    assert old in payload
    with pytest.raises(MessageError, match=f"what came is no plan: .*{re.escape(text)}"):
        decode_deployment(payload.replace(old, new, 1))


def test_more_generations_than_nodes_keep_are_refused() -> None:
    many = tuple(msgspec.structs.replace(PLACED.generations[0], epoch=7 + more) for more in range(MAX_GENERATIONS + 1))
    written = encode_deployment(msgspec.structs.replace(PLACED, generations=many))
    with pytest.raises(MessageError, match=r"Expected `array` of length <= 8 - at `\$.generations`"):
        decode_deployment(written)
