"""The output of `har-edge profile`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
from rich.table import Table

from har_edge.cli.console import first_fit, make_console, say
from har_edge.cli.reports.bars import bar
from har_edge.planner.profile import Profile
from har_edge.units import duration, size, speed

_BARS = (24, 12, 6, 0)  # from the widest terminal to the narrowest


def print_profile(profile: Profile, remarks: Sequence[str], path: Path, *, as_json: bool) -> None:
    """Print a profile and its path."""
    if as_json:
        print(msgspec.json.encode(profile).decode())
        return
    console = make_console()
    say(f"{profile.model} on {profile.device} ({profile.machine}), threads: {profile.threads}{_computed(profile)}")
    console.print(first_fit(console, [partial(_segments, profile, width) for width in _BARS]))
    for line in [*_lines(profile), *(f"note: {remark}" for remark in remarks), f"kept in {path}"]:
        say(line)


def _computed(profile: Profile) -> str:
    return "" if profile.computed_by == "xnnpack" else f", delegate {profile.computed_by}"


def _segments(profile: Profile, width: int) -> Table:
    """Return a row for each segment, with bars up to `width`; only the kinds of operators break into lines."""
    table = Table(box=None, pad_edge=False)
    for name, justify in (("operators", "left"), ("what", "left"), ("operations", "right"), ("time", "right")):
        table.add_column(name, justify=justify, no_wrap=name != "what", overflow="fold")  # type: ignore[arg-type]
    table.add_column("", no_wrap=True)
    longest = max(segment.seconds for segment in profile.segments)
    for segment in profile.segments:
        kinds = ", ".join(f"{work.kind}{f' x{work.operators}' if work.operators > 1 else ''}" for work in segment.work)
        seconds = f"{'' if segment.measured else '~'}{duration(segment.seconds)}"
        operations = f"{sum(work.operations for work in segment.work):,}"
        table.add_row(
            f"[{segment.start}, {segment.stop})".replace("[", r"\["),
            kinds,
            operations,
            seconds,
            bar(segment.seconds, longest, width),
        )
    return table


def _lines(profile: Profile) -> list[str]:
    """Return the lines about everything beside the segments."""
    lines = []
    if profile.whole_s is not None:
        lines.append(
            f"whole model {duration(profile.whole_s)}; each run costs {duration(profile.overhead_s)} by itself"
        )
    if profile.fit is not None:
        count = sum(not segment.measured for segment in profile.segments)
        lines.append(
            f"{count} of {len(profile.segments)} times are estimates (~), by least squares on {profile.fit.samples} "
            f"measured segments; on segments left out of it the median error is {profile.fit.error:.0%}"
        )
    if profile.memory is not None:
        memory = profile.memory
        lines.append(
            f"memory {size(memory.base_bytes)} with a small slice, {size(memory.growth_bytes)} more with the "
            f"whole model ({size(memory.tensor_bytes)} of tensors), peak {size(memory.peak_bytes)}"
        )
    if profile.packings is not msgspec.UNSET and profile.packings:
        figures = ", ".join(
            f"{one.packing} {one.ratio:.2f} ({one.seconds_per_byte * 1e9:.1f} ns)" for one in profile.packings
        )
        lines.append(
            f"activations travel in so many times fewer bytes, for processor time a byte at both ends: {figures}; made "
            f"from {profile.packings[0].data}"
        )
    if profile.message is not None:
        message = profile.message
        lines.append(
            f"message {duration(message.seconds)} of processor time to send or receive, and "
            f"{message.seconds_per_byte * 1e9:.2f} ns a byte ({message.broker})"
        )
    if profile.link is not None:
        link = profile.link
        lines.append(f"link {duration(link.round_trip_s)} there and back, {speed(link.bytes_per_s)}")
    return lines
