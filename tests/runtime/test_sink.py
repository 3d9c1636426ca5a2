"""The end of the pipeline: each window once."""

import logging

import msgspec
import pytest

from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.events import Unreadable, decode
from har_edge.protocol.results import Result, encode_results
from har_edge.runtime.sink import MOST_RUNS, Sink
from tests.protocol.reading import read_results


def result(seq=0, *, stream="s", captured=1.5, truth=None, missing=()):
    return Result(stream, seq, "walking", 4, 0.75, captured, captured + 0.25, 1, truth, list(missing))


def delivery(*results):
    return Delivery("har/v1/test/result/s", encode_results(list(results)), (1, 1))


def test_a_repetition_is_dropped_and_counted():
    sink = Sink()
    assert sink.handle(delivery(result(0), result(1))) == [result(0), result(1)]
    again = result(1)
    assert sink.handle(delivery(msgspec.structs.replace(again, emitted=99.0))) == []
    assert (sink.counters.windows, sink.counters.duplicates, sink.counters.messages) == (2, 1, 2)


def test_a_new_run_of_a_stream_is_no_repetition_and_late_repetitions_of_the_old_run_still_are():
    sink = Sink()
    old, new = result(0, captured=1.0), result(0, captured=2.0)
    assert sink.handle(delivery(old)) == [old] and sink.handle(delivery(new)) == [new]
    assert sink.handle(delivery(old)) == [] and sink.handle(delivery(new)) == []


def test_a_window_that_was_answered_without_a_source_and_again_with_it_is_answered_once():
    """The stage died between answer and acknowledgement; meanwhile the late part came, captured a little later."""
    sink = Sink()
    first, again = result(missing=["arm"], captured=1.0), result(captured=1.2)
    assert sink.handle(delivery(first)) == [first] and sink.handle(delivery(again)) == []
    assert sink.handle(delivery(result(missing=["ankle"], captured=0.9))) == []
    new_run = result(captured=first.emitted + 0.1)
    assert sink.handle(delivery(new_run)) == [new_run]
    assert (sink.counters.windows, sink.counters.duplicates) == (2, 2)


def test_memory_is_bounded():
    sink = Sink(remembered=10)
    for seq in range(1000):
        sink.handle(delivery(result(seq)))
    assert len(sink._answers) == 10
    assert sink.handle(delivery(result(995))) == []


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x93",
        b"{}",
        b"[1]",
        b'{"stream": "s"',
        b'{"stream":"\xff"}',
        b'{"a":' * 20_000,
        encode_results([result()])[:-1],
        b"null",
    ],
)
def test_what_is_no_result_is_dropped_counted_and_explained(payload, caplog):
    sink = Sink()
    with caplog.at_level(logging.WARNING):
        assert sink.handle(Delivery("har/v1/test/result/s", payload, (1, 1))) == []
    assert sink.counters.rejected == 1
    assert "dropped har/v1/test/result/s: a result came that is no result" in caplog.text
    assert sink.handle(delivery(result())) == [result()]


def test_a_huge_result_is_refused_by_its_size():
    event = decode(Outgoing("har/v1/test/result/s", bytes(5_000_000)))
    assert isinstance(event, Unreadable)
    assert event.reason == "a result of 5000000 bytes came; expected at most 4194304"


def test_results_are_json_that_a_person_reads():
    text = encode_results([result(3, truth=4)])
    assert msgspec.json.decode(text) == {
        "stream": "s", "seq": 3, "label": "walking", "label_id": 4, "confidence": 0.75, "captured": 1.5,
        "emitted": 1.75, "epoch": 1, "truth": 4,
    }  # fmt: skip
    assert b"truth" not in encode_results([result(3)]) and b"missing" not in encode_results([result(3)])
    lacking = encode_results([result(3, missing=["ankle", "arm"])])
    assert msgspec.json.decode(lacking)["missing"] == ["ankle", "arm"]
    assert read_results(Outgoing("har/v1/test/result/s", lacking)) == [result(3, missing=["ankle", "arm"])]
    assert read_results(delivery(result(1), result(2))) == [result(1), result(2)]


def test_a_window_that_comes_again_from_another_epoch_and_without_a_source_is_answered_once():
    """A sensor sent again, the others had their answer: the stages of the new epoch went on without them."""
    sink = Sink()
    first, again = result(captured=1.003), result(captured=1.0, missing=["arm"])
    assert sink.handle(delivery(first)) == [first]
    assert sink.handle(delivery(msgspec.structs.replace(again, epoch=2, emitted=99.0))) == []
    assert sink.handle(delivery(msgspec.structs.replace(first, epoch=2, emitted=100.0))) == []
    assert sink.handle(delivery(msgspec.structs.replace(again, epoch=3, emitted=101.0))) == []
    assert (sink.counters.windows, sink.counters.duplicates) == (1, 3)


def test_the_runs_of_a_window_that_are_remembered_are_bounded_and_the_last_are_known():
    sink = Sink(remembered=10)
    for run in range(3 * MOST_RUNS):
        assert len(sink.handle(delivery(result(captured=10.0 + run)))) == 1
        assert sink.handle(delivery(result(captured=10.0 + run))) == []
    (answer,) = sink._answers.values()
    assert answer.captured == tuple(10.0 + run for run in range(2 * MOST_RUNS, 3 * MOST_RUNS))
    assert sink.handle(delivery(result(captured=10.0 + 2 * MOST_RUNS))) == []


def test_a_window_of_a_new_run_is_remembered_as_long_as_one_that_is_new():
    sink = Sink(remembered=3)
    for seq in (0, 1, 2):
        sink.handle(delivery(result(seq, captured=1.0)))
    new_run = result(0, captured=9.0)
    assert sink.handle(delivery(new_run)) == [new_run]
    sink.handle(delivery(result(3, captured=9.0), result(4, captured=9.0)))
    assert sink.handle(delivery(new_run)) == []
