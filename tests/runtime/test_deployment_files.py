"""Following a deployment: which plans count, which files are needed, and the folder that stages are built from."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.config.pipeline_config import PipelineConfig
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.errors import ConfigError, MessageError, NodeError
from har_edge.mqtt.bus import Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.deployment import VERSION, Deployment, Generation, Placement, encode_deployment
from har_edge.protocol.topics import Topics
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.build import build_stage, reducer_of
from har_edge.runtime.deployment_files import await_deployment, files_of, materialise
from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorSpec

DESCRIPTION = b"""
name = "plain"
rate_hz = 50.0
sources = [{name = "chest", columns = ["x", "y"]}]
"""
TASK = Task(StreamTask("plain.toml", 50.0, 4, 2), {"chest": SourceInput("c")}, "scores", ["still", "moving"], [0, 1])
TOPICS = Topics("har", "har")


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def spec(name: str) -> TensorSpec:
    return TensorSpec(name, (-1, -1), "float32")  # fits any number of labels


def deployment_of(*epochs: int, files: dict[str, str] | None = None, task: Task = TASK) -> Deployment:
    """Two slices whose contents are no models: `slice 0` and `slice 1`."""
    entries = tuple(
        SliceEntry(f"slice-{k}.tflite", sha256_of(b"slice %d" % k), k, k + 1, (spec(takes),), (spec(gives),))
        for k, (takes, gives) in enumerate([("c", "x"), ("x", "scores")])
    )
    manifest = SliceManifest(1, "model.tflite", "0" * 64, entries)
    places = (Placement(0, "pi-1"), Placement(1, "pi-2"))
    generations = tuple(Generation(epoch, manifest, places) for epoch in epochs)
    files = {"plain.toml": sha256_of(DESCRIPTION)} if files is None else files
    return Deployment(VERSION, 1, "author", 1.0, PipelineConfig(task), epochs[0], files, generations)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for content in (DESCRIPTION, b"slice 0", b"slice 1"):
        store.put(sha256_of(content), content)
    return store


def test_it_waits_for_a_plan_of_this_pipeline(caplog: pytest.LogCaptureFixture) -> None:
    broker = MemoryBroker()
    sender, bus = broker.connect(Session("coordinator")), broker.connect(Session("node"))
    good = deployment_of(7)
    other = msgspec.structs.replace(good, config=PipelineConfig(TASK, name="other"))
    plans = iter([None, b"", b"forged", encode_deployment(other), None, encode_deployment(good)])

    def publish() -> bool:
        if plan := next(plans):
            sender.publish(TOPICS.plan(), plan, retain=True)
            sender.poll(0)
        return False

    assert await_deployment(bus, TOPICS, publish) == good
    assert "what came is no plan" in caplog.text
    assert "a plan of pipeline har/other came; expected one of har/har" in caplog.text
    assert await_deployment(broker.connect(Session("late")), TOPICS, lambda: False) == good  # it is retained
    assert await_deployment(MemoryBroker().connect(Session("x")), TOPICS, lambda: True) is None


def test_files_of_sensors_and_nodes() -> None:
    deployment = deployment_of(7)
    task, slices = {sha256_of(DESCRIPTION)}, [sha256_of(b"slice 0"), sha256_of(b"slice 1")]
    assert files_of(deployment, None) == task
    assert files_of(deployment, deployment.current) == task | set(slices)
    assert files_of(deployment, deployment.current, [1]) == task | {slices[1]}


def test_files_lie_under_their_names(store: Store) -> None:
    deployment = deployment_of(7)
    pipeline = materialise(deployment, deployment.generations[0], store, [1])
    assert pipeline.config.epoch == 7 and pipeline.stream.name == "plain"
    assert {path.name: path.read_bytes() for path in pipeline.folder.iterdir()} == {
        "plain.toml": DESCRIPTION,
        "slice-1.tflite": b"slice 1",
    }
    again = materialise(msgspec.structs.replace(deployment, revision=2), deployment.generations[0], store, [0, 1])
    assert again.folder == pipeline.folder and len(list(again.folder.iterdir())) == 3
    assert pipeline.folder.parent.parent == store.folder and pipeline.folder.name.startswith("har-har-7-")


def test_what_a_deployment_names_is_kept_until_it_names_it_no_more(store: Store) -> None:
    named = sha256_of(DESCRIPTION), sha256_of(b"slice 0"), sha256_of(b"slice 1")
    store.limit_bytes = sum(len(store.path(name).read_bytes()) for name in named)
    deployment = deployment_of(7)
    materialise(deployment, deployment.generations[0], store, [0])
    with pytest.raises(NodeError, match="raise it with --cache-bytes"):
        store.put(sha256_of(b"x"), b"x")
    entries = deployment.generations[0].manifest.slices[:1]
    manifest = msgspec.structs.replace(deployment.generations[0].manifest, slices=entries)
    fewer = msgspec.structs.replace(deployment.generations[0], manifest=manifest)
    with pytest.raises(ConfigError, match="output 'scores' is made by no slice"):  # half a model, but it is followed
        materialise(msgspec.structs.replace(deployment, generations=(fewer,)), fewer, store, [0])
    store.put(sha256_of(b"x"), b"x")
    assert [store.has(name) for name in named] == [True, True, False]


def test_other_files_lie_elsewhere(store: Store) -> None:
    deployment = deployment_of(7)
    longer = DESCRIPTION + b"# another\n"
    store.put(sha256_of(longer), longer)
    other = deployment_of(7, files={"plain.toml": sha256_of(longer)})
    folders = [materialise(one, one.generations[0], store, []).folder for one in (deployment, other)]
    assert folders[0] != folders[1] and (folders[1] / "plain.toml").read_bytes() == longer


def test_where_there_are_no_links_files_are_copied(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links on this file system")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    deployment = deployment_of(7)
    for _ in range(2):
        pipeline = materialise(deployment, deployment.generations[0], store, [0])
        place = pipeline.folder / "slice-0.tflite"
        assert place.read_bytes() == b"slice 0" and not place.is_symlink()
    assert len(list(pipeline.folder.iterdir())) == 2


def test_a_name_that_points_elsewhere_is_put_right(store: Store, tmp_path: Path) -> None:
    deployment = deployment_of(7)
    place = materialise(deployment, deployment.generations[0], store, [0]).folder / "slice-0.tflite"
    place.unlink()
    place.symlink_to(tmp_path / "gone")
    materialise(deployment, deployment.generations[0], store, [0])
    assert place.read_bytes() == b"slice 0"


def test_what_the_store_lacks_is_said(tmp_path: Path) -> None:
    deployment = deployment_of(7)
    with pytest.raises(NodeError, match=f"{sha256_of(DESCRIPTION)} is not in .*; expected a file that was fetched"):
        materialise(deployment, deployment.generations[0], Store(tmp_path), [0])


@pytest.mark.parametrize("name", ["../../secret.toml", "/etc/passwd", "other.toml"])
def test_a_plan_names_no_other_file_of_the_device(store: Store, name: str) -> None:
    deployment = deployment_of(7, task=msgspec.structs.replace(TASK, stream=StreamTask(name, 50.0, 4, 2)))
    with pytest.raises(MessageError, match=f"the stream description '{name}', but carries no file of this name"):
        materialise(deployment, deployment.generations[0], store, [0])


def test_two_files_of_one_name_are_refused(store: Store) -> None:
    files = {"plain.toml": sha256_of(DESCRIPTION), "slice-0.tflite": sha256_of(b"slice 1")}
    deployment = deployment_of(7, files=files)
    with pytest.raises(MessageError, match=r"two files of the name 'slice-0\.tflite'; expected one of a name"):
        materialise(deployment, deployment.generations[0], store, [0])


def test_a_folder_that_cannot_be_written_is_named(store: Store) -> None:
    deployment = deployment_of(7)
    (store.folder / "pipelines").touch()
    with pytest.raises(NodeError, match=r"cannot lay the pipeline out in .*Not a directory; .* with --cache"):
        materialise(deployment, deployment.generations[0], store, [0])


def test_folders_of_epochs_that_are_over_go_after_a_day(store: Store) -> None:
    first, second = deployment_of(7), deployment_of(8, 9)
    old = materialise(first, first.generations[0], store, [0]).folder
    current = materialise(second, second.generations[0], store, [0]).folder
    assert old.exists()
    for folder in (old, current):
        os.utime(folder, (time.time() - 100_000,) * 2)
    materialise(second, second.generations[0], store, [0])
    assert not old.exists() and (current / "slice-0.tflite").exists()
    assert store.has(sha256_of(b"slice 0"))  # the folder had links, not the files


def test_stages_are_built_from_the_folder_as_from_any_other(cut, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    original, store = cut("bottleneck-split", 3), Store(tmp_path)
    contents = [(original.folder / entry.file).read_bytes() for entry in original.manifest.slices]
    contents += [(original.folder / name).read_bytes() for name in original.task.files]
    for content in contents:
        store.put(sha256_of(content), content)
    places = (Placement(0, "a"), Placement(1, "b"))
    generation = Generation(5, original.manifest, places)
    deployment = Deployment(VERSION, 1, "x", 1.0, original.config, 5, original.task.files, (generation,))
    assert len(contents) > 2  # the fitted encoders travel as well
    pipeline = materialise(deployment, generation, store, [0, 1])
    for index in (0, 1):
        ours, theirs = build_stage(pipeline, index), build_stage(original, index)
        assert ours.filters and pipeline.config.epoch == 5 and type(ours) is type(theirs)
    window = np.random.default_rng(0).normal(size=(pipeline.task.stream.length, pipeline.channels("chest")))
    codes = [reducer_of(one, "chest").encode(window.astype(np.float32)) for one in (pipeline, original)]
    assert np.array_equal(*codes)
