"""A float model adapted to one person: which weights change, by how much, and on which windows."""

from __future__ import annotations

import numpy as np
import pytest

from har_edge.config.catalog import find_model
from har_edge.data.synthetic import synthesize
from har_edge.errors import DataError, ModelError
from har_edge.inference.codecs import FolderFiles
from har_edge.inference.interpreter import Interpreter
from har_edge.learning.personal.adaptation import (
    AdaptationRecipe,
    Adapter,
    LabelledInputs,
    Trained,
    accuracy,
    choose_weights,
)
from har_edge.learning.personal.windows import WindowEncoder, cut_personal, overlap, share_out
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import read_model

HEAD = find_model("bottleneck-float-split")
CHANNELS = {"chest": 5, "ankle": 9, "arm": 9}


def model():
    return read_model(HEAD.path)


def made(count=48, seed=0, shift=0.8):
    """Return codes of a made person: classes of the head, with a shift that it never saw."""
    generator = np.random.default_rng(seed)
    y = np.arange(count) % 12
    centres = np.random.default_rng(7).uniform(-1, 1, (12, 91)).astype(np.float32)
    codes = (centres[y] * shift + generator.normal(0, 0.05, (count, 91))).astype(np.float32)
    chest, ankle, arm = np.split(codes, [29, 60], axis=1)
    return LabelledInputs({"chest_code": chest, "ankle_code": ankle, "arm_code": arm}, y)


class TestWeights:
    def test_of_the_head_all_layers_or_the_last(self):
        assert len(choose_weights(model(), Trained.HEAD)) == 8
        assert choose_weights(model(), Trained.OUTPUT) == ("logits/constant_1", "logits/constant_2")
        assert choose_weights(model(), Trained.ALL) == choose_weights(model(), Trained.HEAD)

    def test_the_trunk_of_the_whole_network_is_left_alone(self):
        whole = read_model(find_model("decimate-q8-zlib-restore-split").path)
        assert choose_weights(whole, Trained.HEAD) == choose_weights(model(), Trained.HEAD)

    def test_what_leads_to_sorting_has_no_gradient(self):
        """Medians are made by TOPK_V2, whose result no rule follows back: what makes them up stays as it is."""
        whole = read_model(find_model("decimate-q8-zlib-restore-split").path)
        names = set(choose_weights(whole, Trained.ALL))
        assert not any(name.startswith(("chest_magnitude", "chest_steady/", "arm_steady/")) for name in names)
        assert set(choose_weights(whole, Trained.HEAD)) <= names

    def test_the_default_float_model_has_its_last_layer_as_head(self):
        early = read_model(find_model("float-split").path)
        assert choose_weights(early, Trained.HEAD) == ("logits/constant_1", "logits/constant_2")


class TestAdapter:
    def test_it_learns_a_person_from_few_windows(self):
        person, unseen = made(36), made(120, seed=1)
        before = accuracy(HEAD.path.read_bytes(), "activity", unseen)
        adapted = Adapter(model(), 12, Trained.HEAD).adapt(person, AdaptationRecipe(rate=0.001, epochs=40))
        assert before < 0.5
        assert accuracy(adapted.content, "activity", unseen) > 0.9
        assert adapted.weights == 38_460

    def test_only_the_weights_that_were_asked_for_change(self):
        adapted = Adapter(model(), 12, Trained.OUTPUT).adapt(made(12), AdaptationRecipe(Trained.OUTPUT, epochs=3))
        before, after = read_weights(model()), read_weights(read_model(bytes(adapted.content)))
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        assert changed == {"logits/constant_1", "logits/constant_2"}
        assert (adapted.epochs, adapted.stopped_early, adapted.weights) == (3, False, 96 * 12 + 12)

    def test_the_result_is_an_ordinary_model_and_the_same_each_time(self):
        first, again, other = (
            Adapter(model(), 12, Trained.HEAD)
            .adapt(made(24), AdaptationRecipe(rate=0.001, epochs=2, seed=seed))
            .content
            for seed in (3, 3, 4)
        )
        assert first == again
        assert first != other
        ports = Interpreter(HEAD.path).inputs
        assert [(port.name, port.shape) for port in Interpreter(bytes(first)).inputs] == [
            (port.name, port.shape) for port in ports
        ]

    def test_an_anchor_keeps_weights_near_where_they_began(self):
        def moved(anchor):
            adapted = Adapter(model(), 12, Trained.HEAD).adapt(
                made(24), AdaptationRecipe(rate=0.001, anchor=anchor, epochs=30)
            )
            after = read_weights(read_model(bytes(adapted.content)))
            return sum(float(np.square(after[name] - values).sum()) for name, values in read_weights(model()).items())

        assert moved(1.0) < 0.5 * moved(0.0)

    def test_early_stopping_takes_no_pass_where_none_helps(self):
        """The labels of what is held back contradict the others, so every pass makes its loss worse."""
        person = made(36)
        y = person.y.copy()
        y[24:] = (y[24:] + 5) % 12
        adapted = Adapter(model(), 12, Trained.HEAD).adapt(
            LabelledInputs(person.inputs, np.where(np.arange(36) < 24, person.y, y)),
            AdaptationRecipe(epochs=20, rate=0.01),
        )
        assert adapted.stopped_early
        assert adapted.epochs <= 1

    def test_early_stopping_adapts_to_all_windows_in_the_end(self):
        adapter = Adapter(model(), 12, Trained.HEAD)
        adapted = adapter.adapt(made(36), AdaptationRecipe(rate=0.001, epochs=15))
        fixed = adapter.adapt(made(36), AdaptationRecipe(rate=0.001, epochs=adapted.epochs), early_stopping=False)
        assert adapted.stopped_early
        assert 0 < adapted.epochs <= 15
        assert adapted.content == fixed.content

    def test_with_few_windows_the_number_of_passes_is_that_of_the_recipe(self):
        adapter = Adapter(model(), 12, Trained.HEAD)
        adapted = adapter.adapt(made(24), AdaptationRecipe(rate=0.001, epochs=5))
        assert (adapted.epochs, adapted.stopped_early) == (5, False)
        with pytest.raises(DataError, match="early stopping needs three windows of each activity, and one has 2"):
            adapter.adapt(made(24), AdaptationRecipe(rate=0.001, epochs=5), early_stopping=True)

    def test_what_cannot_be_adapted_is_refused(self):
        with pytest.raises(DataError, match="no labelled window came"):
            Adapter(model(), 12, Trained.HEAD).adapt(made(0), AdaptationRecipe())
        with pytest.raises(ModelError, match="does not give one score for each of 7 classes"):
            Adapter(model(), 7, Trained.HEAD)
        with pytest.raises(ModelError, match="take the float file of this model"):
            Adapter(read_model(find_model("bottleneck").path), 12, Trained.HEAD)

    def test_a_rate_that_diverges_is_told(self):
        person = made(24)
        wild = {name: values * np.float32(1e30) for name, values in person.inputs.items()}
        with pytest.raises(DataError, match="the training diverged; take a smaller rate"):
            Adapter(model(), 12, Trained.HEAD).adapt(
                LabelledInputs(wild, person.y), AdaptationRecipe(rate=1000.0, epochs=20)
            )


class TestWindows:
    task = HEAD.entry.task

    def cut(self, seconds=40):
        (recording,) = synthesize(["anna"], seconds_per_activity=seconds)
        return cut_personal(recording, self.task)

    @pytest.mark.parametrize("seed", [None, 0, 1])
    @pytest.mark.parametrize("count", [1, 3])
    def test_no_row_is_in_both_parts(self, count, seed):
        generator = None if seed is None else np.random.default_rng(seed)
        parts = share_out(self.cut(), 250, count, generator)
        rows = [{(w.stream, row) for w in part for row in range(w.start, w.start + 250)} for part in
                (parts.labelled, parts.held_out)]  # fmt: skip
        assert not rows[0] & rows[1]
        assert len(rows[0]) == 250 * len(parts.labelled)
        assert np.bincount([w.label for w in parts.labelled]).tolist() == [0] + [count] * 12
        assert {w.label for w in parts.held_out} == set(range(1, 13))

    def test_the_first_windows_are_taken_where_none_are_drawn(self):
        parts = share_out(self.cut(), 250, 2)
        assert [w.start for w in parts.labelled if w.label == 1] == [0, 250]
        drawn = share_out(self.cut(), 250, 2, np.random.default_rng(5))
        assert [w.start for w in drawn.labelled if w.label == 1] != [0, 250]

    def test_too_few_windows_are_told(self):
        with pytest.raises(DataError, match="label 1 has 3 windows of 250 rows, of which 2 do not overlap; expected 3"):
            share_out(self.cut(10), 250, 3)
        with pytest.raises(DataError, match="none is left to test with"):
            share_out(self.cut(5), 250, 1)

    def test_the_codes_are_those_that_the_pipeline_sends(self):
        """The encoders of the sensors make them, int8 and back, so a head is adapted to what it will meet."""
        cut = self.cut(10)[:3]
        files = FolderFiles(HEAD.path.parent, self.task.files)
        samples = WindowEncoder(self.task, Interpreter(HEAD.path).inputs, CHANNELS, files).encode(cut)
        assert {name: values.shape for name, values in samples.inputs.items()} == {
            "chest_code": (3, 29), "ankle_code": (3, 31), "arm_code": (3, 31)
        }  # fmt: skip
        steps = samples.inputs["chest_code"] * 127
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
        assert samples.y.tolist() == [0, 0, 0]

    def test_an_int8_model_is_refused(self):
        ports = Interpreter(find_model("bottleneck").path).inputs
        files = FolderFiles(HEAD.path.parent, self.task.files)
        with pytest.raises(ModelError, match="the model takes int8 there; expected float32"):
            WindowEncoder(self.task, ports, CHANNELS, files)

    def test_overlap_is_of_one_recording(self):
        first, second = self.cut()[:2]
        assert overlap(first, second, 250)
        assert not overlap(first, second, 125)
