"""Use an installed har_edge as its users do: outside the tree, with the commands of its environment.

    ENVIRONMENT/bin/python .ci/installed.py --tree . [--every-extra] [--modules-only]

imports every module, asks every command for its help, runs the demo, slices a model and runs its stages, and deploys
with nodes and a coordinator, which status and doctor must find in order. Prints what it did and how long that took;
ends with 1 at the first thing that is not as it should be. Needs nothing but har_edge.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import har_edge
from har_edge import extras
from har_edge.cli.main import build_parser
from har_edge.config.catalog import load_catalog
from har_edge.mqtt.broker.launcher import find_mosquitto, free_port
from har_edge.resources import find_folder

PACKAGE = Path(har_edge.__file__).resolve().parent
PROGRAM = Path(sys.executable).parent / "har-edge"
TIMEOUT_S = 120.0
# What may be missing without extras, beside what the table of extras names: keras comes with TensorFlow.
OPTIONAL = {*extras.LIBRARIES, "keras"}
# Without a wheel for this Python: har_edge then takes paho.
if sys.version_info < (3, 11):
    OPTIONAL.add("mqtt5")


class Wrong(Exception):
    """What is installed does not do what it should."""


def check(good: object, text: str) -> None:
    """Raise Wrong unless something holds."""
    if not good:
        raise Wrong(text)


def modules_below(package: Path) -> list[str]:
    """Return the names of all modules of a package folder, found as files: an import finds no folder by itself."""
    paths = (path.relative_to(package.parent).with_suffix("") for path in package.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def import_modules(tree: Path, every_extra: bool) -> str:
    """Import every module that the tree has; return how many that were."""
    check(tree.resolve() / "har_edge" != PACKAGE, f"har_edge is imported from the tree: {PACKAGE}")
    held, expected = modules_below(PACKAGE), modules_below(tree.resolve() / "har_edge")
    check(held == expected, f"modules that are not in both tree and package: {sorted({*held} ^ {*expected})}")
    without = {}
    for name in held:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            check(missing in OPTIONAL and not every_extra, f"{name} cannot be imported: {error}")
            without[name] = missing
    names = f", {len(without)} of them not for want of {', '.join(sorted({*without.values()}))}" if without else ""
    return f"{len(held)} modules, {len(held) - len(without)} imported{names}"


def check_data() -> str:
    """Find the files that travel along, from a folder that holds none of them; return how many."""
    for name in ("mosquitto.conf", "secure.conf"):
        check((find_folder("brokers") / name).is_file(), f"{name} is not in the package")
    models = find_folder("models")
    files = {entry.file for entry in load_catalog(models).models}
    check(files and all((models / name).is_file() for name in files), "models of the catalog are missing")
    check((PACKAGE / "py.typed").is_file() and PACKAGE in models.parents, "data are not those of the package")
    return f"{sum(path.is_file() and path.suffix not in ('.py', '.pyc') for path in PACKAGE.rglob('*'))} data files"


def command_paths() -> Iterator[list[str]]:
    """Yield every command and subcommand, as its arguments."""
    waiting: list[tuple[list[str], argparse.ArgumentParser]] = [([], build_parser())]
    while waiting:
        path, parser = waiting.pop()
        yield path
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += [([*path, name], command) for name, command in action.choices.items()]


@dataclass
class Runner:
    """Runs commands in a folder without any files of the tree, and counts them."""

    folder: Path
    count: int = 0
    running: list[tuple[subprocess.Popen[str], Path]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Return an environment without settings of har_edge, caches of its own, and Python's own path."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HAR_EDGE_", "PYTHONPATH"))}
        return kept | {"XDG_CACHE_HOME": str(self.folder / "cache"), "COLUMNS": "100"}

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command of har-edge to its end; return what it printed."""
        self.count += 1
        ended = subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        said = f"{' '.join(arguments)}: exit code {ended.returncode}, expected {code}\n{ended.stdout}\n{ended.stderr}"
        check(ended.returncode == code, said)
        check("Traceback" not in ended.stderr, said)
        return ended.stdout

    def start(self, *arguments: str) -> Path:
        """Start a command of har-edge that goes on; return the file with what it says."""
        self.count += 1
        log = self.folder / f"{self.count}-{arguments[0]}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [PROGRAM, *arguments],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                text=True,
            )
        self.running.append((process, log))
        return log

    def stop(self) -> None:
        """End what goes on, the last first; each must end in order."""
        for process, log in reversed(self.running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            code = process.wait(TIMEOUT_S)
            said = log.read_text()
            # A sensor that was stopped before its recordings came to their end says so; others end as they should.
            expected = 128 + signal.SIGTERM if log.stem.endswith("-sensor") and " interrupted: " in said else 0
            in_order = code == expected and "Traceback" not in said
            check(in_order, f"{log.name}: exit code {code}, expected {expected}\n{said}")
        self.running.clear()

    def kill(self) -> None:
        """End everything at once."""
        for process, _ in self.running:
            process.kill()
            process.wait()


def await_text(log: Path, text: str) -> None:
    """Wait until a process has said something."""
    deadline = time.monotonic() + TIMEOUT_S
    while text not in log.read_text():
        check(time.monotonic() < deadline, f"{log.name} never said {text!r}:\n{log.read_text()}")
        time.sleep(0.05)


@contextlib.contextmanager
def broker(runner: Runner, *, embedded: bool) -> Iterator[list[str]]:
    """Run `har-edge broker`; yield the options that lead to it."""
    port = str(free_port("127.0.0.1"))
    kind = ["--embedded"] if embedded else ["--directory", str(runner.folder / "broker")]
    await_text(runner.start("broker", "--port", port, *kind), "listens on")
    yield ["--broker", f"mqtt://127.0.0.1:{port}"]
    runner.stop()


def watch(runner: Runner, *options: str) -> None:
    """Wait for some results."""
    lines = runner.run("watch", "--json", "--windows", "30", *options).splitlines()
    check(len(lines) == 30 and all("label" in json.loads(line) for line in lines), f"watch: {lines[:3]}")


def run_demo(runner: Runner) -> str:
    """Run the demo; every window must come out once."""
    runner.run("demo", "--windows", "40", "--speed", "max", "--json", "demo.json")
    figures = json.loads((runner.folder / "demo.json").read_text())
    came = (figures["windows_in"], figures["windows_out"], figures["lost"], figures["duplicated"])
    check(came == (80, 80, 0, 0), f"demo: windows in, out, lost, doubled are {came}")
    return f"demo: 80 of 80 windows, {figures['broker']}"


def run_slices(runner: Runner) -> str:
    """Cut a model into a folder, and run its stages, a sensor and a watcher from there, on the embedded broker."""
    runner.run("slice", "int8", "--out", "slices", "--stages", "2", "--check")
    with broker(runner, embedded=True) as options:
        for index in ("0", "1"):
            await_text(runner.start("stage", "--config", "slices", "--index", index, *options), "connected")
        runner.start("sensor", "--config", "slices", "--subjects", "7,8", "--speed", "20", *options)
        watch(runner, "--config", "slices", *options)
    return "slices: two stages, a sensor and a watcher, embedded broker"


def run_deployment(runner: Runner) -> str:
    """Start nodes, coordinator and sensor; status and doctor must find all in order."""
    embedded = find_mosquitto() is None
    with broker(runner, embedded=embedded) as options:
        for name in ("one", "two"):
            await_text(runner.start("node", "--name", name, "--cache", name, *options), "connected")
        runner.start("coordinator", "--model", "int8", "--stages", "2", *options)
        sensor = ["--subjects", "7,8", "--speed", "20", "--cache", "sensor"]
        runner.start("sensor", "--pipeline", "har", *sensor, *options)
        watch(runner, "--pipeline", "har", *options)
        for command in ("status", "doctor"):  # their exit code says whether all is well
            runner.run(command, *options)
    name = "embedded broker" if embedded else "Mosquitto"
    return f"deployment: status and doctor find two nodes, a coordinator and a sensor in order, {name}"


def main() -> int:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, required=True, help="where the source is, to compare with")
    parser.add_argument("--every-extra", action="store_true", help="every module must be importable")
    parser.add_argument("--modules-only", action="store_true", help="run no command")
    args = parser.parse_args()
    started = time.monotonic()
    tree = args.tree.resolve()
    # Mosquitto, started by root, becomes a user of its own, who must get in.
    folder = Path(tempfile.mkdtemp(prefix="har-edge-installed-"))
    folder.chmod(0o755)
    os.chdir(folder)
    runner = Runner(folder)
    print(f"har_edge {har_edge.__version__}, Python {platform.python_version()}, {PACKAGE}", flush=True)
    try:
        print(import_modules(tree, args.every_extra), flush=True)
        print(check_data(), flush=True)
        if not args.modules_only:
            for path in command_paths():
                check("usage: har-edge" in runner.run(*path, "--help"), f"{path}: no help")
            print(f"{runner.count} times --help", flush=True)
            for step in (run_demo, run_slices, run_deployment):
                print(step(runner), flush=True)
    except Wrong as wrong:
        print(f"wrong: {wrong}", file=sys.stderr)
        return 1
    finally:
        runner.kill()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{runner.count} commands run, {time.monotonic() - started:.1f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
