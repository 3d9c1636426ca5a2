"""Summarise recordings: rows, segments and seconds by stream and activity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from har_edge.data.recording import Recording
from har_edge.data.tabular import UNKNOWN_LABEL


@dataclass(frozen=True, slots=True)
class Share:
    """One activity of one stream; a segment is a run of rows of one activity without a gap. `label` -1 is unknown."""

    stream: str
    label: int
    activity: str
    rows: int
    segments: int
    seconds: float


def summarize(recording: Recording, labels: Sequence[str]) -> list[Share]:
    """Return a share for each activity that the recording holds, by label; `labels` names them."""
    fresh = np.zeros(len(recording), np.bool_)
    fresh[[start for start in recording.starts if start < len(recording)]] = True
    fresh[1:] |= recording.labels[1:] != recording.labels[:-1]
    shares = []
    for label in np.unique(recording.labels).tolist():
        rows = recording.labels == label
        name = "unknown" if label == UNKNOWN_LABEL else labels[label]
        count = int(rows.sum())
        shares.append(Share(recording.stream, label, name, count, int(fresh[rows].sum()), count / recording.rate_hz))
    return shares
