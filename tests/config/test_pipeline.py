"""The pipeline file: read back as written, refused with its name and the reason."""

import hashlib
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from har_edge.config.pipeline import load_pipeline
from har_edge.config.pipeline_config import BrokerConfig, JoinConfig, MissingRule
from har_edge.config.pipeline_writer import write_pipeline
from har_edge.config.task import SourceInput, StateRule, StreamTask, Task, with_reducers
from har_edge.errors import ConfigError, ModelError
from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorSpec, load_manifest

TASK = Task(
    stream=StreamTask("mhealth", 50.0, 250, 125),
    inputs={"chest": SourceInput("c"), "arm": SourceInput("a", "q8:0.5:1")},
    output="scores",
    labels=["standing still", "walking"],
    label_ids=[1, 4],
)


def spec(name):
    return TensorSpec(name, (-1, -1), "float32")  # fits any number of labels


def entry(index, inputs, outputs):
    return SliceEntry(f"slice-{index}.tflite", "0" * 64, index, index + 1, tuple(map(spec, inputs)),
                      tuple(map(spec, outputs)))  # fmt: skip


SLICES = (entry(0, "c", "xz"), entry(1, "xa", "y"), entry(2, "yz", ["scores"]))


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path)


def make(folder: Path, slices=SLICES, task=TASK, **options) -> Path:
    manifest = SliceManifest(1, "model.tflite", "0" * 64, slices)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    write_pipeline(folder, task, **options)
    return folder


def changed(folder: Path, *pairs: tuple[str, str]) -> Path:
    file = folder / "pipeline.toml"
    text = file.read_text()
    for old, new in pairs:
        assert text.count(old) == 1, f"{old!r} in {text}"
        text = text.replace(old, new)
    file.write_text(text)
    return folder


def test_manifest_of_the_tests_is_one(folder):
    assert load_manifest(folder).slices == SLICES


def test_what_is_written_is_read_back(folder):
    broker = BrokerConfig(url="mqtts://host:8883", username="u", password_file="p.txt", client="paho", protocol="3.1.1")
    make(folder, name="site-7", broker=broker)
    pipeline = load_pipeline(folder / "pipeline.toml")
    assert pipeline.task == TASK and pipeline.folder == folder
    assert (pipeline.config.name, pipeline.config.broker, pipeline.config.join) == ("site-7", broker, JoinConfig())
    assert (pipeline.config.base, pipeline.config.slices) == ("har", ".")
    assert pipeline.channels("chest") == 5 and pipeline.channels("arm") == 9
    assert load_pipeline(folder).config == pipeline.config


PLAIN = """
name = "plain"
rate_hz = 50.0
sources = [{name = "chest", columns = ["x"]}, {name = "arm", columns = ["y"]}]
"""
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(labels=st.lists(text, min_size=1, max_size=4, unique=True), tensor=text, url=text)
def test_any_text_survives_the_file(tmp_path, labels, tensor, url):
    (tmp_path / "plain.toml").write_text(PLAIN)
    stream = StreamTask("plain.toml", 50.0, 250, 125)
    task = msgspec.structs.replace(TASK, stream=stream, labels=labels, label_ids=list(range(len(labels))), inputs={
        "chest": SourceInput("c" + tensor), "arm": SourceInput("a")})  # fmt: skip
    slices = (entry(0, ["c" + tensor], "xz"), *SLICES[1:])
    pipeline = load_pipeline(make(tmp_path, slices, task, broker=BrokerConfig(url=url)))
    assert pipeline.task == task and pipeline.config.broker.url == url


def test_the_epoch_is_that_of_the_slices_unless_it_is_set(tmp_path):
    def epoch(model: str, *starts: int) -> int:
        ends = (*starts[1:], starts[-1] + 1)
        slices = tuple(
            msgspec.structs.replace(piece, start=start, stop=stop)
            for piece, start, stop in zip(SLICES, starts, ends, strict=True)
        )
        (make(tmp_path) / "manifest.json").write_bytes(msgspec.json.encode(SliceManifest(1, "m", model, slices)))
        return load_pipeline(tmp_path).config.epoch

    assert epoch("a", 0, 1, 2) == epoch("a", 0, 1, 2) == int(hashlib.sha256(b"a,0,1,2").hexdigest()[:8], 16) >> 1
    assert len({epoch("a", 0, 1, 2), epoch("b", 0, 1, 2), epoch("a", 0, 1, 3)}) == 3
    assert load_pipeline(changed(make(tmp_path), (SLICES_KEY, f"epoch = 7\n{SLICES_KEY}"))).config.epoch == 7


def test_the_rule_for_state_is_written_and_read(tmp_path):
    assert load_pipeline(make(tmp_path)).task.state is StateRule.REFUSE
    task = msgspec.structs.replace(TASK, state=StateRule.RESET)
    assert load_pipeline(make(tmp_path, task=task)).task == task


def test_grouping_and_fitted_files_are_written_and_read(tmp_path):
    stream = StreamTask("mhealth", 50.0, 250, 125, grouping="type")
    files = {"pca-acc.npz": "a" * 64, "scale.v2.npz": "0" * 64}
    inputs = {"acc": SourceInput("c", "pca:pca-acc.npz", files), "gyro": SourceInput("a")}
    task = msgspec.structs.replace(TASK, stream=stream, inputs=inputs)
    pipeline = load_pipeline(make(tmp_path, task=task))
    assert pipeline.task == task and pipeline.task.files == files and pipeline.grouped
    assert (pipeline.channels("acc"), pipeline.channels("gyro")) == (9, 6)
    assert [source.name for source in pipeline.described.sources] == ["chest", "ankle", "arm"]


def test_a_group_of_all_is_a_source(tmp_path):
    stream = StreamTask("mhealth", 50.0, 250, 125, grouping="all")
    slices = (entry(0, "c", "xz"), entry(1, "x", "y"), SLICES[2])
    task = msgspec.structs.replace(TASK, stream=stream, inputs={"all": SourceInput("c")})
    assert load_pipeline(make(tmp_path, slices, task)).channels("all") == 23
    assert not load_pipeline(make(tmp_path)).grouped


def test_other_reducers_are_those_asked_for():
    changed = with_reducers(TASK, {"arm": "paa:5"})
    assert [changed.inputs[source].reducer for source in ("chest", "arm")] == ["none", "paa:5"]
    assert changed.inputs["arm"].tensor == "a" and with_reducers(TASK, {}) == TASK
    with pytest.raises(ConfigError, match=r"a reducer came for source leg; expected sources that .* takes: chest, arm"):
        with_reducers(TASK, {"leg": "q8", "arm": "q8"})


def test_the_rule_for_missing_sources_is_read(tmp_path):
    """Slice 1 takes one source and an activation: it can be started without the source."""
    slices = (entry(0, "cb", "xz"), *SLICES[1:])
    inputs = TASK.inputs | {"ankle": SourceInput("b")}
    folder = make(tmp_path, slices, msgspec.structs.replace(TASK, inputs=inputs))
    join = load_pipeline(folder).config.join
    assert (join.missing, join.carry_on_after_s, join.patience_s) == (MissingRule.WAIT, 1.0, None)
    changed(folder, ('missing = "wait"', 'missing = "carry_on"'), ("carry_on_after_s = 1.0", "carry_on_after_s = 2.5"))
    join = load_pipeline(folder).config.join
    assert (join.missing, join.patience_s) == (MissingRule.CARRY_ON, 2.5)


def test_a_short_timeout_needs_no_other_patience_while_stages_wait(folder):
    assert load_pipeline(changed(folder, ("timeout_s = 30.0", "timeout_s = 0.5"))).config.join.timeout_s == 0.5


def test_wiring_says_what_each_stage_takes_and_gives(folder):
    pipeline = load_pipeline(folder)
    first, second, third = (pipeline.wiring(index) for index in range(3))
    assert (first.sources, first.earlier, first.sends, first.answers) == ({"chest": "c"}, {}, ("x", "z"), False)
    assert (second.sources, second.earlier, second.sends) == ({"arm": "a"}, {0: ("x",)}, ("y",))
    assert (first.takers, second.takers, third.takers) == ((1, 2), (2,), ())
    assert (third.sources, third.earlier, third.answers) == ({}, {1: ("y",), 0: ("z",)}, True)


@pytest.mark.parametrize("index", [-1, 3, 99])
def test_a_stage_that_does_not_exist_is_refused(folder, index):
    with pytest.raises(ConfigError, match=f"stage {index} came; expected 0 to 2, for 3 slices"):
        load_pipeline(folder).wiring(index)


SLICES_KEY, LABELS = 'slices = "."', 'labels = ["standing still", "walking"]'
REFUSED = {
    "unknown key": ([(SLICES_KEY, f"colour = 3\n{SLICES_KEY}")], "unknown key `colour` in the top of the file"),
    "unknown broker key": ([("[broker]", "[broker]\nhost = 'x'")], "unknown key `host` in [broker]; expected url, "),
    "unknown task key": ([("[task]", "[task]\nkind = 'x'")], "unknown key `kind` in [task]; expected stream, inputs, "),
    "unknown join key": ([("capacity = 256", "size = 256")], "unknown key `size` in [join]; expected timeout_s, "),
    "unknown source key": ([('tensor = "c"', 'tensor = "c"\nrate = 1')], "unknown key `rate` in [task.inputs]; exp"),
    "type": ([(SLICES_KEY, f'epoch = "1"\n{SLICES_KEY}')], "Expected `int`, got `str` - at `$.epoch`"),
    "array type": ([("label_ids = [1, 4]", "label_ids = [1, 'x']")], "Expected `int`, got `str` - at `$.task.label_"),
    "missing": ([('output = "scores"\n', "")], "missing required field `output` - at `$.task`"),
    "no TOML": ([(SLICES_KEY, "slices = ")], "Invalid value (at line 4, column 10)"),
    "output": ([('output = "scores"', 'output = "class"')],
               "output 'class' is made by no slice; expected one of x, z, y, scores"),
    "labels": ([("label_ids = [1, 4]", "label_ids = [1]")], "2 labels and 1 label_ids; expected one of each"),
    "no labels": ([("label_ids = [1, 4]", "label_ids = []"), (LABELS, "labels = []")],
                  "0 labels and 0 label_ids; expected one of each"),
    "rate": ([("rate_hz = 50.0", "rate_hz = 100.0")],
             "the model was trained at 100.0 Hz, but mhealth runs at 50.0 Hz; resample the stream or use"),
    "timeout": ([("timeout_s = 30.0", "timeout_s = 0")],
                "join.timeout_s is 0.0; it must be a number of seconds above 0"),
    "endless timeout": ([("timeout_s = 30.0", "timeout_s = inf")], "join.timeout_s is inf; it must be a number"),
    "no timeout": ([("timeout_s = 30.0", "timeout_s = nan")], "join.timeout_s is nan; it must be a number"),
    "rule for missing sources": ([('missing = "wait"', 'missing = "skip"')],
                                 "Invalid enum value 'skip' - at `$.join.missing`"),
    "no patience": ([("carry_on_after_s = 1.0", "carry_on_after_s = 0")],
                    "join.carry_on_after_s is 0.0; it must be a number of seconds above 0, and at most join.timeout_s"),
    "patience that is no number": ([("carry_on_after_s = 1.0", "carry_on_after_s = nan")],
                                   "join.carry_on_after_s is nan; it must be a number of seconds above 0"),
    "more patience than time": ([('missing = "wait"', 'missing = "carry_on"'),
                                 ("carry_on_after_s = 1.0", "carry_on_after_s = 31.0")],
                                "join.carry_on_after_s is 31.0; it must be a number of seconds above 0, and at most "
                                "join.timeout_s, which is 30.0"),
    "a stage of one source": ([('missing = "wait"', 'missing = "carry_on"')],
                              'join.missing is "carry_on", but slice 0 takes source \'chest\' and nothing else, so '
                              "nothing starts it when that is missing; cut the model so that this slice takes two"),
    "capacity": ([("capacity = 256", "capacity = 0")], "join.capacity is 0; it must be at least 1"),
    "epoch": ([(SLICES_KEY, f"epoch = -1\n{SLICES_KEY}")], "epoch is -1; it must not be negative"),
    "payload": ([(SLICES_KEY, f"max_payload_bytes = 0\n{SLICES_KEY}")],
                "max_payload_bytes is 0; it must be at least 1"),
    "large payload": ([(SLICES_KEY, f"max_payload_bytes = 268435456\n{SLICES_KEY}")],
                      "max_payload_bytes is 268435456; it must be at most 268435455"),
    "hop": ([("hop = 125", "hop = 0")], "task.stream.hop is 0; it must be at least 1"),
    "length": ([("length = 250", "length = 0")], "task.stream.length is 0; it must be at least 1"),
    "expiry": ([(SLICES_KEY, f"session_expiry_s = -5\n{SLICES_KEY}")],
               "session_expiry_s is -5; it must not be negative"),
    "state": ([("[task]", "[task]\nstate = 'keep'")], "Invalid enum value 'keep' - at `$.task.state`"),
    "label of another name": ([("label_ids = [1, 4]", "label_ids = [1, 5]")],
                              "label_ids says 5 for 'walking', but mhealth has 'climbing stairs'; use the names and"),
    "label that is not there": ([("label_ids = [1, 4]", "label_ids = [1, 13]")],
                                "label_ids says 13 for 'walking', but mhealth has labels 0 to 12 only"),
    "negative label": ([("label_ids = [1, 4]", "label_ids = [-12, 4]")], "label_ids says -12 for 'standing still'"),
    "label id twice": ([("label_ids = [1, 4]", "label_ids = [4, 4]")],
                       "label_ids has 4 twice; expected each class once"),
    "label twice": ([(LABELS, 'labels = ["walking", "walking"]')], "labels has walking twice"),
    "tensor": ([('tensor = "a"', 'tensor = "arm"')],
               "the tensor 'arm' of source 'arm' is taken by no slice; expected an input of the model"),
    "grouping": ([("hop = 125", "hop = 125\ngrouping = 'side'")],
                 "grouping is 'side'; expected one of location, all, type"),
    "group": ([("hop = 125", "hop = 125\ngrouping = 'type'")],
              "mhealth has no source 'chest'; expected one of acc, "),
    "folder of a file": ([('tensor = "c"', f'tensor = "c"\nfiles = {{"../a.npz" = "{"0" * 64}"}}')],
                         "files names '../a.npz'; expected a plain file name that ends in .npz or .tflite and is"),
    "hidden file": ([('tensor = "c"', f'tensor = "c"\nfiles = {{".npz" = "{"0" * 64}"}}')], "files names '.npz'"),
    "kind of file": ([('tensor = "c"', f'tensor = "c"\nfiles = {{"a.pkl" = "{"0" * 64}"}}')], "files names 'a.pkl'"),
    "slice as a file": ([('tensor = "c"', f'tensor = "c"\nfiles = {{"slice-1.tflite" = "{"0" * 64}"}}')],
                        "files names 'slice-1.tflite'"),
    "hash": ([('tensor = "c"', f'tensor = "c"\nfiles = {{"a.npz" = "{"G" * 64}"}}')],
             f"files gives a.npz the hash '{'G' * 64}'; expected a SHA-256 as 64 hex digits"),
    "short hash": ([('tensor = "c"', 'tensor = "c"\nfiles = {"a.npz" = "ab"}')], "files gives a.npz the hash 'ab'"),
    "two hashes": ([('tensor = "c"', f'tensor = "c"\nfiles = {{"a.npz" = "{"0" * 64}"}}'),
                    ('tensor = "a"', f'tensor = "a"\nfiles = {{"a.npz" = "{"1" * 64}"}}')],
                   f"file a.npz of source 'chest' has sha256 {'0' * 64}, but {'1' * 64} for another source"),
    "tensor twice": ([('tensor = "a"', 'tensor = "c"')], "the tensor 'c' of source 'chest' is named for two sources"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named_with_the_file(folder, case):
    pairs, text = REFUSED[case]
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        load_pipeline(changed(folder, *pairs))
    assert str(folder / "pipeline.toml") in str(caught.value)


def test_a_source_the_stream_does_not_have_is_refused(folder):
    with pytest.raises(ConfigError, match="mhealth has no source 'leg'; expected one of chest, ankle, arm"):
        load_pipeline(changed(folder, ("[task.inputs.arm]", "[task.inputs.leg]")))


def test_an_input_nobody_makes_is_refused(tmp_path):
    slices = (SLICES[0], entry(1, ["x", "a", "lost"], "y"), SLICES[2])
    with pytest.raises(
        ConfigError, match="input 'lost' of slice 1 comes from no source and no earlier slice; name its"
    ):
        load_pipeline(make(tmp_path, slices))


def test_a_slice_that_nothing_starts_is_refused(tmp_path):
    slices = (*SLICES, entry(3, [], ["constant"]))
    with pytest.raises(ConfigError, match="slice 3 takes nothing, so no message could start it"):
        load_pipeline(make(tmp_path, slices))


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(
        ConfigError, match=r"cannot read .*pipeline\.toml: No such file .*make it with `har-edge slice`"
    ):
        load_pipeline(tmp_path)


def test_slices_of_an_unknown_model_ask_for_a_file_that_slicing_cannot_write(folder):
    (folder / "pipeline.toml").unlink()
    with pytest.raises(ConfigError, match=r"what the model is for: write it by docs/reference/pipeline-file\.md"):
        load_pipeline(folder)


def test_missing_slices_are_named(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(ModelError, match=r"cannot read .*manifest\.json"):
        load_pipeline(folder)


def test_a_description_beside_the_file_is_found_from_anywhere(folder, monkeypatch):
    changed(folder, ('description = "mhealth"', 'description = "mine.toml"'))
    with pytest.raises(ConfigError, match=re.escape(str(folder / "mine.toml"))):
        load_pipeline(folder)
