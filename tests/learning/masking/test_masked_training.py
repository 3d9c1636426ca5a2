"""Masked rounds on a broker in memory: right sums, any dropout survived, junk named, and no update seen by anybody."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from msgspec import structs

from har_edge.errors import MessageError
from har_edge.learning.masking.fixed_point import Words
from har_edge.learning.masking.keys import expand
from har_edge.learning.masking.shamir import join_shares
from har_edge.learning.masking.task import MaskedTask
from har_edge.learning.masking.vector import EXTRA_WORDS, JunkSum, UpdateWords
from har_edge.learning.server.modes import TrainingMode
from har_edge.learning.worker.worker import TrainingWorker
from har_edge.mqtt.bus import Delivery, Outgoing, Session
from har_edge.mqtt.memory import MemoryBus
from har_edge.protocol.events import TrainingEvent, decode
from har_edge.protocol.masks import SEALED_BYTES, SHARE_BYTES, MaskPart, MaskRelay, MaskTerms
from har_edge.protocol.training import RunState, TrainingMessage, Update, encode_training
from tests.learning.extras import needs
from tests.learning.test_training import FAULTS, check_account
from tests.learning.training_rig import SIZE, TOPICS, Fleet, make_fleet, make_job

pytestmark = needs("cryptography")
BOTH = pytest.mark.parametrize("mode", [TrainingMode.SYNC, TrainingMode.LOCAL])
WORDS = SIZE + EXTRA_WORDS


def masked(names: str = "abcd", **more: object) -> Fleet:
    return make_fleet(names, mask=True, local_steps=2, **more)  # type: ignore[arg-type]


def until_phase(fleet: Fleet, phase: int, name: str = "b", after: int = 2) -> None:
    """Go on until a message of a worker is awaited, in a later round than the first ones."""
    masks = fleet.server.masks
    assert masks is not None
    until = fleet.now + 600
    while fleet.now < until:
        current = masks.current
        if fleet.server.round >= after and current is not None and current.phase == phase and current.awaits(name):
            return
        fleet.turn()
    raise AssertionError(fleet.lines)


@BOTH
def test_a_masked_run_gives_the_numbers_of_one_without(mode: TrainingMode) -> None:
    plain = make_fleet("abcd", (64, 64), mode=mode, local_steps=2)
    plain.run()
    fleet = masked(sizes=(64, 64), mode=mode)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    check_account(fleet)
    np.testing.assert_allclose(fleet.server.weights, plain.server.weights, atol=1e-5)
    for one, other in zip(fleet.server.record.rounds, plain.server.record.rounds, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3)
        assert (one.samples, one.train_accuracy, one.workers) == (other.samples, other.train_accuracy, 4)
    assert {(one.loss, one.correct) for one in fleet.updates} == {(0.0, 0)}
    assert fleet.server.record.dropped == 0
    assert fleet.server.progress(0).privacy == "updates are masked: server and broker see their sums alone"


# --- what the broker carried ------------------------------------------------------------------------------------------


class Observer:
    """Everything that a broker carried of one training, and the words that its workers masked."""

    def __init__(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bus: MemoryBus = fleet.broker.connect(Session("observer"))
        self.bus.subscribe([TOPICS.training("r", "#")])
        self.held: dict[tuple[int, str], Words] = {}
        honest = MaskedTask.hold

        def hold(task: MaskedTask, values: Words) -> None:
            self.held[task.number, task._worker] = values.copy()
            honest(task, values)

        monkeypatch.setattr(MaskedTask, "hold", hold)
        self.payloads: list[bytes] = []
        self.messages: list[TrainingMessage] = []

    def listen(self) -> None:
        while came := self.bus.poll(0):
            for one in came:
                self.bus.acknowledge(one)
                event = decode(one, TOPICS)
                assert isinstance(event, TrainingEvent) and event.message is not None
                self.payloads.append(one.payload)
                self.messages.append(event.message)

    def parts(self, number: int) -> list[MaskPart]:
        return [one for one in self.messages if isinstance(one, MaskPart) and one.number == number]

    def sent(self, number: int) -> dict[str, Words]:
        """Return the masked vectors of a sum as they travelled: its tasks are those of one round."""
        at = max(index for index, one in enumerate(self.messages) if one in self.parts(number))
        found: dict[str, Words] = {}
        for one in self.messages[:at]:
            if isinstance(one, Update) and one.vector.data:
                found[one.worker] = np.frombuffer(one.vector.data, "<u4").astype(np.uint32)
        return found

    def seeds(self, number: int) -> dict[str, bytes]:
        """Return the seeds of the counted, joined from the shares that workers told, as the server does."""
        parts = self.parts(number)
        points = {name: index for index, name in enumerate(sorted({one.worker for one in parts if one.keys}), 1)}
        told = {points[one.worker]: one.told for one in parts if one.told}
        return {name: join_shares({point: shares[name] for point, shares in told.items()}) for name in points}


@BOTH
def test_no_update_can_be_read_from_what_the_broker_carried(
    mode: TrainingMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for _ in range(2):
        fleet = masked(sizes=(64, 64), mode=mode, epochs=1)
        seen = Observer(fleet, monkeypatch)
        fleet.run()
        seen.listen()
        runs.append(seen)
    for seen in runs:
        for number in sorted({number for number, _ in seen.held}):
            sent, seeds = seen.sent(number), seen.seeds(number)
            total = np.zeros(WORDS, np.uint32)
            for name in "abcd":
                # Each worker's own seed is known after the last message; the masks of its pairs still hide it.
                left = sent[name] - expand(seeds[name], WORDS)
                assert np.count_nonzero(left == seen.held[number, name]) <= 2
                total += left
            expected = np.sum([seen.held[number, name] for name in "abcd"], axis=0, dtype=np.uint32)
            np.testing.assert_array_equal(total, expected)
        for words in seen.held.values():
            for start in range(0, SIZE - 8, 8):
                secret = words[start : start + 8].astype("<u4").tobytes()
                assert not any(secret in payload for payload in seen.payloads)
    one, other = runs  # the same updates, yet nothing that travelled under masks is the same
    for number, name in one.held:
        np.testing.assert_array_equal(one.held[number, name], other.held[number, name])
        assert np.count_nonzero(one.sent(number)[name] == other.sent(number)[name]) <= 2


@pytest.mark.parametrize("local", [False, True])
def test_the_sum_is_right_to_the_stated_error(local: bool) -> None:
    terms, random = MaskTerms(1, 5, 4, 0.5, 100), np.random.default_rng(3)
    words = UpdateWords(terms, local)
    vectors = random.uniform(-0.5, 0.5, (5, 1000)).astype(np.float32)
    samples = [100, 20, 60, 100, 7]
    total = np.zeros(1003, np.uint32)
    for vector, count in zip(vectors, samples, strict=True):
        total += words.encode(vector, count, 2.5 * count, count // 2)
    found = words.decode(total, sum(samples))
    weights = np.array(samples if local else [1] * 5, np.float64) / (sum(samples) if local else 1)
    exact = weights @ vectors.astype(np.float64)
    scale = terms.most / sum(samples) if local else 1.0
    assert 1e-10 < words.error < 4e-9
    assert np.abs(found.vector - exact).max() <= scale * words.error + 3e-7 * np.abs(exact).max()
    assert found.loss == pytest.approx(2.5 * sum(samples), rel=1e-4) and found.correct == 50 + 10 + 30 + 50 + 3
    with pytest.raises(JunkSum, match="the masked sum is not that of the updates"):
        words.decode(total, sum(samples) + 1)


# --- who drops out ----------------------------------------------------------------------------------------------------


def kill(fleet: Fleet) -> None:
    fleet.kill("b")


def hang(fleet: Fleet) -> None:
    fleet.nodes["b"].hung = True


def restart(fleet: Fleet) -> None:
    old = fleet.nodes.pop("b")
    fleet.add("b", instance="2")
    old.bus.crash()


@pytest.mark.parametrize("phase", [1, 2, 3, 4])
@pytest.mark.parametrize("drop", [kill, hang, restart], ids=lambda one: one.__name__)
def test_a_worker_that_drops_out_at_any_message_costs_no_round_and_no_sample(
    drop: Callable[[Fleet], None], phase: int
) -> None:
    fleet = masked(mode=TrainingMode.LOCAL if phase % 2 else TrainingMode.SYNC)
    until_phase(fleet, phase)
    before = fleet.server.round
    drop(fleet)
    while fleet.server.round == before:
        fleet.turn()
    assert fleet.server.record.rounds[-1].workers == (4 if phase == 4 else 3)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED, fleet.lines
    check_account(fleet)
    assert not any("is lost" in line for line in fleet.lines), fleet.lines
    if drop is hang:
        assert any(f"b: it missed its deadline for message {phase} of the masked sum" in one for one in fleet.lines)


@pytest.mark.parametrize(("fault", "line"), FAULTS, ids=[case[0].__name__ for case in FAULTS])
def test_the_faults_of_any_training(fault: Callable[[Fleet], None], line: str) -> None:
    fleet = masked("abce")
    fleet.until_round(2)
    fault(fleet)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED, (fleet.server.detail, fleet.lines)
    check_account(fleet)
    assert any(line in one for one in fleet.lines), fleet.lines


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_one_that_comes_back_late_is_dropped_from_the_old_round_and_takes_part_in_new_ones(phase: int) -> None:
    fleet = masked(epochs=4)
    until_phase(fleet, phase)
    fleet.nodes["b"].hung = True
    fleet.until_round(fleet.server.round + 3)
    before = fleet.server.pool.members["b"].samples
    fleet.nodes["b"].hung = False
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    check_account(fleet, 4)
    assert any("b is heard again" in one for one in fleet.lines)
    assert fleet.server.pool.members["b"].samples > before


def test_too_many_dropouts_lose_the_round_and_its_samples_come_back() -> None:
    fleet = masked("abcde")
    until_phase(fleet, 3)
    for name in "bc":
        fleet.kill(name)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    check_account(fleet)
    (line,) = [one for one in fleet.lines if "is lost" in one]
    assert "3 of 5 devices are left at message 3 of the masked sum; expected at least 4" in line


def test_with_two_workers_left_no_round_is_made_until_a_third_comes() -> None:
    fleet = masked("abc", patience_s=30.0)
    fleet.until_round(2)
    fleet.kill("b")
    for _ in range(200):
        fleet.turn()
    assert fleet.server.detail == "2 workers here, a masked sum needs 3; waiting for more"
    fleet.add("d")
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    check_account(fleet)


def test_two_workers_alone_end_the_run_with_its_state() -> None:
    fleet = masked("abc", patience_s=20.0)
    fleet.until_round(2)
    fleet.kill("b")
    fleet.run()
    assert fleet.server.state is RunState.STOPPED
    assert fleet.server.problem == "fewer than 3 workers were heard for 20 s" and fleet.checkpoints


def test_two_workers_do_not_begin() -> None:
    fleet = masked("ab", patience_s=20.0, wait_s=5.0)
    fleet.settings = replace(fleet.settings, workers=3)
    fleet.start_server()
    fleet.run()
    assert "2 workers came in 25 s, and a masked sum needs 3" in fleet.server.problem


@BOTH
def test_a_server_that_restarts_in_a_round_gives_the_numbers_of_an_undisturbed_run(mode: TrainingMode) -> None:
    undisturbed = masked(mode=mode, checkpoint_s=0.0)
    undisturbed.run()
    fleet = masked(mode=mode, checkpoint_s=0.0)
    until_phase(fleet, 3)
    kept = fleet.checkpoints[-1]
    fleet.server_bus.crash()
    fleet.counted.clear()
    fleet.settings = replace(fleet.settings, job=structs.replace(fleet.settings.job, author="two"))
    fleet.start_server(kept)
    for name in "abcd":
        fleet.kill(name)
        fleet.add(name)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    np.testing.assert_array_equal(fleet.server.weights, undisturbed.server.weights)


def test_a_run_that_is_stopped_in_the_last_message_gives_its_samples_back() -> None:
    fleet = masked()
    until_phase(fleet, 4)
    counted = fleet.server.record.total
    fleet.server.halt("stopped by a signal", fleet.now)
    assert fleet.server.checkpoints[-1].counted == counted
    free = sum(one.samples for one in fleet.server.checkpoints[-1].free)
    assert free + counted == 340


def test_own_samples_of_unequal_number_end_together() -> None:
    fleet = masked(sizes=(), own={"a": 100, "b": 40, "c": 60, "d": 25}, mode=TrainingMode.LOCAL)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    for row in fleet.server.record.epochs:
        assert row.samples + row.skipped == 225 and row.skipped <= 2
    assert {row.workers for row in fleet.server.record.rounds} == {4}


# --- junk -------------------------------------------------------------------------------------------------------------


def forge(fleet: Fleet, change: Callable[[MaskPart], MaskPart]) -> None:
    """Let b send changed messages of masked sums."""
    worker = fleet.nodes["b"].worker
    honest = worker._mask_message

    def forged(part: MaskPart) -> Outgoing:
        return honest(change(part))

    worker._mask_message = forged  # type: ignore[method-assign]


def keys_of_zeros(part: MaskPart) -> MaskPart:
    return structs.replace(part, keys=(bytes(32), bytes(32))) if part.keys else part


def shares_for_nobody(part: MaskPart) -> MaskPart:
    return structs.replace(part, shares={"zoe": bytes(SEALED_BYTES)}) if part.shares else part


def shares_that_nobody_can_open(part: MaskPart) -> MaskPart:
    return structs.replace(part, shares={name: secrets.token_bytes(SEALED_BYTES) for name in part.shares})


def shares_that_one_cannot_open(part: MaskPart) -> MaskPart:
    return structs.replace(part, shares=part.shares | {"c": bytes(SEALED_BYTES)}) if part.shares else part


def shares_never_given(part: MaskPart) -> MaskPart:
    return structs.replace(part, told={name: bytes(SHARE_BYTES) for name in part.told})


def shares_of_strangers(part: MaskPart) -> MaskPart:
    return structs.replace(part, told={"zoe": bytes(SHARE_BYTES)}) if part.told else part


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (keys_of_zeros, "a public key of 32 bytes cannot be used"),
        (shares_for_nobody, "b sealed shares for 1 devices, expected the 3 others"),
        (shares_that_nobody_can_open, "the masks of b cannot be removed: 1 devices have shares of it"),
        (shares_never_given, "it told shares of a masked sum that it was not given"),
        (shares_of_strangers, "b told 1 share, expected those of 4 devices, of 66 bytes"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_worker_that_sends_junk_is_named_and_left_out(change: Callable[[MaskPart], MaskPart], line: str) -> None:
    fleet = masked()
    forge(fleet, change)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED, fleet.lines
    check_account(fleet)
    assert any(line in one for one in fleet.lines), fleet.lines
    assert any("b is left out until it starts again" in one for one in fleet.lines), fleet.lines


def test_shares_that_one_worker_cannot_open_cost_nothing() -> None:
    fleet = masked()
    forge(fleet, shares_that_one_cannot_open)
    fleet.run()
    check_account(fleet)
    assert fleet.server.pool.members["b"].samples > 60 and not fleet.server.pool.members["b"].refused
    assert not any("is lost" in line for line in fleet.lines), fleet.lines


def test_junk_under_a_mask_is_not_used_and_its_sender_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = MaskedTask.hold

    def hold(task: MaskedTask, values: Words) -> None:
        junk = np.frombuffer(secrets.token_bytes(4 * values.size), np.uint32)
        honest(task, junk if task._worker == "c" else values)

    monkeypatch.setattr(MaskedTask, "hold", hold)
    fleet = masked()
    fleet.run()
    assert fleet.server.state is RunState.FINISHED, fleet.lines
    check_account(fleet)
    assert np.abs(fleet.server.weights).max() < 10 and fleet.server.pool.members["c"].samples == 0
    said = [line for line in fleet.lines if "left out" in line]
    assert said == ["c is left out until it starts again: masked sums with it are not those of the updates"]


def test_junk_among_three_ends_the_run_with_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = MaskedTask.hold
    monkeypatch.setattr(MaskedTask, "hold", lambda task, values: honest(task, values + np.uint32(task._worker == "c")))
    fleet = masked("abc")
    fleet.run()
    assert fleet.server.state is RunState.STOPPED and not fleet.server.record.rounds
    assert fleet.server.problem == (
        "10 masked rounds in a row were lost, the last one: the masked sum is not that of the updates: a worker sent "
        "something else"
    )


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_other_contents_than_before_are_dropped_and_the_first_ones_stay(phase: int) -> None:
    fleet = masked()
    until_phase(fleet, phase)
    fleet.turn()
    current = fleet.server.masks.current  # type: ignore[union-attr]
    assert current is not None
    again = MaskPart(
        run="r", author="one", worker="b", number=current.terms.number, keys=(secrets.token_bytes(32), bytes([9] * 32))
    )
    fleet.nodes["b"].bus.publish(TOPICS.training("r", "mask", "b"), encode_training(again))
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    check_account(fleet)
    assert fleet.server.record.dropped == 1 and not any("is lost" in line for line in fleet.lines)
    assert fleet.server.pool.members["b"].samples > 60


def test_messages_that_come_twice_change_nothing() -> None:
    fleet = masked(epochs=1)
    for node in fleet.nodes.values():
        publish = node.bus.publish

        def twice(*args: object, publish: Callable[..., object] = publish, **more: object) -> None:
            publish(*args, **more)
            publish(*args, **more)

        node.bus.publish = twice  # type: ignore[method-assign,assignment]
    fleet.run()
    check_account(fleet, 1)
    assert fleet.server.record.dropped == 0


class Worker:
    """A worker of a masked sum, and the server's messages to it one by one."""

    def __init__(self, **more: object) -> None:
        self.fleet = masked()
        self.fleet.until_round(1)
        until_phase(self.fleet, 1, after=1)
        self.worker = self.fleet.nodes["b"].worker
        self.seen = self.fleet.broker.connect(Session("seen"))
        self.seen.subscribe([TOPICS.training("r", "relay"), TOPICS.training("r", "relay", "b")])

    def relay(self, kind: str) -> MaskRelay:
        while True:
            self.fleet.turn()
            for one in self.seen.poll(0):
                event = decode(one, TOPICS)
                assert isinstance(event, TrainingEvent) and isinstance(event.message, MaskRelay)
                if getattr(event.message, kind):
                    return event.message

    def tell(self, relay: MaskRelay) -> list[Outgoing]:
        topic = TOPICS.training("r", "relay", "b")
        return self.worker.handle(Delivery(topic, encode_training(relay), (0, 0)))


def test_a_server_that_asks_for_other_shares_later_gets_none() -> None:
    one = Worker()
    relay = one.relay("counted")
    one.fleet.turn()
    (told,) = one.tell(relay)
    assert one.tell(relay) == [told]  # the same again, as where it was lost
    assert one.tell(structs.replace(relay, counted=("a", "b", "c"))) == []
    assert one.worker.reasons[-1].endswith("b tells its shares once, after it has sent its values")


def test_a_server_that_sends_other_keys_or_shares_later_gets_nothing() -> None:
    one = Worker()
    keys = one.relay("keys")
    one.fleet.turn()
    other = structs.replace(keys, keys={name: pair for name, pair in keys.keys.items() if name != "a"})
    assert one.tell(other) == [] and "has shared the seeds of this round already" in one.worker.reasons[-1]
    shares = one.relay("shares")
    one.fleet.turn()
    fewer = structs.replace(shares, shares={name: text for name, text in shares.shares.items() if name != "a"})
    assert one.tell(fewer) == [] and "other shares of a masked sum came than before" in one.worker.reasons[-1]


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        (None, "a round without masks came, and the job says that updates are masked"),
        (MaskTerms(1, 4, 2, 1.0, 8), "a masked sum of 4 workers with threshold 2 came; expected more than half"),
        (MaskTerms(1, 4, 5, 1.0, 8), "a masked sum of 4 workers with threshold 5 came"),
    ],
)
def test_a_round_that_would_not_hide_an_update_is_not_taken(terms: MaskTerms | None, says: str) -> None:
    fleet = masked()
    fleet.until_round(1)
    until_phase(fleet, 1, after=1)
    bus = fleet.broker.connect(Session("seen"))
    bus.subscribe([TOPICS.training("r", "round")])
    while not (came := bus.poll(0)):
        fleet.turn()
    event = decode(came[0], TOPICS)
    assert isinstance(event, TrainingEvent) and event.message is not None
    message = structs.replace(event.message, mask=terms)
    worker = TrainingWorker(fleet.settings.job, "b", "1", fleet.nodes["b"].learner, TOPICS)
    assert worker.handle(Delivery(came[0].topic, encode_training(message), (0, 0))) == []
    assert says in worker.reasons[-1] and not worker.busy


def test_a_round_with_masks_of_a_job_without_is_not_taken() -> None:
    fleet = make_fleet()
    bus = fleet.broker.connect(Session("seen"))
    bus.subscribe([TOPICS.training("r", "round")])
    while not (came := bus.poll(0)):
        fleet.turn()
    event = decode(came[0], TOPICS)
    assert isinstance(event, TrainingEvent) and event.message is not None
    message = structs.replace(event.message, mask=MaskTerms(1, 4, 3, 1.0, 8))
    worker = TrainingWorker(fleet.settings.job, "b", "1", fleet.nodes["b"].learner, TOPICS)
    assert worker.handle(Delivery(came[0].topic, encode_training(message), (0, 0))) == []
    assert "a round with masks came, and the job has none" in worker.reasons[-1]


def test_a_value_beyond_the_limit_is_told_and_not_sent() -> None:
    fleet = masked(clip=0.5)
    fleet.nodes["b"].worker._protect = lambda vector, samples: np.full(SIZE, 0.6, np.float32)  # type: ignore[assignment]
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    check_account(fleet)
    assert any("a value is beyond the limit of masked sums, 0.5" in line for line in fleet.lines)


@needs("dp_accounting")
@BOTH
def test_masks_over_clipped_updates_with_noise(mode: TrainingMode) -> None:
    plain = make_fleet("abcd", (64, 64), mode=mode, local_steps=2, clip=0.5, noise=2.0)
    plain.run()
    fleet = masked(sizes=(64, 64), mode=mode, clip=0.5, noise=2.0)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED
    assert fleet.server.privacy is not None and plain.server.privacy is not None
    assert fleet.server.privacy.epsilon == pytest.approx(plain.server.privacy.epsilon)
    said = fleet.server.progress(0).privacy
    assert said.endswith("; server and broker see masked updates, and their sums alone") and "one by one" not in said
    # The noise comes from the same generators: the sums are those without masks.
    np.testing.assert_allclose(fleet.server.weights, plain.server.weights, atol=1e-4)
    assert fleet.server.record.loss is None


def test_a_checkpoint_with_masks_is_no_other_ones() -> None:
    plain, with_masks = make_fleet().settings, masked("abc").settings
    assert plain.hash != with_masks.hash
    assert msgspec.structs.replace(make_job((1,)), mask=True) != make_job((1,))


def test_an_answer_to_another_sum_is_none() -> None:
    one = Worker()
    relay = one.relay("keys")
    with pytest.raises(MessageError, match=r"a message of masked sum 999 came; expected \d"):
        assert one.worker._masks is not None
        one.worker._masks.answer(structs.replace(relay, number=999))
