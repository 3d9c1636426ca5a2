"""Windows of real recordings."""

import numpy as np
import pytest

from har_edge.data.description import load_description
from har_edge.data.files import read_recordings
from har_edge.data.windows import windows


@pytest.fixture(scope="session")
def recorded_windows(dataset):
    """Return some windows of one person's right arm, every activity, float32 [n, 250, 9]."""
    recording = next(iter(read_recordings(load_description("mhealth"), dataset)))
    return np.stack([window.samples["arm"] for window in windows(recording, 250, 750, within_activity=True)])
