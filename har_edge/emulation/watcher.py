"""Take a test bed down when its owner has died: `python -m har_edge.emulation.watcher BED`."""

from __future__ import annotations

import sys

from har_edge.emulation.emulation import FOLDER, await_owner, take_down

if __name__ == "__main__":
    await_owner(FOLDER / sys.argv[1])
    take_down(FOLDER / sys.argv[1])
