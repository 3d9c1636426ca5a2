"""Find the packages, so that none can be forgotten; all else about the project is in pyproject.toml.

The folders beside the package travel inside it; har_edge/resources.py finds them in either place.
"""

from __future__ import annotations

import shutil

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

BESIDE = {"har_edge.brokers": "brokers", "har_edge.models": "models"}


class BuildAnew(build_py):
    """Start from an empty folder: else modules that are gone live on in what was built before, and are packed again."""

    def run(self) -> None:
        """Collect the files."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


if __name__ == "__main__":
    # Folders of data without any module are packages too, else their files would stay behind.
    found = find_namespace_packages(include=["har_edge", "har_edge.*"], exclude=["*.__pycache__"])
    setup(packages=[*found, *BESIDE], package_dir=BESIDE, cmdclass={"build_py": BuildAnew})
