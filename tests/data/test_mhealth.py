"""The real recordings."""

import numpy as np
import pytest

from har_edge.data.description import load_description
from har_edge.data.files import read_recordings
from har_edge.data.summary import Share, summarize
from har_edge.data.windows import windows

pytestmark = pytest.mark.dataset


@pytest.fixture(scope="module")
def recordings(dataset):
    return read_recordings(load_description("mhealth"), dataset)


def test_every_subject_does_every_activity(recordings):
    assert [recording.stream for recording in recordings][:8] == [f"subject{number}" for number in range(1, 9)]
    for recording in recordings:
        assert set(np.unique(recording.labels).tolist()) == set(range(1, 13))
        assert recording.samples["chest"].shape == (len(recording), 5)


def test_known_values(recordings):
    first = recordings[7]
    np.testing.assert_allclose(first.samples["chest"][0, :3], [-9.149, -1.136, 3.4451], rtol=1e-6)
    np.testing.assert_allclose(first.samples["arm"][0], [-2, -9, 0, -0.78431, -0.20329, -0.32543, 0, -1, 0], rtol=1e-6)


def test_summary_and_windows_agree(recordings):
    description = load_description("mhealth")
    shares = summarize(recordings[0], description.labels)
    assert shares[3] == Share("subject1", 4, "walking", 3072, 1, 61.44)
    expected = sum((share.rows - 250) // 125 + 1 for share in shares)
    assert len(list(windows(recordings[0], 250, 125, within_activity=True))) == expected
