"""Synthetic recordings: seeded, in the shape of mHealth, and like the real ones."""

import numpy as np
import pytest

from har_edge.config.catalog import find_model
from har_edge.data.files import read_recordings
from har_edge.data.synthetic import SUBJECTS, synthesize
from har_edge.data.windows import windows
from har_edge.errors import ConfigError
from har_edge.evaluation.prediction import Classifier
from har_edge.inference.interpreter import Interpreter


def everything(recording):
    return np.concatenate([recording.samples[source] for source in ("chest", "ankle", "arm")], axis=1)


def test_the_shape_is_that_of_mhealth():
    (recording,) = synthesize(["subject3"], seconds_per_activity=4)
    assert (recording.stream, recording.rate_hz, recording.real, recording.starts) == ("subject3", 50, False, (0,))
    assert {source: values.shape for source, values in recording.samples.items()} == {
        "chest": (2400, 5),
        "ankle": (2400, 9),
        "arm": (2400, 9),
    }
    assert recording.labels.dtype == np.int16
    assert np.unique(recording.labels, return_counts=True)[1].tolist() == [200] * 12
    values = everything(recording)
    assert values.dtype == np.float32 and np.isfinite(values).all()
    whole = (values == np.trunc(values)).all(axis=0)
    assert np.flatnonzero(~whole).tolist() == [0, 1, 2, 11, 17, 18, 19]


def test_a_recording_depends_on_seed_and_name_alone():
    both = synthesize(["subject1", "subject2"], seed=3, seconds_per_activity=2)
    (alone,) = synthesize(["subject2"], seed=3, seconds_per_activity=2)
    np.testing.assert_array_equal(everything(both[1]), everything(alone))
    (other,) = synthesize(["subject2"], seed=4, seconds_per_activity=2)
    assert not np.array_equal(everything(other), everything(alone))
    assert [recording.stream for recording in synthesize(seconds_per_activity=0.1)] == list(SUBJECTS)
    (stranger,) = synthesize(["anna"], seconds_per_activity=2)
    assert np.isfinite(everything(stranger)).all()


def test_postures_differ_and_running_moves():
    (recording,) = synthesize(["subject1"])
    chest = recording.samples["chest"]
    means = {label: chest[recording.labels == label, :3].mean(axis=0) for label in (1, 3)}
    assert means[1][0] < -8 < 0 < means[3][2]
    assert chest[recording.labels == 11, 0].std() > 5 > 1 > chest[recording.labels == 1, 0].std()


@pytest.mark.parametrize("seconds", [0, -1, 1e6, float("nan")])
def test_a_duration_that_makes_no_sense_is_refused(seconds):
    with pytest.raises(ConfigError, match="seconds an activity, expected more than 0"):
        synthesize(["subject1"], seconds_per_activity=seconds)


def test_a_name_that_cannot_be_a_stream_is_refused():
    with pytest.raises(ConfigError, match="stream is named 'a b', expected letters, digits, _ and -"):
        synthesize(["a b"])


def features(recordings):
    made = [window for recording in recordings for window in windows(recording, 250, 125, within_activity=True)]
    values = np.array([np.concatenate(list(window.samples.values()), axis=1) for window in made])
    steps = np.abs(np.diff(values, axis=1)).mean(axis=1)
    columns = [values.mean(axis=1), values.std(axis=1), values.min(axis=1), values.max(axis=1), steps]
    return np.concatenate(columns, axis=1), np.array([window.label for window in made])


@pytest.mark.slow
@pytest.mark.dataset
def test_a_classifier_of_real_windows_recognises_synthetic_ones(dataset, mhealth):
    ensemble = pytest.importorskip("sklearn.ensemble")
    forest = ensemble.ExtraTreesClassifier(50, random_state=0).fit(*features(read_recordings(mhealth, dataset)))
    assert forest.score(*features(synthesize(seed=11))) >= 0.95


@pytest.mark.parametrize("name", ["float", "int8"])
def test_the_shipped_models_recognise_synthetic_recordings(name):
    found = find_model(name)
    assert found.entry is not None and found.entry.real
    interpreter = Interpreter(found.path)
    task = found.entry.task
    classifier = Classifier(interpreter.run, interpreter.inputs, task)
    # Subjects modelled on real ones, and one with a name of its own.
    recordings = synthesize([*SUBJECTS, "anna"], seed=7, seconds_per_activity=15)
    answers = [
        (window.label, task.label_ids[classifier.predict(window).answer])
        for recording in recordings
        for window in windows(recording, task.stream.length, task.stream.hop, within_activity=True)
    ]
    right = np.array([truth == answer for truth, answer in answers])
    assert len(right) == 9 * 12 * 5
    assert right.mean() >= 0.8
    for label in range(1, 13):
        share = np.mean([truth == answer for truth, answer in answers if truth == label])
        assert share >= 0.5, f"activity {label}: {share:.2f}"
