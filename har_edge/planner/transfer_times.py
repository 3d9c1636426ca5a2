"""The seconds that a block's steps and messages take of each processor and link, ready to be added to a timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Plain tuples, since the search makes and reads hundreds of thousands of them.
# One taker of a message: its processor and its link, by index; the seconds that the message takes of the broker's
# outward link and of that link; those spent on the way; those of the processor.
TakerTimes = tuple[int, int, float, float, float, float]
# A message: the sender's link (-1: it is at the broker), the seconds of it, those spent on the way, and those of the
# broker's inward link; whether it goes from the sender's own broker to each taker, past the central one; the takers.
PieceTimes = tuple[int, float, float, float, bool, list[TakerTimes]]
# A processor and what it does: seconds, and the message that is ready after these, -1 for none.
RunTimes = tuple[int, list[tuple[float, int]]]


@dataclass(slots=True)
class TransferTimes:
    """The runs of a block's shards, and its messages in the order in which they travel."""

    runs: list[RunTimes]
    pieces: list[PieceTimes]

    def run(self, processors: list[float]) -> list[float]:
        """Let the processors run the steps and send; return when each message is sent."""
        ready = [0.0] * len(self.pieces)
        for processor, parts in self.runs:
            now = processors[processor]
            for seconds, index in parts:
                now += seconds
                if index >= 0:
                    ready[index] = now
            processors[processor] = now
        return ready

    def travel(
        self, processors: list[float], links: list[float], ready: Sequence[float], inward: int, outward: int
    ) -> None:
        """Move the messages over the links, in order, and let their takers take them in.

        This runs for each plan that a search tries, so it calls no functions.
        """
        arrivals = []
        for (up, up_s, latency_s, in_s, own, takers), sent in zip(self.pieces, ready, strict=True):
            if own:
                for processor, down, _, down_s, taker_s, seconds in takers:
                    begin = links[up]
                    begin = sent if sent > begin else begin
                    links[up] = begin + up_s
                    begin += latency_s
                    came = begin + up_s
                    free = links[down]
                    free = (begin if begin > free else free) + down_s
                    links[down] = free
                    arrivals.append((processor, (free if free > came else came) + taker_s, seconds))
                continue
            start = came = sent
            if up >= 0:
                free = links[up]
                start = free if free > start else start
                links[up] = start + up_s
                start += latency_s
                came = start + up_s
            free = links[inward]
            free = (start if start > free else free) + in_s
            links[inward] = free
            came = free if free > came else came
            for processor, down, out_s, down_s, taker_s, seconds in takers:
                begin = links[outward]
                begin = came if came > begin else begin
                out = begin + out_s
                links[outward] = out
                free = links[down]
                free = (begin if begin > free else free) + down_s
                links[down] = free
                arrivals.append((processor, (free if free > out else out) + taker_s, seconds))
        for processor, arrival, seconds in arrivals:
            now = processors[processor]
            processors[processor] = (arrival if arrival > now else now) + seconds
