"""Plans whose numbers cannot be are refused: nobody may be led to figures that cannot be counted on from."""

import msgspec
import pytest

from har_edge.config.pipeline import PipelineConfig
from har_edge.errors import MessageError
from har_edge.protocol.deployment import MAX_REVISION, VERSION, Deployment, decode_deployment, encode_deployment
from tests.runtime.rig import TASK

PLAN = Deployment(VERSION, 1, "author", 1.0, PipelineConfig(TASK))


@pytest.mark.parametrize("revision", [0, MAX_REVISION - 1])
@pytest.mark.parametrize("started", [0.0, 1.7e9, 1e300])
def test_a_plan_within_bounds_is_read(revision: int, started: float) -> None:
    written = msgspec.structs.replace(PLAN, revision=revision, started=started)
    assert decode_deployment(encode_deployment(written)) == written


@pytest.mark.parametrize("revision", [-1, MAX_REVISION, 2**64, 10**30])
def test_a_revision_out_of_range_is_refused(revision: int) -> None:
    payload = encode_deployment(PLAN).replace(b'"revision":1,', b'"revision":%d,' % revision)
    with pytest.raises(MessageError, match=rf"the revision is {revision}; expected 0 to 2\^53 - 1"):
        decode_deployment(payload)


@pytest.mark.parametrize(
    ("started", "text"),
    [
        (b"-1.0", "its author started at -1.0; expected seconds since 1970"),
        (b"1e999", "what came is no plan: Number out of range"),
        (b"NaN", "what came is no plan: JSON is malformed"),
    ],
)
def test_a_start_that_no_clock_tells_is_refused(started: bytes, text: str) -> None:
    payload = encode_deployment(PLAN).replace(b'"started":1.0,', b'"started":%s,' % started)
    assert started in payload
    with pytest.raises(MessageError, match=text):
        decode_deployment(payload)
