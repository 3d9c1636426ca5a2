"""A training whose workers clip their updates and add noise: what travels, what is told, what was spent."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from har_edge.errors import ConfigError
from har_edge.learning.privacy import PrivacyAccountant, check_privacy, protection_of
from har_edge.learning.server.modes import TrainingMode
from har_edge.learning.server.server import TrainingServer
from har_edge.learning.updates.compression import PackedVector, decode
from har_edge.protocol.training import RunState, Update
from tests.learning.extras import needs
from tests.learning.training_rig import SIZE, make_fleet, make_job

CLIP = 0.5


def vector_of(update: Update) -> np.ndarray:
    return decode(PackedVector(update.vector.kind, update.vector.size, update.vector.data), SIZE)


@pytest.mark.parametrize("mode", [TrainingMode.SYNC, TrainingMode.LOCAL])
@pytest.mark.parametrize("compress", ["none", "float16"])
def test_no_update_is_longer_than_the_clip(mode: TrainingMode, compress: str) -> None:
    fleet = make_fleet(mode=mode, clip=CLIP, compress=compress)
    fleet.run()
    assert fleet.server.state is RunState.FINISHED and fleet.updates
    norms = [float(np.linalg.norm(vector_of(one))) for one in fleet.updates]
    assert max(norms) == pytest.approx(CLIP, rel=1e-3)
    assert fleet.server.record.loss is not None and fleet.server.progress(0).privacy == ""


@needs("dp_accounting")
def test_under_noise_workers_tell_neither_loss_nor_right_answers_and_the_privacy_is_added_up() -> None:
    fleet = make_fleet(clip=CLIP, noise=4.0)
    fleet.run()
    server, updates = fleet.server, fleet.updates
    assert server.state is RunState.FINISHED
    assert {(one.loss, one.correct) for one in updates} == {(0.0, 0)}
    assert server.record.loss is None and all(row.loss is None for row in server.record.rounds)
    deviations = [float(np.std(vector_of(one))) for one in updates]
    assert np.mean(deviations) == pytest.approx(4.0 * CLIP, rel=0.1)
    expected = PrivacyAccountant()
    for row in server.record.rounds:
        expected.spend(4.0 * math.sqrt(row.workers), 4.0)
    assert server.privacy is not None and server.privacy.epsilon == pytest.approx(expected.epsilon)
    assert server.progress(0).privacy == expected.describe()
    assert f"in {len(server.record.rounds)} rounds; towards server and broker" in expected.describe()


@needs("dp_accounting")
def test_a_mean_by_samples_hides_the_largest_part_least() -> None:
    fleet = make_fleet("ab", mode=TrainingMode.LOCAL, own={"a": 80, "b": 40}, clip=CLIP, noise=2.0, epochs=1)
    fleet.run()
    expected, rounds = PrivacyAccountant(), {}
    for one in fleet.updates:
        rounds.setdefault(one.round, []).append(one.samples)
    for samples in rounds.values():
        expected.spend(2.0 * math.hypot(*samples) / max(samples), 2.0)
    assert fleet.server.privacy is not None
    assert fleet.server.privacy.epsilon == pytest.approx(expected.epsilon)


@needs("dp_accounting")
def test_a_restarted_run_goes_on_with_what_was_spent_and_counts_the_round_under_way() -> None:
    fleet = make_fleet(clip=CLIP, noise=4.0, checkpoint_s=0.0)
    fleet.until_round(3)
    checkpoint = fleet.checkpoints[-1]
    again = TrainingServer(fleet.settings, fleet.server.weights.copy(), 0.0)
    again.restore(checkpoint)
    expected = PrivacyAccountant()
    expected.load_state(checkpoint.privacy)
    expected.spend(4.0, 4.0)
    assert again.privacy is not None and again.privacy.describe() == expected.describe()
    assert checkpoint.privacy["rounds"] == checkpoint.round > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"noise": 1.0}, "noise without a clip hides nothing; set --clip"),
        ({"clip": 1e13}, r"clip 1e\+13 and noise 0 a device, expected at most 1e\+12 and 1e\+06"),
        ({"clip": 1.0, "noise": 1e7}, r"clip 1 and noise 1e\+07 a device"),
        ({"clip": 1.0, "compress": "topk:0.1"}, "--clip with --compress topk:0.1: what was not sent is sent later"),
    ],
)
def test_promises_that_cannot_be_kept(options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_privacy(msgspec.structs.replace(make_job((10,)), **options))


def test_without_a_clip_updates_stay_as_they_are() -> None:
    vector = np.ones(SIZE, np.float32)
    job = make_fleet("a").settings.job
    assert protection_of(job, np.random.default_rng(0))(vector, 3) is vector
