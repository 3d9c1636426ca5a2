"""Every example works as a person runs it: as a process, in an empty folder, on a machine without recordings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tflite import models

FOLDER = Path(__file__).parents[2] / "examples"
# What each prints, as a pattern for all of it.
LABEL = r"[a-z (),-]+"
PRINTED = {
    "asyncio_results": rf"(window \d: {LABEL}\n){{3}}",
    "custom_reducer": r"\d+ synthetic windows.*\nnone +23000 bytes a window, (\d+) of \1 the same\n"
    r"(.* bytes a window, \d+ of \d+ the same\n){3}",
    "custom_sensor": rf"3 windows of chest, ankle, arm were sent\n(window \d: {LABEL} \(0\.\d\d\)\n){{3}}",
    "local_cluster": rf"(subject7 \d {LABEL}\n){{10}}",
    "picture": r"(picture \d: ((cat|dog|bird) -?\d+\.\d\d(, )?){3}\n){3}",
    "split_and_verify": r"(before operator .* bytes cross\n){16}(slice-\d\.tflite: .*\n){2}"
    r"equal to the whole model, bit for bit; written to slices\n",
    "unequal_devices": r"(throughput|latency): \d+ windows a second, .*\n(    operators .*\n)+"
    r"(throughput|latency): \d+ windows a second, .*\n(    operators .*\n)+",
    "watch_results": rf"subject7 {LABEL} \d+.*\nsubject8 {LABEL} \d+.*\n",
}


def test_every_example_is_here() -> None:
    assert sorted(PRINTED) == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", sorted(PRINTED))
@pytest.mark.slow
def test_an_example_does_what_it_says(name: str, tmp_path: Path) -> None:
    options = []
    if name == "picture":
        (tmp_path / "model.tflite").write_bytes(models.pictures())
        (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
        options = ["model.tflite", "labels.txt"]
    elif name == "split_and_verify":
        options = ["slices"]
    kept = {key: value for key, value in os.environ.items() if key != "HAR_EDGE_DATA"}
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *options],
        cwd=tmp_path,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(PRINTED[name], done.stdout), done.stdout
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith('"""') and f"python examples/{name}.py" in text
