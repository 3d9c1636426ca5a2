"""The training profile of a model on one device: measured once, kept as JSON, read by the planner of split training."""

from __future__ import annotations

from pathlib import Path

import msgspec

from har_edge.errors import ConfigError
from har_edge.files import write_atomic
from har_edge.planner.profile import LinkCost, MessageCost, cache_folder

VERSION = 1


class SegmentTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of a segment for one micro-batch.

    `backward_s` is the time where the forward pass kept what it needs, `recompute_s` where it runs forward again. The
    last segment runs both passes at once, with the loss: all its time is in both of them, and `forward_s` is 0.
    """

    forward_s: float
    backward_s: float
    recompute_s: float


class TrainedSegment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Operators [start, stop) between two neighbouring places where a training can be cut.

    Attributes:
        layer: The operators by name, such as CONV_2D.
        elements: How many values its weights have.
        entering_bytes: All tensors that cross the place in front of it, for a sample.
        gradient_bytes: The gradients that go back there, for a sample.
        kept_bytes: Tensors that the forward pass keeps for the backward pass, for a sample.
        shared_bytes: The part of it that the segment in front keeps, too.
        times: For each micro-batch of the profile.
        workspace_bytes: Resident memory beside weights and what is kept, for each micro-batch of the profile.
    """

    start: int
    stop: int
    layer: str
    elements: int
    entering_bytes: int
    gradient_bytes: int
    kept_bytes: int
    shared_bytes: int
    times: tuple[SegmentTimes, ...]
    workspace_bytes: tuple[int, ...]

    @property
    def name(self) -> str:
        """The segment as people read it."""
        alone = self.stop - self.start == 1
        where = f"operator {self.start}" if alone else f"operators {self.start} to {self.stop}"
        return f"{where} ({self.layer})"


class TrainingProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All measurements of a training of one model on one device, by micro-batches of `batches` samples.

    Attributes:
        loss: The loss at the end.
        whole_s: Seconds of a step of the whole model in one graph, for each of `batches`; empty where it has not run.
        add_s: Seconds to add one value of a gradient to the sum.
        update_s: Seconds of the optimizer for one weight.
        base_bytes: Resident memory of a process without a stage; 0 where it was not measured.
    """

    version: int
    device: str
    machine: str
    model: str
    model_sha256: str
    threads: int
    loss: str
    batches: tuple[int, ...]
    segments: tuple[TrainedSegment, ...]
    whole_s: tuple[float, ...]
    add_s: float
    update_s: float
    base_bytes: int
    message: MessageCost | None = None
    link: LinkCost | None = None

    @property
    def bounds(self) -> tuple[int, ...]:
        """The operators at which segments begin, and the number of operators."""
        return (*(segment.start for segment in self.segments), self.segments[-1].stop)


def training_profile_path(device: str, model_sha256: str, threads: int) -> Path:
    """Return the path of the training profile of a model on a device."""
    return cache_folder() / "training" / f"{device}-{model_sha256[:16]}-{threads}.json"


def store_training_profile(profile: TrainingProfile, path: Path) -> None:
    """Write a training profile as readable JSON. Raises ConfigError when the file cannot be written."""
    try:
        write_atomic(path, msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write the profile {path}: {error.strerror}; give another file with --out") from None


def load_training_profile(path: Path, model_sha256: str | None = None) -> TrainingProfile:
    """Read a training profile; `model_sha256` is that of the model it must be of.

    Raises ConfigError when it is missing, malformed, of another version or of another model.
    """
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=TrainingProfile)
    except OSError as error:
        raise ConfigError(
            f"cannot read the training profile {path}: {error.strerror}; make it with 'har-edge profile MODEL --train'"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is no training profile: {error}; make it anew with 'har-edge profile MODEL --train'"
        ) from None
    if profile.version != VERSION:
        raise ConfigError(f"{path} has version {profile.version}, expected {VERSION}; make it anew")
    _check(profile, path)
    if model_sha256 not in (None, profile.model_sha256):
        raise ConfigError(f"{path} is the training profile of {profile.model}, another model; profile this one")
    return profile


def _check(profile: TrainingProfile, path: Path) -> None:
    """Raise ConfigError for figures that no measurement gives: negative, not finite, or with gaps between segments."""
    segments, count = profile.segments, len(profile.batches)
    ends = [0, *(segment.stop for segment in segments)]
    joined = all(segment.start == end < segment.stop for segment, end in zip(segments, ends, strict=False))
    full = all(len(one.times) == len(one.workspace_bytes) == count for one in segments)
    rising = all(low < high for low, high in zip((0, *profile.batches), profile.batches, strict=False))
    numbers: list[float] = [profile.add_s, profile.update_s, profile.base_bytes, *profile.whole_s]
    for one in segments:
        numbers += [one.elements, one.entering_bytes, one.gradient_bytes, one.kept_bytes, one.shared_bytes]
        numbers += one.workspace_bytes
        numbers += [value for times in one.times for value in (times.forward_s, times.backward_s, times.recompute_s)]
    numbers += [profile.message.seconds, profile.message.seconds_per_byte] if profile.message else []
    numbers += [profile.link.round_trip_s, profile.link.bytes_per_s or -1.0] if profile.link else []
    right = bool(segments) and bool(count) and joined and full and rising and len(profile.whole_s) in (0, count)
    if not right or not all(0 <= number < float("inf") for number in numbers):
        raise ConfigError(
            f"{path} is no training profile of a whole model: expected segments one after the other, with figures of 0 "
            "or above for each micro-batch; make it anew with 'har-edge profile MODEL --train'"
        )


def at_batch(batches: tuple[int, ...], values: tuple[float, ...], batch: int) -> float:
    """Return the value for a micro-batch on the line through the two measured ones nearest to it, never below 0.

    >>> at_batch((1, 4), (0.5, 0.8), 2), at_batch((1, 4), (0.5, 0.8), 7), at_batch((4,), (0.8,), 2)
    (0.6, 1.1, 0.4)
    """
    if len(batches) == 1:
        return values[0] * batch / batches[0]
    right = next((k for k, size in enumerate(batches) if size >= batch and k), len(batches) - 1)
    (low, high), (first, last) = batches[right - 1 : right + 1], values[right - 1 : right + 1]
    return max(0.0, first + (last - first) * (batch - low) / (high - low))
