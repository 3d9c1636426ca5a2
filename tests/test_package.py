"""What is built holds what the tree holds: the wheel every file of the package, the source distribution everything.

HAR_EDGE_TREE names the tree where the tests run outside of it (.ci/run).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

TREE = Path(os.environ.get("HAR_EDGE_TREE") or Path(__file__).parents[1])
# The folders that travel inside the package, and the package itself.
INSIDE = {"har_edge/": "har_edge/", "brokers/": "har_edge/brokers/", "models/": "har_edge/models/"}
# What a source distribution holds beside the files of the tree.
MADE = ("PKG-INFO", "setup.cfg", "har_edge.egg-info/")
_BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def tree_files() -> list[str]:
    """Return the files of the tree that git does not ignore; all, where it is no clone but an unpacked distribution."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False) if _is_clone() else None
    if listed is not None and listed.returncode == 0:
        return sorted(name for name in listed.stdout.splitlines() if (TREE / name).is_file())
    files = (path.relative_to(TREE).as_posix() for path in TREE.rglob("*") if path.is_file())
    return sorted(name for name in files if "__pycache__" not in name and not name.startswith((".venv/", *MADE)))


def _is_clone() -> bool:
    return (TREE / ".git").exists()


def build(kind: str, tree: Path, out: Path) -> Path:
    """Build an sdist or a wheel as pip does, with the setuptools of this environment."""
    command = [sys.executable, "-c", _BUILD, f"build_{kind}", str(out)]
    ended = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return out / ended.stdout.splitlines()[-1]


def wheel_files(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel that are not about itself."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, with what an older build left in it."""
    if not (TREE / "har_edge").is_dir():
        pytest.fail(f"no tree at {TREE}: name it with HAR_EDGE_TREE")
    if os.environ.get("CI") != "true":
        pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("tree")
    for name in tree_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TREE / name, copy / name)
    (copy / "build" / "lib" / "har_edge").mkdir(parents=True)
    (copy / "build" / "lib" / "har_edge" / "gone.py").write_text("raise SystemExit('an old module')\n")
    return copy


@pytest.fixture(scope="session")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", copy, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", copy, tmp_path_factory.mktemp("sdist"))


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    expected = {
        inside + name.removeprefix(folder): (TREE / name).read_bytes()
        for name in tree_files()
        for folder, inside in INSIDE.items()
        if name.startswith(folder)
    }
    held = wheel_files(wheel)
    assert sorted(held) == sorted(expected)
    assert [name for name in held if held[name] != expected[name]] == []
    # The tree itself is whole: a room of the last version, a module two folders down, data of each kind.
    assert {"har_edge/runtime/node/node.py", "har_edge/brokers/secure.conf", "har_edge/py.typed"} <= set(held)
    assert "har_edge/data/mhealth.toml" in held and "har_edge/models/manifest.json" in held


def test_the_source_distribution_holds_the_tree(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    assert sorted(name for name in names if not name.startswith(MADE)) == tree_files()


def test_the_source_distribution_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert wheel_files(build("wheel", folder, tmp_path)) == wheel_files(wheel)


def test_an_editable_install_is_found_before_a_clone_of_its_name(copy: Path, tmp_path: Path) -> None:
    wheel = build("editable", copy, tmp_path)
    ((name, content),) = wheel_files(wheel).items()
    assert name.endswith(".pth") and content.decode().strip() == str(copy)
    above = tmp_path / "above"
    (above / "har_edge").mkdir(parents=True)  # a clone as seen from the folder above it: no module of that name
    code = f"import site, sys; sys.path[:] = ['', *sys.path[1:]]; site.addsitedir({str(tmp_path / 'site')!r}); "
    code += "import har_edge; print(har_edge.__file__)"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_bytes(content)
    ended = subprocess.run([sys.executable, "-S", "-c", code], cwd=above, capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == str(copy / "har_edge" / "__init__.py"), ended.stderr
