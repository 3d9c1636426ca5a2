"""Made-up training profiles: seconds and bytes that a test can add up by hand."""

from __future__ import annotations

from collections.abc import Sequence

from har_edge.planner.profile import MessageCost
from har_edge.planner.training_profile import VERSION, SegmentTimes, TrainedSegment, TrainingProfile


def segment(
    number: int,
    forward_s: float = 1.0,
    backward_s: float = 2.0,
    *,
    elements: int = 0,
    entering: int = 0,
    kept: int = 0,
    shared: int = 0,
    workspace: int = 0,
    last: bool = False,
) -> TrainedSegment:
    """Return one operator whose seconds grow with the samples of a micro-batch."""
    pairs = [(forward_s * size, backward_s * size) for size in (1, 2)]
    times = tuple(
        SegmentTimes(0.0, forward + backward, forward + backward)
        if last
        else SegmentTimes(forward, backward, forward + backward)
        for forward, backward in pairs
    )
    gradient = 0 if number == 0 else entering
    return TrainedSegment(
        number, number + 1, "CONV_2D", elements, entering, gradient, kept, shared, times, (workspace, 2 * workspace)
    )


def profile(
    segments: Sequence[TrainedSegment],
    *,
    base: int = 0,
    update_s: float = 0.0,
    add_s: float = 0.0,
    message: MessageCost | None = None,
    whole: bool = False,
) -> TrainingProfile:
    """Return a profile for micro-batches of 1 and 2 samples."""
    totals = [sum(each.times[k].forward_s + each.times[k].backward_s for each in segments) for k in (0, 1)]
    return TrainingProfile(
        version=VERSION,
        device="test",
        machine="",
        model="made",
        model_sha256="0" * 64,
        threads=1,
        loss="cross-entropy",
        batches=(1, 2),
        segments=tuple(segments),
        whole_s=tuple(totals) if whole else (),
        add_s=add_s,
        update_s=update_s,
        base_bytes=base,
        message=message,
    )


def even(count: int, **options: int) -> list[TrainedSegment]:
    """Return equal segments of 1 s forward and 2 s back a sample."""
    return [segment(number, last=number == count - 1, **options) for number in range(count)]
