"""A model to be spread over devices: where it can be cut, what it answers, and its slices in a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from har_edge.api.arguments import (
    check_count,
    check_counts,
    check_mapping,
    check_path,
    check_text,
    check_texts,
    python_words,
)
from har_edge.config.catalog import find_model
from har_edge.errors import ConfigError, CutError, DataError
from har_edge.inference.tensor_observation import open_model
from har_edge.tflite.cuts import Cut, list_cuts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from har_edge.config.pipeline import Pipeline
    from har_edge.config.task import Task
    from har_edge.inference.interpreter import Interpreter
    from har_edge.tflite.manifest import TensorSpec
    from har_edge.tflite.model import Model as Graph


@dataclass(frozen=True, repr=False)
class Model:
    """A .tflite file that was found, with its hash, and with the task that says what its inputs and classes mean.

    Make it with `load_model`.
    """

    name: str
    path: Path
    sha256: str
    task: Task | None
    # A stream description that goes beside the slices, for a task made here, by the name of its file.
    _beside: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {str(self.path)!r})"

    @cached_property
    def graph(self) -> Graph:
        """The file as a graph of operators and tensors."""
        return open_model(self.path)

    @property
    def labels(self) -> list[str]:
        """The names of the classes, by index; empty where nobody names them.

        >>> import har_edge
        >>> har_edge.load_model("int8").labels[:2]
        ['standing still', 'sitting and relaxing']
        """
        return [] if self.task is None else list(self.task.labels)

    @property
    def inputs(self) -> list[TensorSpec]:
        """The tensors that enter, in order; -1 stands for a dimension that may vary."""
        from har_edge.tflite.cuts import tensor_spec

        return [tensor_spec(self.graph.main.tensors[index]) for index in self.graph.main.inputs]

    @property
    def outputs(self) -> list[TensorSpec]:
        """The tensors that leave, in order."""
        from har_edge.tflite.cuts import tensor_spec

        return [tensor_spec(self.graph.main.tensors[index]) for index in self.graph.main.outputs]

    @property
    def cuts(self) -> list[Cut]:
        """Every place where the model can be cut, with the tensors and bytes that cross there.

        >>> import har_edge
        >>> [cut.index for cut in har_edge.load_model("int8").cuts][:3]
        [1, 2, 3]
        """
        return [cut for cut in list_cuts(self.graph) if cut.refusal is None]

    @property
    def refused_cuts(self) -> list[Cut]:
        """Every place where it cannot be cut; `refusal` of each says why."""
        return [cut for cut in list_cuts(self.graph) if cut.refusal is not None]

    def run(self, values: Mapping[str, npt.ArrayLike]) -> Mapping[str, npt.NDArray[Any]]:
        """Run the whole model here, without a network; values and results go by the names of its tensors.

        The values are those that the tensors hold: for a quantised input its integers.

        Raises DataError where an input has no values or others than its type holds, MessageError for values of another
        shape than it has.
        """
        names = [port.name for port in self._interpreter.inputs]
        if not isinstance(values, Mapping) or set(values) != set(names):
            came = ", ".join(map(str, values)) if isinstance(values, Mapping) else f"a {type(values).__name__}"
            raise DataError(
                f"{came or 'nothing'} came; expected a mapping with an array for each of {', '.join(names)}"
            )
        return self._interpreter.run(
            {port.name: _of_type(port.name, values[port.name], port.dtype) for port in self._interpreter.inputs}
        )

    @python_words()
    def verify(self, cuts: Sequence[int]) -> None:
        """Run the whole model and its slices on the same random inputs; CutError unless every bit is equal.

        The slices exchange messages as stages on devices do.

        >>> import har_edge
        >>> har_edge.load_model("int8").verify([4, 9])
        """
        from har_edge.runtime.verify import check_cuts

        check_counts("cuts", cuts)

        for check in check_cuts(self.graph, [tuple(cuts)]):
            if check.difference is not None:
                raise CutError(
                    f"{self.path.name} cut before {', '.join(map(str, cuts))}: {check.difference}; cut elsewhere"
                )

    def known_task(self) -> Task:
        """Return the task; ConfigError where nobody says what the model is for."""
        if self.task is None:
            raise ConfigError(
                f"nobody says what {self.path.name} is for; give load_model(..., labels=[...]) for a classifier of "
                "images, or write pipeline.toml beside the slices (docs/how-to/own-model.md)"
            )
        return self.task

    @cached_property
    def _interpreter(self) -> Interpreter:
        from har_edge.inference.interpreter import Interpreter

        return Interpreter(bytes(self.graph.data))


def _of_type(name: str, values: npt.ArrayLike, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return values in the type of their input; refuse what an integer cannot hold, as real values of a window."""
    import numpy as np

    came = np.asarray(values)
    with np.errstate(invalid="ignore", over="ignore"):
        held = came.astype(dtype)
    if np.issubdtype(held.dtype, np.integer) and not np.array_equal(held, came):
        raise DataError(f"values of {name} came that {dtype} does not hold; expected the integers of a quantised input")
    return held


@python_words()
def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    pictures: bool = False,
    normalize: tuple[float, float] | tuple[Sequence[float], Sequence[float]] | None = None,
    fit: str = "stretch",
) -> Model:
    """Return a model that ships with har_edge, by its name, or a .tflite file, by its path.

    A model that no manifest.json beside it knows may be cut at once. It runs in a pipeline when `labels` names its
    classes: then it takes one image [height, width, channels] a time, or one window [length, channels], in the values
    that the model was trained on. With `pictures`, it takes pictures as bytes, as `har-edge sensor --images` sends
    them; without labels, its own or given ones, results carry its outputs as arrays, or say `anomaly` where the model
    finds these.

    Args:
        labels: the names of the classes, by index.
        pictures: whether pictures come as uint8, of any size.
        normalize: mean and standard deviation, each one figure or one a channel: the input is (byte - mean) / std. By
            default as the model's metadata say; an uint8 input takes the bytes as they are.
        fit: what happens to pictures of another aspect ratio: "stretch", "crop" or "pad".

    Raises ModelError for what is no model, ConfigError for labels that do not fit it, and where nothing says how bytes
    become the values of a float input.

    >>> import har_edge
    >>> model = har_edge.load_model("int8")
    >>> model.path.name, len(model.cuts)
    ('har-int8.tflite', 16)
    """
    from har_edge.tflite.model import read_model

    check_path("model", name_or_path)
    check_texts("labels", labels)
    found = find_model(os.fspath(name_or_path))
    entry = found.entry
    if entry is None:
        read_model(found.path)  # what is no model is refused here, not at its first use
    name = entry.name if entry is not None else found.path.stem
    if not pictures and (normalize is not None or fit != "stretch"):
        raise ConfigError("normalize or fit came without pictures=True; expected both: these are for pictures")
    if labels is None and not pictures:
        return Model(name, found.path, found.sha256, None if entry is None else entry.task)
    if entry is not None:
        came = "pictures=True" if labels is None else "labels"
        raise ConfigError(f"{came} came for {name}, whose manifest names its classes; expected none")
    if pictures:
        task = _picture_task(found.path, labels, normalize, fit)
        return Model(name, found.path, found.sha256, task)
    from har_edge.inference.port_task import describe_images, image_task

    model = Model(name, found.path, found.sha256, None)
    runner = model._interpreter
    if len(runner.inputs) != 1 or len(runner.outputs) != 1:
        raise ConfigError(
            f"labels came for {name}, which has {len(runner.inputs)} inputs and {len(runner.outputs)} outputs; "
            "expected one each"
        )
    task = image_task(runner.inputs[0], runner.outputs[0], labels)
    beside = {task.stream.description: describe_images(runner.inputs[0])}
    return Model(name, found.path, found.sha256, task, MappingProxyType(beside))


def _picture_task(
    path: Path,
    labels: Sequence[str] | None,
    normalize: tuple[float, float] | tuple[Sequence[float], Sequence[float]] | None,
    fit: str,
) -> Task:
    import numpy as np

    from har_edge.config.anomaly_task import derive_anomaly_task
    from har_edge.config.image_task import Normalization, derive_image_task
    from har_edge.config.unlisted_model import packed_labels
    from har_edge.data.pictures import AspectRule
    from har_edge.tflite.model import read_model

    rules = [rule.value for rule in AspectRule]
    if fit not in rules:
        raise ConfigError(f"fit={fit!r} came; expected one of {', '.join(rules)}")
    constants = None
    if normalize is not None:
        mean, std = (tuple(float(one) for one in np.atleast_1d(part)) for part in normalize)
        constants = Normalization(mean, std)
    model = read_model(path)
    rule = None if fit == AspectRule.STRETCH.value else AspectRule(fit)
    found = None if labels is not None else derive_anomaly_task(model, normalization=constants, fit=rule)
    return found or derive_image_task(
        model,
        labels=packed_labels(path) if labels is None else labels,
        asked=labels is not None,
        normalization=constants,
        fit=AspectRule(fit),
    )


@python_words()
def split(
    model: Model | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    stages: int | None = None,
    cuts: Sequence[int] | None = None,
    name: str = "har",
    reducers: Mapping[str, str] = MappingProxyType({}),
) -> Pipeline:
    """Cut a model into slices and write them into `folder`, with what sensors and stages must agree on.

    Args:
        model: what `load_model` returned, or what it takes.
        folder: where slices, manifest.json and pipeline.toml go; copy it to every device.
        stages: into how many slices, of about the same time each on this machine, 2 by default; or
        cuts: before which operators (see `Model.cuts`).
        name: tells this pipeline apart from others on the same broker.
        reducers: by source, how its windows are reduced, instead of as the model was trained for.

    Returns:
        The pipeline: `.manifest.slices` lists what was written.

    Raises CutError for cuts that the model does not allow, ConfigError where the task is unknown or does not fit.

    >>> import har_edge, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pipeline = har_edge.split("int8", folder, cuts=[4, 9])
    ...     [(entry.start, entry.stop) for entry in pipeline.manifest.slices]
    [(0, 4), (4, 9), (9, 17)]
    """
    from har_edge.protocol.topics import check_id
    from har_edge.runtime.slicing import prepare

    check_path("model", model, Model)
    check_path("folder", folder)
    check_count("stages", stages)
    check_counts("cuts", cuts)
    check_text("name", name)
    check_mapping("reducers", reducers)
    cuts = None if cuts is None else [int(cut) for cut in cuts]  # those of NumPy too
    if stages is not None and cuts is not None:
        raise ConfigError(f"stages={stages} came with cuts={list(cuts)}; expected one of them")
    if stages is not None and stages < 1:
        raise ConfigError(f"stages={stages} came; expected at least 1")
    check_id("name of the pipeline", name)
    chosen = model if isinstance(model, Model) else load_model(model)
    task = chosen.known_task()
    with contextlib.ExitStack() as stack:
        path = chosen.path
        if chosen._beside:  # what the task names must lie beside the model, whose own folder is not ours to write in
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-model-")))
            path = place / path.name
            shutil.copyfile(chosen.path, path)
            for beside, text in chosen._beside.items():
                (place / beside).write_text(text, encoding="utf-8")
        return prepare(path, task, Path(folder), stages=stages or 2, cuts=cuts, name=name, reducers=reducers)
