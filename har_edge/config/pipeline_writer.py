"""Write a pipeline file, with every choice that a person may want to change."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from har_edge.config.anomaly_outputs import write_tables
from har_edge.config.pipeline_config import DEFAULT_NAME, FILE_NAME, BrokerConfig, JoinConfig
from har_edge.config.task import StateRule, Task
from har_edge.errors import ConfigError
from har_edge.files import write_atomic


def write_pipeline(
    folder: Path,
    task: Task,
    *,
    name: str = DEFAULT_NAME,
    broker: BrokerConfig | None = None,
    delegate: str | None = None,
) -> Path:
    """Write a pipeline file with every choice that a person may want to change, whole or not at all; return its path.

    Raises ConfigError when the file cannot be written.
    """
    quote, broker = _quote, broker or BrokerConfig()
    lines = [
        "# What sensors, stages and watchers must agree on. Copy this folder to every device.",
        f"name = {quote(name)}      # the level of the topics that tells pipelines apart",
        "# epoch: unless it is set here, a number made from the model and its cuts",
        'slices = "."',
        *([] if delegate is None else [f"delegate = {quote(delegate)}"]),
        "",
        "[broker]",
        *(f"{key} = {quote(value)}" for key, value in msgspec.to_builtins(broker).items() if value is not None),
        "",
        "[join]             # how long a stage waits for the parts of a window, and for how many windows at once",
        *(f"{key} = {quote(value)}" for key, value in msgspec.to_builtins(JoinConfig()).items()),
        "",
        "[task]             # what the model was trained for",
        f"output = {quote(task.output)}",
        f"labels = {quote(task.labels)}",
        f"label_ids = {quote(task.label_ids)}",
        *([] if task.state is StateRule.REFUSE else [f"state = {quote(task.state.value)}"]),
        "",
        "[task.stream]",
        *(f"{key} = {quote(value)}" for key, value in msgspec.to_builtins(task.stream).items()),
    ]
    if task.image is not None:
        image = msgspec.structs.asdict(task.image) | {"fit": task.image.fit.value}
        lines += ["", "[task.image]"]
        lines += [f"{key} = {quote(value)}" for key, value in image.items() if value != ()]
    for one in task.arrays:
        lines += ["", "[[task.arrays]]"]
        lines += [f"{key} = {quote(value)}" for key, value in msgspec.to_builtins(one).items()]
    if task.anomaly is not None:
        lines += write_tables(task.anomaly)
    for source, enters in task.inputs.items():
        lines += [
            "",
            f"[task.inputs.{source}]",
            f"tensor = {quote(enters.tensor)}",
            f"reducer = {quote(enters.reducer)}",
        ]
        if enters.files:
            lines += ["", f"[task.inputs.{source}.files]"]
            lines += [f"{quote(name)} = {quote(sha256)}" for name, sha256 in enters.files.items()]
    file = folder / FILE_NAME
    try:
        write_atomic(file, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}; give another --out") from error
    return file


def _quote(value: object) -> str:
    """Return a value in TOML. Its strings are those of JSON but for one character and surrogate pairs."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
