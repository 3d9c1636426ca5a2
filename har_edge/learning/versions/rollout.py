"""Offer a trained model to a pipeline that runs: rolled out where it is better, and rolled back where it is not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from har_edge.learning.versions.registry import ModelVersion, VersionComparison, VersionRegistry, VersionState, compare

# Rolls a model out by the coordinator; returns whether windows go through it at the end.
RollOut = Callable[[bytes], bool]
# Watches live windows for a while; returns what speaks against the new version, "" for nothing.
Trial = Callable[[], str]


@dataclass(frozen=True, slots=True)
class ScoredModel:
    """A model with its figures on `samples` held-out samples of `data`, and the training that made it."""

    content: bytes
    run: str
    figures: Mapping[str, float]
    samples: int
    data: str
    real: bool

    @property
    def sha256(self) -> str:
        """The hash of its file."""
        return hashlib.sha256(self.content).hexdigest()


def offer_version(
    registry: VersionRegistry,
    candidate: ScoredModel,
    deployed: ScoredModel | None,
    roll_out: RollOut,
    say: Callable[[str], None],
    *,
    margin: float = 0.0,
    trial: Trial | None = None,
) -> bool:
    """Roll a candidate out where it is better than the deployed model; return whether it is deployed at the end.

    Both were scored on the same held-out samples, and both are kept with their figures. Without a `deployed` one that
    can be scored, the candidate is rolled out. A `trial` that speaks against it brings the model before back.
    """
    found = VersionComparison(True, "nothing that is deployed could be compared with it")
    if deployed is not None:
        if deployed.sha256 == candidate.sha256:
            say(f"version {candidate.sha256[:12]} is deployed already")
            _keep(registry, candidate, VersionState.DEPLOYED, "")
            return True
        found = compare(candidate.figures, deployed.figures, margin)
        _keep(registry, deployed, VersionState.DEPLOYED, "")
    held_out = f"on {candidate.samples} held-out samples of {candidate.data}"
    if not found.better:
        one = _keep(registry, candidate, VersionState.REFUSED, found.text)
        say(f"version {one.sha256[:12]} is refused: {found.text} {held_out}; the deployed version stays")
        return False
    # Stored before it is rolled out: whatever happens then, the model and its figures are here.
    one = _keep(registry, candidate, VersionState.CANDIDATE, found.text)
    say(f"version {one.sha256[:12]} is rolled out: {found.text} {held_out}")
    if not roll_out(candidate.content):
        registry.change(one.sha256, VersionState.ROLLED_BACK, "the coordinator did not bring it to run")
        return False
    registry.change(one.sha256, VersionState.DEPLOYED, found.text)
    against = trial() if trial is not None else ""
    if not against:
        return True
    if deployed is None:
        say(f"version {one.sha256[:12]} stays, though {against}: there is no version to go back to")
        return True
    return not _roll_back(registry, one, deployed, against, roll_out, say)


def _roll_back(
    registry: VersionRegistry,
    one: ModelVersion,
    before: ScoredModel,
    against: str,
    roll_out: RollOut,
    say: Callable[[str], None],
) -> bool:
    """Bring the model before back; return whether windows go through it."""
    say(f"version {one.sha256[:12]} is rolled back: {against}; {before.sha256[:12]} takes its place again")
    if not roll_out(before.content):
        registry.change(one.sha256, VersionState.DEPLOYED, f"{against}, and the version before did not come to run")
        return False
    registry.change(before.sha256, VersionState.DEPLOYED, f"{one.sha256[:12]} was rolled back")
    registry.change(one.sha256, VersionState.ROLLED_BACK, against)
    return True


def _keep(registry: VersionRegistry, one: ScoredModel, state: VersionState, reason: str) -> ModelVersion:
    known = next((other for other in registry.versions if other.sha256 == one.sha256), None)
    if known is not None and not reason:
        reason = known.reason
    return registry.add(
        one.content,
        known.run if known is not None else one.run,
        one.figures,
        samples=one.samples,
        data=one.data,
        real=one.real,
        state=state,
        reason=reason,
    )
