"""Stages that share operators, and send each other messages in any order, against the whole model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from har_edge.errors import CutError
from har_edge.files import write_atomic
from har_edge.runtime.slicing import lay_out
from har_edge.runtime.verify_split import check_split
from har_edge.tflite.manifest import FILE_NAME, encode_manifest, load_manifest
from har_edge.tflite.model import read_model
from har_edge.tflite.split.folder import write_split
from tests.tflite import models

# A last block that is whole gives one device the result.
SPLITS = {
    "rows with a halo": (models.skip(), "rows:0-2@2 rows:2-4@2 whole:4-5@2"),
    "uneven rows": (models.skip(), "rows:0-1=5,2,1 rows:1-2@3 rows:2-4@3,2,1 whole:4-5@3"),
    "rows, channels, one device": (models.skip(), "rows:0-3@2 output:3-4@2 whole:4-5"),
    "two groups": (models.skip(), "rows:0-2@2 / rows:2-4@2 whole:4-5"),
    "integers": (models.quantised(), "rows:0-1@3 output:1-2@3 whole:2-3@3"),
    "sums": (models.chain(), "output:0-1@3 input:1-2@3 output:2-3@3 whole:3-4@3"),
}


@pytest.mark.parametrize("case", SPLITS)
def test_stages_give_what_the_whole_model_gives_in_any_order_of_messages(case: str, tmp_path: Path) -> None:
    content, split = SPLITS[case]
    model = read_model(content)
    manifest = write_split(lay_out(model, split), tmp_path / "slices")
    checked = check_split(model, tmp_path / "slices", orders=8)
    assert checked.difference is None and checked.stages == len(manifest.slices)
    assert checked.error == 0.0 if case == "integers" else checked.error <= 1e-5


def test_a_shard_with_other_weights_is_found(tmp_path: Path) -> None:
    model, other = read_model(models.skip()), read_model(models.skip(seed=1))
    split = "rows:0-2@2 rows:2-4@2 whole:4-5@2"
    write_split(lay_out(model, split), tmp_path / "slices")
    write_split(lay_out(other, split), tmp_path / "other")
    manifest = load_manifest(tmp_path / "slices")
    entry = manifest.slices[1]
    wrong = (tmp_path / "other" / entry.steps[-1].file).read_bytes()
    write_atomic(tmp_path / "slices" / "wrong.tflite", wrong)
    step = msgspec.structs.replace(entry.steps[-1], file="wrong.tflite", sha256=hashlib.sha256(wrong).hexdigest())
    slices = (manifest.slices[0], msgspec.structs.replace(entry, steps=(*entry.steps[:-1], step)))
    write_atomic(tmp_path / "slices" / FILE_NAME, encode_manifest(msgspec.structs.replace(manifest, slices=slices)))
    checked = check_split(model, tmp_path / "slices")
    assert checked.difference is not None and "elements differ" in checked.difference


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    stages = [{"start": 0, "stop": 5}]
    plan.write_bytes(msgspec.json.encode({"model_sha256": "0" * 64, "stages": stages}))
    with pytest.raises(CutError, match="is a plan for the model with sha256 0000"):
        lay_out(read_model(models.skip()), plan)
    model = read_model(models.skip())
    plan.write_bytes(msgspec.json.encode({"model_sha256": model.sha256, "stages": stages}))
    assert len(lay_out(model, plan).manifest.slices) == 1
