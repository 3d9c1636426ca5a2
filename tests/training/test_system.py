"""Whole systems: what is fitted is deployable, for every kind of variant, and honest about what cannot be."""

from __future__ import annotations

import hashlib
import random
import re
import threading
from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from har_edge.data.description import StreamDescription, parse_description
from har_edge.data.grouping import regroup, regroup_recording
from har_edge.data.recording import Recording, Samples
from har_edge.data.windows import default_window, windows
from har_edge.errors import ConfigError
from har_edge.evaluation.prediction import Classifier
from har_edge.evaluation.study import Downstream, System, Training, Variant
from har_edge.inference.interpreter import Interpreter
from har_edge.training.codec import MadeFiles
from har_edge.training.dataset import WindowPool
from har_edge.training.fit import Recipe
from har_edge.training.methods import is_bottleneck
from har_edge.training.system import SystemTrainer

pytestmark = pytest.mark.training

CODES, RESTORE = Downstream.CODES, Downstream.RESTORE
FAST = Recipe(epochs=1, windows_a_length=2, encoded_passes=1)
# Another data set: one odd rate, two sources of mixed units, no null label.
FANS = parse_description("""
name = "fans"
rate_hz = 20.0
labels = ["calm", "worn"]
[files]
label = "state"
[[sources]]
name = "motor"
columns = ["acc_x", "acc_y", "acc_z", "temp"]
[[sources]]
name = "mic"
columns = ["level"]
""")


def fan(stream: str, seed: int) -> Recording:
    """Twenty seconds calm, twenty worn: worn shakes at 5 Hz and is louder."""
    random, time = np.random.default_rng(seed), np.arange(800) / 20
    worn = time >= 20
    shaking = np.where(worn, 2.0, 0.3) * np.sin(2 * np.pi * 5 * time + seed)
    motor = np.stack([shaking, 0.5 * shaking, 9.8 + 0.1 * shaking, 300 + seed + 0 * time], 1)
    level = np.where(worn, 60.0, 50.0)[:, None]
    samples = {
        "motor": (motor + random.normal(0, 0.05, motor.shape)).astype(np.float32),
        "mic": (level + random.normal(0, 2, level.shape)).astype(np.float32),
    }
    return Recording(stream, 20.0, samples, worn.astype(np.int16), real=False)


@pytest.fixture(scope="module")
def fans() -> list[Recording]:
    return [fan(f"fan{seed}", seed) for seed in range(3)]


def classifier(system: System, description: StreamDescription) -> Classifier:
    interpreter = Interpreter(system.model)
    sources = regroup(description, system.task.stream.grouping).sources
    channels = {source.name: len(source.channels) for source in sources}
    files = MadeFiles(system.files)
    return Classifier(interpreter.run, interpreter.inputs, system.task, channels=channels, files=files)


def accuracy(system: System, recording: Recording, description: StreamDescription) -> float:
    length, hop = default_window(description.rate_hz)
    asked = windows(recording, length, hop, within_activity=True)
    answers = [classifier(system, description).predict(window) for window in asked]
    return float(np.mean([answer.truth == answer.answer for answer in answers]))


@pytest.mark.parametrize(
    "variant",
    [
        Variant("none", CODES),
        Variant("none", CODES, "all"),
        Variant("stats", CODES),
        Variant("paa:5+q8", CODES, "all", "float"),
        Variant("pca:6+zlib", CODES),
        Variant("bottleneck:1+zlib", CODES, "all"),
    ],
    ids=str,
)
def test_any_data_set_makes_a_system_that_runs(fans: list[Recording], variant: Variant) -> None:
    grouped = [regroup_recording(recording, FANS, variant.grouping) for recording in fans]
    recipe = Recipe(epochs=12, windows_a_length=25, encoded_passes=2, batch=16, rate=5e-3)
    system = SystemTrainer(FANS, recipe).fit(variant, Training(grouped[:2]), 0, None)
    assert (system.task.stream.length, system.task.stream.hop) == (100, 50)
    assert (system.task.labels, system.task.label_ids) == (["calm", "worn"], [0, 1])
    assert system.task.stream.grouping == variant.grouping
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in system.files.items()}
    assert system.task.files == hashes
    assert accuracy(system, grouped[2], FANS) > 0.9


@pytest.fixture(scope="module")
def trainer(description: StreamDescription) -> SystemTrainer:
    return SystemTrainer(description, FAST)


@pytest.fixture(scope="module")
def bottleneck(trainer: SystemTrainer, recordings: list[Recording]) -> System:
    return trainer.fit(Variant("bottleneck:1", CODES), Training(recordings[:2]), 0, None)


@pytest.fixture(scope="module")
def unreduced(trainer: SystemTrainer, recordings: list[Recording]) -> System:
    return trainer.fit(Variant("none", CODES), Training(recordings[:2]), 0, None)


def some_windows(recordings: list[Recording]) -> Mapping[str, Samples]:
    return WindowPool(recordings[2:], 250, range(1, 13), windows_a_length=2).draw().batch().samples


def test_codes_of_a_bottleneck_enter_its_head_untouched(bottleneck: System, recordings: list[Recording]) -> None:
    ports = {port.name: port for port in Interpreter(bottleneck.model).inputs}
    samples = some_windows(recordings)
    for source, statistics in {"chest": 5, "ankle": 7, "arm": 7}.items():
        enters = bottleneck.task.inputs[source]
        (name,) = enters.files
        assert (enters.tensor, enters.reducer) == (f"{source}_code", f"bottleneck:{name}")
        codec = MadeFiles(bottleneck.files).model(name)
        port = ports[enters.tensor]
        assert (codec.output_dtype, codec.output_shape) == ("int8", (1 + statistics,))
        assert (port.dtype.name, port.shape) == ("int8", (-1, 1 + statistics))
        assert np.float32(codec.output_scale) == np.float32(port.scale)
        assert codec.output_zero == port.zero_point == 0  # a source that is missing is all zero
        codes = np.stack([codec.run(window) for window in samples[source]])
        assert len(np.unique(codes, axis=0)) > len(codes) // 2


def test_an_encoder_sends_the_statistics_that_training_saw(
    bottleneck: System, recordings: list[Recording], description: StreamDescription
) -> None:
    from har_edge.training.magnitude import measure_magnitudes
    from har_edge.training.scaling import measure_scaling

    scaling = measure_scaling(recordings[:2], description)
    vectors = measure_magnitudes(recordings[:2], description, scaling)
    samples = some_windows(recordings)
    for source in ("chest", "arm"):
        codec = MadeFiles(bottleneck.files).model(next(iter(bottleneck.task.inputs[source].files)))
        codes = np.stack([codec.run(window) for window in samples[source]])
        expected = vectors.statistics(source, samples[source], scaling)
        np.testing.assert_allclose(codes[:, 1:] * codec.output_scale, expected, atol=0.51 / 127)


def test_windows_restored_enter_the_unreduced_model(
    trainer: SystemTrainer, unreduced: System, recordings: list[Recording], description: StreamDescription
) -> None:
    training = Training(recordings[:2])
    system = trainer.fit(Variant("pca:8+zlib", RESTORE), training, 0, unreduced)
    assert system.model == unreduced.model
    assert sorted(system.files) == ["har-ankle.npz", "har-arm.npz", "har-chest.npz"]
    assert system.task.inputs["arm"].reducer == "pca:har-arm.npz+zlib"
    assert system.task.inputs["arm"].tensor == unreduced.task.inputs["arm"].tensor
    assert 0 <= accuracy(system, recordings[2], description) <= 1


def test_the_same_seed_gives_the_same_system(fans: list[Recording]) -> None:
    variant, training = (
        Variant("bottleneck:1+zlib", CODES, "all"),
        Training([regroup_recording(recording, FANS, "all") for recording in fans]),
    )
    first, second, other = (SystemTrainer(FANS, FAST).fit(variant, training, seed, None) for seed in (3, 3, 4))
    assert first == second
    assert first.model != other.model


def test_another_thread_that_draws_numbers_changes_nothing(fans: list[Recording]) -> None:
    """Keras draws seeds from the generator of the whole process; the threads of a dask worker draw from it too."""
    variant, training = Variant("none", CODES), Training(fans[:2])
    alone = SystemTrainer(FANS, FAST).fit(variant, training, 3, None)
    ended = threading.Event()

    def draw() -> None:
        while not ended.wait(0.0005):
            random.random()

    other = threading.Thread(target=draw)
    other.start()
    try:
        beside = SystemTrainer(FANS, FAST).fit(variant, training, 3, None)
    finally:
        ended.set()
        other.join()
    assert beside.model == alone.model


def test_only_chosen_windows_are_learnt(fans: list[Recording]) -> None:
    every = [
        (window.stream, window.start)
        for recording in fans[:2]
        for window in windows(recording, 100, 50, within_activity=False)
        if window.label is not None
    ]
    assert len(every) == 2 * 14
    first, again, second = (
        SystemTrainer(FANS, FAST).fit(Variant("stats", CODES), Training(fans[:2], frozenset(chosen)), 0, None).model
        for chosen in (every, every[::-1], every[:-1])
    )
    assert first == again
    assert first != second


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (Variant("pca:4", RESTORE), "no unreduced system came; restored windows enter the model of that one"),
        (Variant("bottleneck:4", RESTORE), "nothing restores windows from a bottleneck; expected codes"),
        (Variant("paa:5+bottleneck:4", CODES), "bottleneck takes windows as they are; expected it as the first method"),
        (Variant("none", CODES, precision="int4"), "precision is 'int4'; expected one of float, int8"),
        (Variant("none", CODES, "pairs"), "grouping is 'pairs'; expected one of location, all, type"),
        (Variant("paa:0", CODES), "expected a piece of 1 to 250 samples"),
    ],
    ids=str,
)
def test_designs_that_cannot_be_are_refused(
    trainer: SystemTrainer, recordings: list[Recording], variant: Variant, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        trainer.fit(variant, Training(recordings[:1]), 0, None)


def test_statistics_restore_nothing(trainer: SystemTrainer, unreduced: System, recordings: list[Recording]) -> None:
    with pytest.raises(ConfigError, match="nothing restores windows from these codes; expected codes"):
        trainer.fit(Variant("stats", RESTORE), Training(recordings[:1]), 0, unreduced)


@pytest.mark.parametrize(
    ("spec", "expected"), [("bottleneck:8", True), ("bottleneck:8+zlib", True), ("pca:4+q8", False), ("none", False)]
)
def test_a_bottleneck_is_known_by_its_first_method(spec: str, expected: bool) -> None:
    assert is_bottleneck(spec) is expected
