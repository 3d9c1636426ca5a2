"""Checking from the broker up: every check in order, and what to do about the first that fails."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from har_edge.errors import HarEdgeError
from har_edge.monitor.broker_checks import BrokerChecks, Finding, Verdict
from har_edge.monitor.permissions import Role, can_see
from har_edge.protocol.text import printable
from har_edge.protocol.topics import Kind

# Makes a check of this name.
Step = Callable[[str], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """One check: how it is made, the checks whose success it needs, what must be read and published for it."""

    name: str
    step: Step
    needs: tuple[str, ...] = ("credentials",)
    reads: tuple[Kind, ...] = ()
    publishes: tuple[Kind, ...] = ()


@dataclass(slots=True)
class Diagnostics:
    """Makes checks in order, for a person who has these roles at the broker.

    `ended` is called after the last check; `announce` gets the name of each before it is made.
    """

    roles: Collection[Role]
    checks: tuple[Check, ...]
    ended: Callable[[], None] = lambda: None
    announce: Callable[[str], object] = lambda name: None
    _failed: set[str] = field(default_factory=set)

    def run(self) -> Iterator[Finding]:
        """Yield findings in order; a check is skipped where one that it needs failed."""
        try:
            for check in self.checks:
                self.announce(check.name)
                findings = list(self._run_check(check))
                if any(finding.verdict in (Verdict.FAIL, Verdict.SKIPPED) for finding in findings):
                    self._failed.add(check.name)
                yield from findings
        finally:
            self.ended()

    def _run_check(self, check: Check) -> Iterator[Finding]:
        """Make one check, if those that it needs passed and the person who asks may see what it is about."""
        missing = [need for need in check.needs if need in self._failed]
        if missing:
            yield Finding(check.name, Verdict.SKIPPED, f"needs: {', '.join(missing)}")
        elif not can_see(self.roles, check.reads, check.publishes):
            who = " and ".join(sorted(role.value for role in self.roles))
            yield Finding(check.name, Verdict.SKIPPED, f"not for the eyes of a {who}; ask as operator")
        else:
            try:
                yield from check.step(check.name)
            except HarEdgeError as error:
                yield Finding(check.name, Verdict.FAIL, printable(str(error), 500), "see the log of the broker")


def checks_of_broker(checks: BrokerChecks) -> tuple[Check, ...]:
    """Return the checks of the broker itself, which come before all others."""
    return (
        Check("broker", checks.broker, ()),
        Check("mqtt", checks.mqtt, ("broker",)),
        Check("credentials", checks.credentials, ("broker", "mqtt")),
        Check("settings", checks.settings),
        Check("permissions", checks.permissions),
        Check("behaviour", checks.behaviour),
    )
