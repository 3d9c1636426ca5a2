"""What pyproject.toml cannot say: which packages there are, and which runtime fits the interpreter that builds.

The packages are found, so that none can be forgotten. The folders beside the package travel inside it;
har_edge/resources.py finds them in either place.

32-bit Raspberry Pi OS on a 64-bit kernel: markers read aarch64 from the kernel, pip takes wheels of armv7l. A build in
such an interpreter (`pip install .`, `pip wheel .`) settles the markers for armv7l, and the wheel is tagged so.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, find_namespace_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

BESIDE = {"har_edge.brokers": "brokers", "har_edge.models": "models"}


class BuildAnew(build_py):
    """Start from an empty folder: else modules that are gone live on in what was built before, and are packed again."""

    def run(self) -> None:
        """Collect the files."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


def load_wheels() -> ModuleType:
    """Return har_edge.inference.wheels without importing the package, whose dependencies a build does not have."""
    path = Path(__file__).resolve().parent / "har_edge/inference/wheels.py"
    spec = importlib.util.spec_from_file_location("wheels", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be loaded; build from a whole copy of the source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Chosen(Distribution):
    """Requires what pip can install into the interpreter that builds."""

    machine: str | None = None

    def parse_config_files(self, *args: object, **options: object) -> None:
        """Read pyproject.toml, then settle its markers where the kernel's machine is not the interpreter's."""
        super().parse_config_files(*args, **options)
        wheels = load_wheels()
        host = wheels.read_platform()
        reason = wheels.refusal(host)
        if reason is not None and host.system == "Linux" and host.bits == 32:
            raise SystemExit(f"har-edge cannot run here. {reason}")
        machine = wheels.wheel_machine(host)
        if machine != platform.machine():
            self.machine = machine
            self.install_requires = wheels.resolve_requirements(list(self.install_requires), machine)
            self.metadata.install_requires = self.install_requires  # what a wheel's METADATA is written from


class TaggedWheel(bdist_wheel):
    """A wheel whose requirements were settled for one machine says so in its name."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return interpreter, ABI and platform."""
        machine = getattr(self.distribution, "machine", None)
        return super().get_tag() if machine is None else ("py3", "none", f"linux_{machine}")


if __name__ == "__main__":
    # Folders of data without any module are packages too, else their files would stay behind.
    found = find_namespace_packages(include=["har_edge", "har_edge.*"], exclude=["*.__pycache__"])
    setup(
        packages=[*found, *BESIDE],
        package_dir=BESIDE,
        distclass=Chosen,
        # By a line on sys.path: the default finder comes after it, so that in the folder above a clone named har_edge
        # `import har_edge` finds that folder, an empty namespace.
        options={"editable_wheel": {"mode": "compat"}},
        cmdclass={"build_py": BuildAnew, "bdist_wheel": TaggedWheel},
    )
