"""The brokers that the flows of a fixed folder go through, as its pipeline file gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from har_edge.config.wiring import Wiring, flow_level
from har_edge.errors import ConfigError

# The level of a topic that names a flow, and the address of a broker without credentials.
FLOW_LEVEL = re.compile(r"([0-9]{1,4})(-[1-9][0-9]{0,8})?")
_BROKER = re.compile(r"mqtts?://(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([1-9][0-9]{0,4})")


def is_broker_url(text: str) -> bool:
    """Return whether a text is the address of a broker as plans name it: scheme, host and port."""
    match = _BROKER.fullmatch(text)
    return match is not None and int(match[2]) < 65536


def broker_of(flows: Mapping[str, str], level: str) -> str:
    """Return the broker of a flow: its own, else that of its stage; empty where it goes through the central one."""
    return flows.get(level, flows.get(level.partition("-")[0], ""))


def check_flows(flows: Mapping[str, str], wirings: Sequence[Wiring], file: object) -> None:
    """Raise ConfigError for a flow that no stage has, and for a broker that has no such address."""
    known = {level for one in wirings for flow in one.flows for level in (flow_level(one.index, flow), str(one.index))}
    for level, url in flows.items():
        if level not in known:
            raise ConfigError(
                f"{file}: [flows] names {level!r}; expected STAGE or STAGE-FLOW of a stage that sends to others: "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        if not is_broker_url(url):
            raise ConfigError(
                f"{file}: flow {level} has the broker {url!r}; expected mqtt://HOST:PORT or mqtts://HOST:PORT"
            )
