"""Run `har-edge` of a checkout, and count the calls from one of its modules into another.

    python bench/tracer.py CHECKOUT FILE ARGUMENT...

bench/trace.py starts this. FILE gets a JSON array of [module, function, calls] at the end, and whenever a line comes on
standard input.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

OPTIMIZED = 0x1  # inspect.CO_OPTIMIZED: code of a function, and not of a module or class, which an import runs


class Tracer:
    """Counts the calls from one module of a package into another, by module and function."""

    def __init__(self, package: Path) -> None:
        self._root, self._prefix = len(str(package)) + 1, str(package) + os.sep
        self._local = threading.local()
        self._counts: list[dict[tuple[str, str], int]] = []
        self._modules: dict[str, str | None] = {}

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or not frame.f_code.co_flags & OPTIMIZED:
            return
        module = self._module(frame)
        if module is None:
            return
        caller = frame.f_back
        while caller is not None and (came_from := self._module(caller)) is None:
            caller = caller.f_back
        if caller is not None and (came_from == module or not caller.f_code.co_flags & OPTIMIZED):
            return
        try:
            counts = self._local.counts
        except AttributeError:  # each thread counts for itself
            counts = self._local.counts = {}
            self._counts.append(counts)
        key = (module, getattr(frame.f_code, "co_qualname", frame.f_code.co_name))  # the first since Python 3.11
        counts[key] = counts.get(key, 0) + 1

    def _module(self, frame: FrameType) -> str | None:
        name = frame.f_code.co_filename
        try:
            return self._modules[name]
        except KeyError:
            inside = name.startswith(self._prefix)
            module = name[self._root :].removesuffix(".py").replace(os.sep, ".") if inside else None
            self._modules[name] = module
            return module

    def write(self, path: str) -> None:
        """Write what was counted so far, whole or not at all."""
        total: Counter[tuple[str, str]] = Counter()
        for counts in list(self._counts):
            total.update(counts.copy())
        rows = [[*key, count] for key, count in sorted(total.items())]
        Path(path + ".part").write_text(json.dumps(rows))
        Path(path + ".part").rename(path)


def record(checkout: Path, path: str, argv: Sequence[str]) -> int:
    """Run the command of a checkout; write its calls to `path` at its end, and whenever a line comes on stdin."""
    sys.path[0] = str(checkout)  # and not this folder, whose trace.py hides the standard library's
    sys.argv = ["har-edge", *argv]
    run = entry_point(checkout)
    import har_edge

    package = Path(har_edge.__file__).resolve().parent
    if not package.is_relative_to(checkout):
        raise SystemExit(f"har_edge is in {package}; expected the one of {checkout}")
    tracer = Tracer(package)
    atexit.register(tracer.write, path)

    def listen() -> None:
        for _ in sys.stdin:
            tracer.write(path)

    threading.Thread(target=listen, daemon=True).start()
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        return run(list(argv))
    finally:
        sys.setprofile(None)


def entry_point(checkout: Path) -> Callable[[list[str]], int]:
    """Return the function that is `har-edge` in a checkout, by its pyproject.toml."""
    found = re.search(r'^har-edge = "([\w.]+):(\w+)"$', (checkout / "pyproject.toml").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{checkout}/pyproject.toml names no script har-edge; expected a checkout of har_edge")
    run: Callable[[list[str]], int] = getattr(importlib.import_module(found[1]), found[2])
    return run


if __name__ == "__main__":
    sys.exit(record(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
