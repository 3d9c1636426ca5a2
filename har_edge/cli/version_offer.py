"""Offer a trained model to the pipeline that runs: compare it with the deployed one, roll it out, roll it back."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.cli.console import say
from har_edge.errors import HarEdgeError

if TYPE_CHECKING:
    from har_edge.cli.training_inputs import TrainingInputs
    from har_edge.learning.data.datasets import Dataset
    from har_edge.learning.server.held_out import HeldOutSamples
    from har_edge.learning.versions.live_answers import LiveCount
    from har_edge.learning.versions.registry import VersionRegistry
    from har_edge.learning.versions.rollout import ScoredModel
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.stop import Stop

# How long a trial waits for live windows with a known truth.
TRIAL_S = 300.0
_POLL_S = 0.2
# Gives the figures of a model file on the held-out samples.
Score = Callable[[bytes], Mapping[str, float]]


class LiveWatch:
    """Counts live answers by generation, in a thread with a connection of its own."""

    def __init__(self, args: argparse.Namespace, topics: Topics) -> None:
        from har_edge.learning.versions.live_answers import LiveAnswers
        from har_edge.mqtt.bus import Session

        self._answers, self._topics, self._ended = LiveAnswers(), topics, threading.Event()
        self._bus = options.reach(args, Session(f"trial-{secrets.token_hex(8)}", clean_start=True, receive_max=4096))
        self._bus.subscribe([topics.result("+")])
        self._thread = threading.Thread(target=self._run, name="live-watch", daemon=True)
        self._thread.start()

    def of(self, epoch: int) -> LiveCount:
        """Return the count of a generation."""
        return self._answers.of(epoch)

    def close(self) -> None:
        """End the thread and the connection."""
        self._ended.set()
        self._thread.join()
        self._bus.close(forget=True)

    def _run(self) -> None:
        from har_edge.protocol.events import decode

        while not self._ended.is_set():
            for delivery in self._bus.poll(_POLL_S):
                self._bus.acknowledge(delivery)
                self._answers.take(decode(delivery, self._topics))


def offer_to_pipeline(
    args: argparse.Namespace,
    topics: Topics,
    candidate: ScoredModel,
    score: Score,
    data: Dataset | None,
    stop: Stop,
    *,
    files: Iterable[Path] = (),
    live: LiveWatch | None = None,
) -> bool:
    """Compare a model with the deployed one on the same held-out samples, and roll it out where it is better.

    The deployed one is looked for among the versions in --out and in `files`. Returns whether the candidate is deployed
    at the end. With `live`, live windows with a known truth decide afterwards whether it stays.
    """
    from har_edge.cli.deploy_trained import LOOK_S, PipelineView, deploy
    from har_edge.learning.versions.registry import VersionRegistry
    from har_edge.learning.versions.rollout import offer_version
    from har_edge.tflite.model import read_model

    def look() -> tuple[str, int]:
        view = PipelineView(args, topics)
        try:
            seen = view.look(LOOK_S, lambda one: one.plan is not None)
        finally:
            view.close()
        return seen.model_sha256, 0 if seen.plan is None else seen.plan.epoch

    def roll_out(content: bytes) -> bool:
        if live is not None and content is candidate.content:
            _await_baseline(live, epoch, args, stop)
        return deploy(args, topics, candidate.run, content, read_model(content), data, stop)

    registry = VersionRegistry(args.out)
    sha256, epoch = look()
    deployed = _find_deployed(registry, sha256, candidate, score, files)
    trial = None if live is None else lambda: _try_live(live, epoch, look()[1], args, stop)
    return offer_version(registry, candidate, deployed, roll_out, say, margin=args.least_gain, trial=trial)


def offer_trained(
    args: argparse.Namespace,
    topics: Topics,
    run: str,
    content: bytes,
    inputs: TrainingInputs,
    held_out: HeldOutSamples,
    live: LiveWatch | None,
    stop: Stop,
) -> bool:
    """Offer the model of a training on devices; return whether it is deployed at the end."""
    from har_edge.learning.versions.rollout import ScoredModel

    test, classes = inputs.data.test, bool(inputs.trainable.classes)

    def score(one: bytes) -> Mapping[str, float]:
        accuracy, loss = held_out.score_file(one)
        return {"accuracy": accuracy, "loss": loss} if classes else {"loss": loss}

    made = ScoredModel(content, run, score(content), len(test), test.name, test.real)
    files = [] if inputs.found is None else [inputs.found.path]
    return offer_to_pipeline(args, topics, made, score, inputs.data.train, stop, files=files, live=live)


def _find_deployed(
    registry: VersionRegistry, sha256: str, candidate: ScoredModel, score: Score, files: Iterable[Path]
) -> ScoredModel | None:
    """Return the deployed model with its figures; None, which is said, where it is not here or cannot be scored."""
    from dataclasses import replace

    if not sha256:
        return None
    content = _content_of(registry, sha256, files)
    if content is None:
        say(f"the deployed model ({sha256[:12]}) is not here, so nothing is compared with it")
        return None
    try:
        figures = candidate.figures if sha256 == candidate.sha256 else score(content)
    except HarEdgeError as error:
        say(f"the deployed model ({sha256[:12]}) cannot be scored, so nothing is compared with it: {error}")
        return None
    return replace(candidate, content=content, run="deployed", figures=figures)


def _content_of(registry: VersionRegistry, sha256: str, files: Iterable[Path]) -> bytes | None:
    from har_edge.files import MAX_MODEL_BYTES, read_regular

    if any(one.sha256 == sha256 for one in registry.versions):
        try:
            return registry.content(sha256)
        except HarEdgeError as error:
            say(str(error))
    for path in files:
        if path.is_file():
            content = read_regular(path, MAX_MODEL_BYTES)
            if hashlib.sha256(content).hexdigest() == sha256:
                return content
    return None


def _await_baseline(live: LiveWatch, epoch: int, args: argparse.Namespace, stop: Stop) -> None:
    """Wait until enough live windows of the deployed generation are known, to compare others with; at most TRIAL_S."""
    until = time.monotonic() + TRIAL_S
    came = live.of(epoch)
    while (
        time.monotonic() < until and not stop.asked and len(came.right) < args.trial and not _has_no_truth(came, args)
    ):
        time.sleep(_POLL_S)
        came = live.of(epoch)
    if len(came.right) < args.trial and len(came.alarms) < args.trial:
        say(
            f"trial: {len(came.right)} live windows of the deployed version with a known truth came ({came.others} "
            f"others), fewer than {args.trial}: live answers cannot decide"
        )


def _has_no_truth(came: LiveCount, args: argparse.Namespace) -> bool:
    """Return whether windows come, and the truth of none is known, as of pictures."""
    return not came.right and came.others >= args.trial


def _both_shares(counted: LiveCount, before: LiveCount) -> str:
    """Return the live answers of a new version and of the one before in words."""
    if not counted.right:
        said = f"{before.alarm_share:.1%} of {len(before.alarms)}" if before.alarms else "none"
        return f"{counted.alarm_share:.1%} of {len(counted.alarms)} live pictures are called anomalous, before: {said}"
    said = f"{before.accuracy:.4f} of {len(before.right)}" if before.right else "none with a known truth"
    return f"live accuracy {counted.accuracy:.4f} of {len(counted.right)} windows, before: {said}"


def _try_live(live: LiveWatch, older: int, newer: int, args: argparse.Namespace, stop: Stop) -> str:
    """Return what live windows say against the new generation, "" for nothing; wait until enough came."""
    from har_edge.learning.versions.live_answers import judge_live

    say(f"trial: {args.trial} live windows decide whether it stays, by their truth or, of pictures, by alarms")
    until = time.monotonic() + TRIAL_S
    while time.monotonic() < until and not stop.asked:
        found = judge_live(live.of(older), live.of(newer), args.trial)
        counted, before = live.of(newer), live.of(older)
        if found is None and _has_no_truth(counted, args):
            break
        if found is not None:
            if not found:
                say(f"trial: {_both_shares(counted, before)}")
            return found
        time.sleep(_POLL_S)
    came = live.of(newer)
    say(
        f"trial: {len(came.right)} live windows with a known truth came ({came.others} others), fewer than "
        f"{args.trial}: the figures on held-out samples alone decide"
    )
    return ""
