"""A stage: every unusable message is dropped, counted, explained and released, and the next good one still works."""

import dataclasses
import logging
import re

import numpy as np
import pytest

from har_edge.mqtt.bus import Delivery
from har_edge.protocol import wire
from har_edge.protocol.results import Result, encode_results
from har_edge.runtime.stage.replay_buffer import LEAST_WINDOW_BYTES
from har_edge.runtime.stage.stage import Stage
from har_edge.tflite.manifest import SliceEntry, TensorSpec
from har_edge.timing import REPLAY_BUFFER_S
from tests.runtime.rig import LENGTH, TOPICS, Clock, part, result_of, samples, small_stage


def whole(stage, seq=0, **options):
    """Give a stage both parts of a window; return what it publishes for the second."""
    assert stage.handle(part("chest", seq, **options)) == []
    return stage.handle(part("arm", seq, **options))


def test_a_window_is_answered_once_both_sources_are_there():
    stage = small_stage()
    chest, arm = part("chest", 3, captured=(5.0,), truth=(4,)), part("arm", 3, captured=(6.0,), truth=(4,))
    assert stage.handle(chest) == [] and stage.waiting == 1
    (outgoing,) = stage.handle(arm)
    scores = [samples("chest", 3).sum(), samples("arm", 3).sum()]
    (result,) = result_of([outgoing])
    assert result.label == ("still", "moving")[int(np.argmax(scores))]
    assert result.confidence == pytest.approx(max(scores), rel=1e-5)
    assert (result.stream, result.seq, result.captured, result.truth, result.epoch) == ("s", 3, 6.0, 4, 1)
    assert outgoing.topic == "har/v1/test/result/s" and outgoing.acks == (chest, arm) and not outgoing.needs_subscriber
    assert (stage.counters.windows, stage.counters.messages, stage.waiting) == (1, 2, 0)


def test_combined_sources_and_batches_give_one_answer_a_window():
    stage = small_stage()
    tensors = {source: samples(source, 1, count=5) for source in ("chest", "arm")}
    message = part("all", 10, captured=[1.0, 2.0, 3.0, 4.0, 5.0], tensors=tensors, truth=(1, None, 4, 4, 1))
    results = result_of(stage.handle(message))
    assert [(one.seq, one.captured, one.truth) for one in results] == [
        (10, 1.0, 1), (11, 2.0, None), (12, 3.0, 4), (13, 4.0, 4), (14, 5.0, 1),
    ]  # fmt: skip
    assert stage.counters.windows == 5


def test_activations_go_on_with_the_window_and_settle_its_inputs():
    stage = small_stage(sends=("both",))
    result, activation = whole(stage, 2, truth=(1,))
    assert activation.topic == "har/v1/test/act/1/0/s" and activation.needs_subscriber and len(activation.acks) == 2
    assert result.acks == activation.acks  # acknowledged when both are safe
    made = wire.decode(activation.payload)
    assert (made.stream, made.seq, made.epoch, made.captured, made.truth) == ("s", 2, 1, (5.0,), (1,))
    expected = np.concatenate([samples("chest", 2), samples("arm", 2)], axis=2)
    assert made.tensors["both"].tobytes() == expected.tobytes()


WRONG = "expected float32 \\[1, 4, 2\\]; give sensor and stage the same reducer"
BAD = {
    "shape": (part("chest", 1, tensors={"chest": np.zeros((1, 5, 2), np.float32)}), WRONG),
    "rank": (part("chest", 1, tensors={"chest": np.zeros((1,), np.float32)}), WRONG),
    "no dimension": (part("chest", 1, tensors={"chest": np.float32(1).reshape(())}), WRONG),
    "dtype": (part("chest", 1, tensors={"chest": samples("chest", 1, dtype=np.float64)}), "is float64 .* " + WRONG),
    "no window": (part("chest", 1, tensors={"chest": np.zeros((0, LENGTH, 2), np.float32)}), WRONG),
    "count": (
        part("chest", 1, tensors={"chest": samples("chest", 1, 3)}, captured=[1.0, 2.0]),
        r"source 'chest' is not what 'none' makes of 2 windows: .* float32 \[3, 4, 2\], expected float32 \[2, 4, 2\]",
    ),
    "missing tensor": (
        part("chest", 1, tensors={"x": samples("chest")}),
        "no tensor this stage needs came, but x; expected chest, arm",
    ),
    "no tensor": (part("chest", 1, tensors={}), "no tensor this stage needs came, but none; expected chest, arm"),
    "another's topic": (
        part("chest", 1, topic=TOPICS.window("s", "arm")),
        "no tensor this stage needs came, but chest; expected chest, arm",
    ),
    "epoch": (part("chest", 1, epoch=2), "epoch 2 came; expected 1; restart the node with the older plan"),
    "stream": (
        part("chest", 1, topic=TOPICS.window("other", "chest")),
        "stream 's' came on the topic of 'other'; expected the same",
    ),
    "version": (
        Delivery(TOPICS.window("s", "chest"), b"\x97\x02" + part("chest").payload[2:], (1, 1)),
        "expected version 1 with 7 fields, or version 2 or 3 with 8; update the older of the two nodes",
    ),
    "truncated": (
        Delivery(TOPICS.window("s", "chest"), part("chest").payload[:-3], (1, 1)),
        "bytes came that are no message of wire version 1: Input data was truncated",
    ),
    "oversized": (
        Delivery(TOPICS.window("s", "chest"), bytes(100_001), (1, 1)),
        "100001 bytes came; expected at most 100000; raise the limit or send fewer windows",
    ),
    "empty": (Delivery(TOPICS.window("s", "chest"), b"", (1, 1)), "0 bytes came that start no MessagePack array"),
    "garbage": (Delivery(TOPICS.window("s", "chest"), b"hello", (1, 1)), "5 bytes came that start no MessagePack"),
    "foreign topic": (part("chest", 1, topic="elsewhere/v1/x"), "topic 'elsewhere/v1/x' came; expected one below"),
    "other kind": (
        Delivery(TOPICS.result("s"), encode_results([Result("s", 1, "a", 1, 1.0, 0.0, 0.0, 1)]), (1, 1)),
        "a message of kind 'result' came; expected windows or activations",
    ),
    "no earlier stage": (
        part("chest", 1, topic=TOPICS.activation(1, 5, "s")),
        "no tensor this stage needs came, but chest; expected chest, arm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_an_unusable_message_is_dropped_counted_explained_and_released(case, caplog):
    stage, (bad, text) = small_stage(), BAD[case]
    assert stage.handle(part("chest", 0)) == []
    with caplog.at_level(logging.WARNING):
        (released,) = stage.handle(bad)
    assert (released.topic, released.acks) == ("", (bad,))
    assert stage.counters.rejected == 1 and stage.waiting == 1
    assert caplog.text.count("dropped " + bad.topic) == 1
    import re

    assert re.search(text, caplog.text), caplog.text
    assert result_of(stage.handle(part("arm", 0))), "the next good message must still work"


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("reducer", ["none", "paa:2"])
def test_values_that_are_no_numbers_do_not_end_a_stage_of_an_integer_model(wrong, reducer, caplog):
    """A rogue message that stays unacknowledged would come again and end the next process too."""
    stage = small_stage(dtype="int8", reducer=reducer)
    length = LENGTH if reducer == "none" else LENGTH // 2
    bad = part("chest", tensors={"chest": np.full((1, length, 2), wrong, np.float32)})
    (released,) = stage.handle(bad)
    assert released.acks == (bad,) and stage.counters.rejected == 1
    assert "the code of source 'chest' is not what" in caplog.text and "NaN or infinity" in caplog.text


def test_a_score_that_is_no_number_is_no_result(caplog):
    wrong = iter([np.nan])
    stage = small_stage(run=lambda values: {"scores": np.full((1, 2), next(wrong, 0.5), np.float32)})
    stage.handle(part("arm", 0))
    (released,) = stage.handle(part("chest", 0))
    assert released.topic == "" and len(released.acks) == 2 and stage.counters.rejected == 1
    assert "dropped window 0 of s: the model's score is NaN; expected a number; all that entered" in caplog.text
    assert "the model itself makes it of what the sensors sent, which are numbers; look for a log" in caplog.text
    assert result_of(whole(stage, 1))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_sensor_that_sends_no_numbers_is_named(wrong):
    """So a score that is none is the model's own doing."""
    stage = small_stage()
    (released,) = stage.handle(part("chest", 0, tensors={"chest": np.full((1, LENGTH, 2), wrong, np.float32)}))
    assert released.topic == "" and stage.counters.rejected == 1
    assert "the code of source 'chest' is not what 'none' makes of 1 windows" in stage.complaint
    assert "code holds NaN or infinity" in stage.complaint


def test_activations_above_the_limit_are_explained_not_sent_in_vain(caplog):
    stage = small_stage(sends=("both",), limit=500)
    stage.handle(part("arm", 0, captured=[1.0] * 7))
    (released,) = stage.handle(part("chest", 0, captured=[1.0] * 7))
    assert released.topic == "" and stage.counters.rejected == 1
    assert "its activations take" in caplog.text and "expected at most 500; send fewer windows" in caplog.text


def test_a_batch_for_a_model_without_one_is_explained(caplog):
    stage = small_stage(dynamic=False)
    (released,) = stage.handle(part("chest", 0, captured=[1.0, 2.0]))
    assert released.topic == "" and stage.counters.rejected == 1
    assert "a batch of 2 windows came, but input 'c' takes [1, 4, 2]; send one window a message" in caplog.text
    assert result_of(whole(stage, 5))


def test_a_missing_source_is_given_up_counted_explained_and_released(caplog):
    clock = Clock()
    stage = small_stage(timeout_s=3.0, clock=clock)
    chest = part("chest", 0, captured=[1.0, 2.0])
    stage.handle(chest)
    clock.now = 2.9
    assert stage.tick() == []
    clock.now = 3.0
    (released,) = stage.tick()
    assert (released.topic, released.acks) == ("", (chest,))
    assert (stage.counters.shelved, stage.counters.given_up, stage.waiting) == (2, 0, 0) and not caplog.records
    clock.now = 3.0 + REPLAY_BUFFER_S + 0.1
    assert stage.tick() == []
    assert stage.counters.given_up == 2 and stage.counters.rejected == 0
    assert "gave up window 0 of s: a did not come" in caplog.text
    assert result_of(whole(stage, 1))


def test_too_many_waiting_windows_push_the_oldest_out():
    stage = small_stage(capacity=2)
    first = part("chest", 0)
    assert stage.handle(first) == stage.handle(part("chest", 1)) == []
    (released,) = stage.handle(part("chest", 2))
    assert released.acks == (first,) and (stage.counters.shelved, stage.counters.given_up) == (1, 0)
    assert result_of(stage.handle(part("arm", 0)))  # what it lacked came after all


def test_a_leftover_is_released_soon_and_not_counted_as_lost(caplog):
    clock = Clock()
    stage = small_stage(clock=clock)
    left = part("arm", 0, duplicate=True)
    stage.handle(left)
    assert result_of(whole(stage, 1))
    clock.now = 1.0
    assert stage.tick() == []
    clock.now = 2.0
    with caplog.at_level(logging.INFO):
        (released,) = stage.tick()
    assert released.acks == (left,)
    assert (stage.counters.leftover, stage.counters.given_up) == (1, 0)
    assert "released window 0 of s: c was settled before" in caplog.text


def test_a_part_sent_again_for_a_window_that_was_complete_is_released_at_once():
    """A stage before this one was killed and does some windows again; its parts must not wait for the others."""
    stage = small_stage(capacity=3)
    assert result_of(whole(stage, 0))
    again = part("arm", 0)
    assert [(out.topic, out.acks) for out in stage.handle(again)] == [("", (again,))]
    assert (stage.waiting, stage.counters.duplicates, stage.counters.windows) == (0, 1, 1)
    new_run = part("arm", 0, captured=(99.0,))
    assert stage.handle(new_run) == [] and stage.waiting == 1
    assert result_of(stage.handle(part("chest", 0, captured=(99.0,))))
    redelivered = part("arm", 0, captured=(99.0,), duplicate=True)  # was not acknowledged: its output may not be safe
    assert stage.handle(redelivered) == [] and stage.waiting == 1


def test_activations_of_an_earlier_stage_are_joined_and_checked(caplog):
    run = lambda values: {"scores": values["x"][:, :2] + values["y"][:, :2]}  # noqa: E731
    stage = small_stage(run=run, earlier={0: ("x", "y")})
    assert stage.filters == ["har/v1/test/act/1/0/+"]
    topic = TOPICS.activation(1, 0, "s")
    x = np.arange(5, dtype=np.float32)[None]
    (released,) = stage.handle(part("-", 0, tensors={"x": x}, topic=topic))
    assert released.topic == "" and "stage 0 sent no tensor y; expected it: slices of one cut" in caplog.text
    assert result_of(stage.handle(part("-", 0, tensors={"x": x, "y": x}, topic=topic)))
    (released,) = stage.handle(part("-", 1, tensors={"x": x, "y": x.astype(np.int8)}, topic=topic))
    assert "input 'y' came as int8 [1, 5] for 1 windows; expected float32 [-1, 5]" in caplog.text
    (released,) = stage.handle(part("-", 1, tensors={"x": x, "y": x[:, :4]}, topic=topic))
    assert "input 'y' came as float32 [1, 4] for 1 windows; expected float32 [-1, 5]" in caplog.text


def test_filters_name_the_sources_and_what_is_combined():
    assert small_stage().filters == [
        "har/v1/test/window/+/chest", "har/v1/test/window/+/arm", "har/v1/test/window/+/all",
    ]  # fmt: skip


def test_any_truncation_of_a_good_message_is_survived():
    stage, good = small_stage(), part("chest", 0).payload
    for size in range(len(good)):
        (released,) = stage.handle(Delivery(TOPICS.window("s", "chest"), good[:size], (1, size)))
        assert released.topic == ""
    assert stage.counters.rejected == len(good) and result_of(whole(stage, 0))


def test_any_changed_byte_of_a_good_message_is_survived():
    stage, good = small_stage(), part("chest", 0).payload
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 0xFF
        for outgoing in stage.handle(Delivery(TOPICS.window("s", "chest"), bytes(changed), (1, place))):
            assert outgoing.topic == "" or "/result/" in outgoing.topic
    assert result_of(whole(stage, 1000))


def test_a_deployed_stage_leaves_windows_of_another_epoch_to_others(caplog):
    stage, strange = small_stage(deployed=True), part("chest", 0, epoch=2, captured=(1.0, 2.0))
    with caplog.at_level(logging.INFO):
        (released,) = stage.handle(strange)
        stage.handle(part("chest", 1, epoch=2))
        stage.handle(part("chest", 1, epoch=3))
    assert (released.topic, released.acks) == ("", (strange,))
    assert (stage.counters.foreign, stage.counters.rejected, stage.counters.messages, stage.waiting) == (4, 0, 0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        f"windows of epoch {epoch} come too; this stage takes those of 1" for epoch in (2, 3)
    ]
    assert result_of(whole(stage, 0))


def test_activations_of_another_epoch_are_refused_by_a_deployed_stage_too(caplog):
    stage = small_stage(deployed=True, earlier={0: ("both",)})
    stage.handle(part("chest", epoch=2, topic="har/v1/test/act/1/0/s"))
    assert (stage.counters.foreign, stage.counters.rejected) == (0, 1) and "epoch 2 came; expected 1" in caplog.text


def test_a_share_of_the_subscriptions():
    assert small_stage(share="7-0").filters == [f"$share/7-0/{one}" for one in small_stage().filters]


def deployed(**options):
    clock = Clock()
    return clock, small_stage(deployed=True, clock=clock, **options)


def test_a_deployed_stage_releases_what_waits_and_goes_on_when_the_rest_comes(caplog):
    clock, stage = deployed()
    chest = part("chest", 0)
    assert stage.handle(chest) == []
    clock.now = 3.1
    (released,) = stage.tick()
    assert released.acks == (chest,) and (stage.waiting, stage.counters.shelved, stage.counters.given_up) == (
        0,
        1,
        0,
    )
    clock.now = 60.0
    arm = part("arm", 0, captured=(6.0,))
    (answer,) = stage.handle(arm)
    (result,) = result_of([answer])
    assert answer.acks == (arm,) and result.captured == 6.0
    assert stage.handle(part("chest", 0))[0].topic == "" and stage.counters.duplicates == 1
    assert not caplog.records


def test_parts_in_the_replay_buffer_of_a_sensor_that_went_are_not_taken_for_those_of_the_next_run():
    clock, stage = deployed()
    stage.handle(part("chest", 0))
    clock.now = 3.1
    stage.tick()
    clock.now = 64.0
    assert stage.handle(part("arm", 0)) == [] and stage.waiting == 1
    assert result_of(stage.handle(part("chest", 0)))


def test_a_stream_that_begins_anew_is_not_completed_by_parts_of_its_last_run():
    clock, stage = deployed()
    stage.handle(part("chest", 5, captured=(5.0,)))
    assert result_of(whole(stage, 6, captured=(6.0,)))
    clock.now = 5.1
    assert stage.tick() and stage.counters.shelved == 1
    for seq in range(5):
        assert result_of(whole(stage, seq, captured=(20.0 + seq,)))
    assert stage.counters.leftover == 1
    assert result_of(stage.handle(part("arm", 5, captured=(25.0,)))) == []
    (result,) = result_of(stage.handle(part("chest", 5, captured=(25.1,))))
    assert result.captured == 25.1


def test_a_window_that_is_sent_again_leaves_the_replay_buffer_as_it_is():
    clock, stage = deployed()
    for seq in (5, 6, 7):
        stage.handle(part("chest", seq, captured=(5.0 + seq,)))
    clock.now = 3.1
    stage.tick()
    for seq in (5, 6, 7):  # the others were sent to another epoch, and come now; then one comes again
        assert result_of(stage.handle(part("arm", seq, captured=(5.0 + seq,))))
    assert result_of(whole(stage, 0, captured=(1.0,))) and stage.counters.leftover == 0


def test_a_leftover_does_not_go_into_the_replay_buffer_of_a_deployed_stage():
    """Its window was answered; a run that begins anew with another stage process must not be given its part."""
    clock, stage = deployed()
    left = part("arm", 0, duplicate=True)
    stage.handle(left)
    assert result_of(whole(stage, 1))
    clock.now = 1.0
    stage.tick()
    clock.now = 2.0
    assert [out.acks for out in stage.tick()] == [(left,)]
    assert (stage.counters.leftover, stage.counters.shelved) == (1, 0)
    assert result_of(stage.handle(part("chest", 0, captured=(99.0,)))) == []


def test_a_deployed_stage_answers_again_when_one_source_of_a_window_comes_again():
    clock, stage = deployed()
    (first,) = result_of(whole(stage, 0, captured=(5.0,)))
    clock.now = 1.0  # the others send again too: one answer is enough
    assert result_of(stage.handle(part("chest", 0))) == []
    clock.now = 2.5
    again = part("arm", 0)
    (outgoing,) = stage.handle(again)
    assert outgoing.acks == (again,) and result_of([outgoing]) == [first]
    assert result_of(stage.handle(part("chest", 0))) == [] and stage.counters.duplicates == 3
    assert result_of(whole(stage, 0, captured=(9.0,)))[0].captured == 9.0  # a new run of the stream


def test_what_a_deployed_stage_keeps_is_bounded(caplog, monkeypatch):
    monkeypatch.setattr("har_edge.runtime.stage.stage.REPLAY_BYTES", 10 * LEAST_WINDOW_BYTES)
    clock, stage = deployed()
    for seq in range(25):
        stage.handle(part("chest", seq))
    clock.now = 3.1
    stage.tick()
    assert (stage.counters.shelved, stage.counters.given_up) == (25, 15)
    assert "gave up window 0 of s: too many lack a part" in caplog.text
    assert [bool(result_of(stage.handle(part("arm", seq)))) for seq in (14, 15, 24)] == [False, True, True]


def test_a_window_that_is_sent_again_after_many_that_failed_is_released(monkeypatch):
    """What failed since is remembered by the join, and not by the cache of outputs."""
    monkeypatch.setattr("har_edge.runtime.stage.join.REMEMBERED", 4)
    stage = small_stage(earlier={0: ("both",)}, run=lambda values: {"scores": values["both"][:, :2]})

    def activation(seq, value):
        tensors = {"both": np.full((1, 5), value, np.float32)}
        return part("", seq, tensors=tensors, topic=TOPICS.activation(1, 0, "s"))

    assert result_of(stage.handle(activation(0, 1.0)))
    for seq in range(1, 8):
        stage.handle(activation(seq, np.nan))
    assert (stage.counters.windows, stage.counters.rejected) == (1, 7)
    again = activation(0, 1.0)
    (released,) = stage.handle(again)
    assert (released.topic, released.acks, stage.counters.duplicates) == ("", (again,), 1)


def rows_stage(shape=(-1, 3), **options):
    """Return a stage that takes "rows" of a tensor that is no batch, from an earlier one."""
    stage = small_stage(earlier={0: ("rows",)}, run=lambda values: {"scores": values["rows"].sum(axis=0)[None, :2]})
    spec = TensorSpec("rows", shape, "float32", batched=False)
    entry = SliceEntry("slice.tflite", "0" * 64, 0, 1, (spec,), ())
    setup = dataclasses.replace(stage._setup, wiring=dataclasses.replace(stage._setup.wiring, entry=entry))
    return Stage(setup, clock=Clock(1000.0), monotonic=Clock())


def rows(*shape, count=1):
    captured = tuple(float(number) for number in range(count))
    return part(
        "", 0, captured=captured, tensors={"rows": np.ones(shape, np.float32)}, topic=TOPICS.activation(1, 0, "s")
    )


@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_a_tensor_that_is_no_batch_has_as_many_rows_as_it_has(number):
    (result,) = result_of(rows_stage().handle(rows(number, 3)))
    assert result.confidence == number


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            rows(2, 3, count=2),
            r"a batch of 2 windows came, but input 'rows' takes \[-1, 3\], whose first dimension is no",
        ),
        (rows(2, 4), r"input 'rows' came as float32 \[2, 4\] for 1 windows; expected float32 \[-1, 3\]"),
        (rows(2, 0), r"input 'rows' came as float32 \[2, 0\] for 1 windows"),
        (rows(6), r"input 'rows' came as float32 \[6\] for 1 windows"),
    ],
)
def test_it_comes_alone_and_in_its_shape(message, text):
    stage = rows_stage()
    assert [one.topic for one in stage.handle(message)] == [""]
    assert stage.counters.rejected == 1 and re.search(text, stage.complaint)
