"""Who computes: said in the pipeline file or to one device, and left out where nobody says it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from har_edge.config.catalog import find_model
from har_edge.config.pipeline import Pipeline, load_pipeline
from har_edge.errors import ConfigError
from har_edge.inference.interpreter import Delegate, Interpreter
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.deployment import encode_deployment
from har_edge.protocol.topics import Topics
from har_edge.runtime.agreement import disagreement, way_of
from har_edge.runtime.build import build_setup, delegated
from har_edge.runtime.slicing import prepare
from har_edge.runtime.stage.neighbours import card_of
from tests.protocol.reading import read_plan
from tests.runtime.deployed import deployment, generation


def cut(
    folder: Path, delegate: str | None = None, *, model: str = "float", cuts: tuple[int, ...] | None = None
) -> Pipeline:
    found = find_model(model)
    assert found.entry is not None
    return prepare(found.path, found.entry.task, folder, stages=2, cuts=cuts, delegate=delegate)


def test_a_pipeline_file_says_who_computes_on_every_device(tmp_path: Path) -> None:
    assert build_setup(cut(tmp_path / "a"), 1).delegate == "xnnpack"
    assert "delegate" not in (tmp_path / "a/pipeline.toml").read_text(encoding="utf-8")
    plain = cut(tmp_path / "b", "none")
    assert 'delegate = "none"' in (tmp_path / "b/pipeline.toml").read_text(encoding="utf-8")
    assert build_setup(plain, 1).delegate == "none"


def test_one_device_may_be_told_otherwise(tmp_path: Path) -> None:
    pipeline = cut(tmp_path)
    assert build_setup(delegated(pipeline, "none"), 0).delegate == "none"
    assert build_setup(delegated(delegated(pipeline, "none"), "xnnpack"), 0).delegate == "xnnpack"
    assert delegated(pipeline, None) is pipeline


def test_what_is_no_delegate_is_refused_with_the_two_that_are(tmp_path: Path) -> None:
    cut(tmp_path, "none")
    file = tmp_path / "pipeline.toml"
    file.write_text(file.read_text(encoding="utf-8").replace('delegate = "none"', 'delegate = "gpu"'), encoding="utf-8")
    with pytest.raises(ConfigError, match="gpu"):
        load_pipeline(tmp_path)


def test_older_nodes_read_plans_that_leave_it_to_the_runtime() -> None:
    plan = deployment(generation("a", "b", "c"))
    assert b"delegate" not in encode_deployment(plan)
    topics = Topics(plan.config.base, plan.config.name)
    told = msgspec.structs.replace(plan, config=msgspec.structs.replace(plan.config, delegate="none"))
    assert read_plan(Outgoing(topics.plan(), encode_deployment(told))).config.delegate == "none"


@pytest.mark.parametrize(("model", "last"), [("bottleneck", 6), ("int8", 16)])
def test_stages_of_one_device_agree_though_xnnpack_has_nothing_to_take_in_one(
    tmp_path: Path, model: str, last: int
) -> None:
    pipeline = cut(tmp_path, model=model, cuts=(last,))
    entry = pipeline.manifest.slices[1]
    assert Interpreter(tmp_path / pipeline.config.slices / entry.file).delegate is Delegate.NONE  # what it is about
    ways = {
        f"stage-{index}": way_of(card_of(pipeline, index, build_setup(pipeline, index).delegate)) for index in (0, 1)
    }
    assert [way.delegate for way in ways.values() if way] == ["xnnpack", "xnnpack"]
    assert disagreement(ways, {"float32"}) == disagreement(ways, {"int8"}) == ""


@pytest.mark.parametrize("told", [0, 1])
def test_a_stage_that_was_told_otherwise_disagrees(tmp_path: Path, told: int) -> None:
    pipeline = cut(tmp_path, model="bottleneck", cuts=(6,))
    setups = [
        build_setup(delegated(pipeline, "none") if index == told else pipeline, index).delegate for index in (0, 1)
    ]
    assert setups[told] == "none" != setups[1 - told]
    ways = {f"stage-{index}": way_of(card_of(pipeline, index, setup)) for index, setup in enumerate(setups)}
    assert f"stage-{told} (" in disagreement(ways, {"float32"})
    assert "delegate none" in disagreement(ways, {"float32"})


def test_no_stage_uses_xnnpack_where_the_pipeline_says_none(tmp_path: Path) -> None:
    pipeline = cut(tmp_path, "none", model="bottleneck", cuts=(6,))
    assert [build_setup(pipeline, index).delegate for index in (0, 1)] == ["none", "none"]
