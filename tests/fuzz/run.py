"""Feed mutated messages to every decoder and state machine for a while.

    python -m tests.fuzz.run --seconds 600            another seed each time; `make fuzz` does this
    python -m tests.fuzz.run --seed 7 --count 10000   the same again

A message that makes a target raise is written to tests/fuzz/corpus, where the default tests feed it again from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.mutation import Mutator
from tests.fuzz.targets import TARGETS, Feed

CORPUS = Path(__file__).with_name("corpus")


def stored(target: str) -> Iterator[tuple[str, bytes]]:
    """Yield the messages of the corpus for a target, with their topics."""
    for path in sorted(CORPUS.glob(f"{target}-*.bin")):
        topic, _, payload = path.read_bytes().partition(b"\n")
        yield topic.decode(), payload


def store(target: str, topic: str, payload: bytes) -> Path:
    """Keep a message in the corpus."""
    path = CORPUS / f"{target}-{hashlib.sha256(payload).hexdigest()[:12]}.bin"
    path.write_bytes(topic.encode() + b"\n" + payload)
    return path


def mutations(target: str, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield damaged messages of a target without end; some keep their content and come to another topic."""
    mutate, seeds = Mutator(seed), TARGETS[target].seeds
    payloads = [payload for _, payload in seeds]
    while True:
        topic, payload = mutate.rng.choice(seeds)
        if mutate.rng.random() < 0.02:
            topic = mutate.rng.choice(seeds)[0]
        yield topic, payload if mutate.rng.random() < 0.15 else mutate(payload, payloads)


def fuzz(target: str, seed: int, *, count: int | None = None, seconds: float | None = None) -> tuple[int, list[str]]:
    """Feed a target so many messages, or for so long; return how many, and a traceback for each kind of surprise."""
    until = None if seconds is None else time.monotonic() + seconds
    feed: Feed | None = None
    surprises: dict[str, str] = {}
    number = 0
    for topic, payload in mutations(target, seed):
        if number == count or (until is not None and number % 100 == 0 and time.monotonic() >= until):
            break
        if feed is None or number % TARGETS[target].most == 0:
            feed = TARGETS[target].make()
        number += 1
        try:
            feed(topic, payload, number)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} at {where.filename}:{where.lineno}"
            if kind not in surprises:
                surprises[kind] = "".join(traceback.format_exception(error))[-4000:]
                store(target, topic, payload)
            feed = None
    return number, list(surprises.values())


def main() -> int:
    """Run all targets in turns; return 1 where one raised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, help="of all targets together")
    parser.add_argument("--count", type=int, help="messages of each target")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    each = None if args.count else (args.seconds or 60.0) / len(args.targets)
    total, failed = 0, 0
    for target in args.targets:
        began = time.monotonic()
        number, surprises = fuzz(target, args.seed, count=args.count, seconds=each)
        total, failed = total + number, failed + len(surprises)
        passed = time.monotonic() - began
        print(f"{target:<12} {number:>10} messages in {passed:.0f} s, {len(surprises)} unexpected", flush=True)
        for text in surprises:
            print(text, file=sys.stderr)
    print(f"{total} mutated messages with seed {args.seed}, {failed} kinds of unexpected exceptions")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
