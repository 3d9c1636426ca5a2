"""What a line of a device costs a sensor before it is reduced: parsing, the validator, windows.

    python bench/live.py [--lines 20000]

Lines of mHealth's 23 channels with time stamps, synthetic, one by one as from a serial device.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np

from har_edge.data.description import load_description
from har_edge.data.live import LiveStream, lay_out
from har_edge.data.synthetic import synthesize
from har_edge.data.windows import default_window


def main() -> None:
    """Print microseconds of processor time a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=20_000, metavar="N")
    count = parser.parse_args().lines
    described = load_description("mhealth")
    recording = synthesize(["subject1"], seconds_per_activity=count / 12 / described.rate_hz + 1)[0]
    table = np.concatenate(list(recording.samples.values()), axis=1)[:count].tolist()
    rate = described.rate_hz
    lines = ["\t".join([f"{row / rate:.3f}", *map(str, values)]).encode() + b"\n" for row, values in enumerate(table)]
    layout = lay_out(described, described, [source.name for source in described.sources], stamped=True)
    stream = LiveStream("bench", layout, rate, *default_window(rate))
    begun, windows = time.process_time(), 0
    for row, line in enumerate(lines):
        windows += len(stream.feed(line, row / rate))
    each_us = (time.process_time() - begun) / len(lines) * 1e6
    print(f"{each_us:.1f} us a line, {len(lines)} lines, {windows} windows; {platform.machine()}, one core")


if __name__ == "__main__":
    main()
