"""The plan that a coordinator keeps: its numbers, which of two counts, and when it is published (again)."""

from __future__ import annotations

import hashlib

import msgspec

from har_edge.errors import MessageError
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.deployment import MAX_REVISION, Deployment, encode_deployment
from har_edge.protocol.events import PlanEvent, Unreadable
from har_edge.protocol.status import Heartbeat
from har_edge.protocol.topics import Topics

# Numbers of others count up to here: ours go on from them, and must not come to what nobody reads.
_MAX_HEARD = MAX_REVISION // 2
# How many of the plans that were published last are known again where a node refuses one.
_PUBLISHED = 16


class PlanStore:
    """The plan by one author; `deployment` is None until it was opened. `dirty`: it is to be published.

    `found` is the newest plan of others that came before that, `successor` a younger author who has taken over since.
    `epoch` is the highest one heard of.
    """

    def __init__(self, topics: Topics, author: str, started: float, epoch: int) -> None:
        self.deployment: Deployment | None = None
        self.found: Deployment | None = None
        self.successor = ""
        self.epoch = epoch
        self._topics, self._author, self._started = topics, author, started
        self.dirty = False
        self.published: tuple[str, ...] = ()  # the SHA-256 of each
        self._said = False  # whether a plan of ours went out
        self._echoed = -1  # the last revision of ours that the broker had
        self._before = ""  # whose plan was adopted: an old broker may retain it again, by a clock that was ahead

    @property
    def deployed(self) -> Deployment:
        """The plan; AssertionError before it was opened."""
        assert self.deployment is not None
        return self.deployment

    @property
    def is_blank(self) -> bool:
        """Whether this is a plan of nothing that nobody has heard of."""
        return self.found is None and not self._said and self.deployment is not None and not self.deployment.generations

    def open(self, begun: Deployment) -> None:
        """Begin the plan; where one was found, go on with its revisions."""
        if self.found is None:
            self.deployment = begun
            return
        self._before = self.found.author
        self._put(begun, _heard(self.found))

    def change(self, after: Deployment) -> None:
        """Change the plan: a new revision, to be published."""
        self._put(after, self.deployed.revision)

    def next_epoch(self) -> int:
        """Return the number of a new generation."""
        self.epoch += 1
        return self.epoch

    def republish(self) -> None:
        """Publish the plan again: the broker may have lost it."""
        self.dirty = self.deployment is not None and not self.is_blank

    def flush(self) -> list[Outgoing]:
        """Return the plan where it is to be published."""
        if not self.dirty:
            return []
        self.dirty, self._said = False, True
        payload = encode_deployment(self.deployed)
        self.published = (*self.published, hashlib.sha256(payload).hexdigest())[-_PUBLISHED:]
        return [Outgoing(self._topics.plan(), payload, retain=True)]

    def take(self, event: PlanEvent | Unreadable) -> str:
        """Take a plan: our own, that of an earlier author, or that of a younger one; say what a person should read.

        Raises MessageError for one that nodes cannot read either.
        """
        if isinstance(event, Unreadable):
            if self.deployment is None or event.payload != encode_deployment(self.deployment):  # else it would go round
                self.republish()
            raise MessageError(event.reason)
        found = event.deployment
        if found is None:
            self.republish()
            return ""
        if found.author == self._author:
            if found.revision < self._echoed:  # it was refused at first, and now stands where a newer one stood
                self.dirty = True
            self._echoed = max(self._echoed, found.revision)
            return ""
        self.epoch = max([self.epoch, *(generation.epoch for generation in found.generations)])
        if self.deployment is None:
            self.found = found if self.found is None or found.replaces(self.found) else self.found
        elif (found.started, found.author) > (self._started, self._author) and found.author != self._before:
            self.successor = found.author
        elif self.is_blank:  # what is retained may be long in coming: there is something to go on with
            self.found, self.deployment = found, None
        else:
            self._put(self.deployment, max(_heard(found), self.deployment.revision))
            return f"a plan of an older coordinator ({found.author}) came; ours counts"
        return ""

    def continue_from(self, heartbeat: Heartbeat) -> bool:
        """Go on from the revision that a node follows, where that is a later one; return whether it was.

        If the broker has lost a plan whose author's clock was ahead, nodes refuse every plan that is not newer.
        """
        deployment = self.deployment
        if deployment is None or not deployment.revision < heartbeat.revision < _MAX_HEARD:
            return False
        self.deployment = msgspec.structs.replace(deployment, revision=heartbeat.revision + 1)
        self.epoch = max([self.epoch, *(one.epoch for one in heartbeat.stages if one.epoch < MAX_REVISION)])
        # Until there is a plan, what runs by the lost one is better than nothing.
        self.dirty = self.dirty or bool(deployment.generations)
        return True

    def _put(self, after: Deployment, revision: int) -> None:
        self.deployment = msgspec.structs.replace(after, revision=revision + 1)
        self.dirty = True


def _heard(found: Deployment) -> int:
    """Return the revision of another author's plan; 0 where only a forger can have come to it."""
    return found.revision if found.revision < _MAX_HEARD else 0
