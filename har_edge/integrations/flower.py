"""Train a .tflite model with Flower: its SuperLink, its SuperNodes, any of its strategies (extra `flower`).

A Flower app names two objects, one for the devices and one for the server (examples/flower):

    app = make_client_app()
    app = make_server_app(lambda context: FedAvg())

The server sends the training graph, which has no weights in it, with each message: an app's bundle can hold no .tflite
file. The configuration of the app ([tool.flwr.app.config]) may set each field of `FlowerSettings`, with dashes. The
configuration of a SuperNode (--node-config) names its samples: `data="PATH"`; with `partition-id` and
`num-partitions`, it takes every so many-th of them, for tries with one data set on many nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from har_edge.errors import ConfigError, NodeError
from har_edge.extras import require
from har_edge.files import write_atomic
from har_edge.learning.data.dataset_files import LabelledData, read_data
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.local_training import LocalOutcome, LocalTraining
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.updates.vectors import Vector, flatten, unflatten
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.spec import TrainingSpec, decode_spec
from har_edge.tflite.gradient.training_graph import write_training_graph
from har_edge.tflite.gradient.weights import read_weights, replace_weights
from har_edge.tflite.model import read_model

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import Strategy

# Names of what the server sends beside the weights.
_GRAPH, _SPEC = "training-graph", "training-spec"
ReadSamples = Callable[[Mapping[str, Any]], LabelledData]


class FlowerSettings(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The configuration of the app: what devices and server read of [tool.flwr.app.config].

    `model` is the path of the .tflite file on the server, `out` where it writes the trained one. `optimizer` steps on
    the devices, from rest in every round.
    """

    model: str
    rounds: int = 3
    local_epochs: int = 1
    batch: int = 32
    optimizer: str = "sgd:lr=0.05"
    seed: int = 0
    out: str = "trained.tflite"

    def __post_init__(self) -> None:
        for name in ("rounds", "local_epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")


def make_client_app(read_samples: ReadSamples | None = None) -> ClientApp:
    """Return the ClientApp that trains the server's model on the samples of a SuperNode.

    `read_samples` gives them by the configuration of the node; by default `read_node_data` reads files.
    """
    require("a Flower app", "flwr")
    from flwr.app import Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()
    read = read_samples or read_node_data

    @app.train()  # type: ignore[untyped-decorator, unused-ignore]
    def train(message: Message, context: Context) -> Message:
        settings, config = read_settings(context.run_config), message.content["config"]
        training = _received_graph(config)
        weights = _vector(message.content["arrays"], training.spec)
        seed = [settings.seed, int(config["server-round"]), int(context.node_config.get("partition-id", 0))]
        outcome = training.train(
            weights,
            read(context.node_config).train,
            make_optimizer(settings.optimizer, weights.size),
            settings.local_epochs,
            np.random.default_rng(seed),
            float(config.get("proximal-mu", 0.0)),
        )
        content = RecordDict({"arrays": _record(weights, training.spec), "metrics": MetricRecord(_metrics(outcome))})
        return Message(content=content, reply_to=message)

    @app.evaluate()  # type: ignore[untyped-decorator, unused-ignore]
    def evaluate(message: Message, context: Context) -> Message:
        training = _received_graph(message.content["config"])
        weights = _vector(message.content["arrays"], training.spec)
        outcome = training.evaluate(weights, read(context.node_config).test)
        return Message(content=RecordDict({"metrics": MetricRecord(_metrics(outcome))}), reply_to=message)

    return app


def make_server_app(make_strategy: Callable[[Context], Strategy]) -> ServerApp:
    """Return the ServerApp that runs a strategy from the weights of a .tflite file, and writes the trained model."""
    require("a Flower app", "flwr")
    from flwr.app import ConfigRecord
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator, unused-ignore]
    def main(grid: Grid, context: Context) -> None:
        settings = read_settings(context.run_config)
        model = read_model(Path(settings.model))
        graph = write_training_graph(model, batch=settings.batch, loss=Loss.CROSS_ENTROPY)
        files = {_GRAPH: bytes(graph.data), _SPEC: graph.spec.encode()}
        result = make_strategy(context).start(
            grid=grid,
            initial_arrays=_record(flatten(read_weights(model), graph.spec.weights), graph.spec),
            num_rounds=settings.rounds,
            train_config=ConfigRecord(files),
            evaluate_config=ConfigRecord(files),
        )
        trained = len(result.train_metrics_clientapp)
        if not trained:
            raise NodeError("no node trained in any round, so nothing is written; the SuperNodes' logs say why")
        arrays = unflatten(_vector(result.arrays, graph.spec), graph.spec.weights)
        write_atomic(Path(settings.out), replace_weights(model, arrays))
        print(f"har_edge: {settings.out} written, {trained} of {settings.rounds} rounds trained", flush=True)

    return app


def read_settings(config: Mapping[str, Any]) -> FlowerSettings:
    """Return the configuration of an app; other keys are the strategy's. Raises ConfigError with the key."""
    try:
        return msgspec.convert(dict(config), FlowerSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"[tool.flwr.app.config]: {error}") from None


def read_node_data(config: Mapping[str, Any]) -> LabelledData:
    """Return the samples that the configuration of a SuperNode names. Raises ConfigError where it names none."""
    path = config.get("data")
    if not isinstance(path, str):
        raise ConfigError("this SuperNode has no samples; start it with --node-config 'data=\"PATH\"'")
    found = read_data(Path(path))
    number, count = config.get("partition-id", 0), config.get("num-partitions", 1)
    if not isinstance(number, int) or not isinstance(count, int) or not 0 <= number < count:
        raise ConfigError(f"partition-id={number} of num-partitions={count}, expected whole numbers, the first below")
    return LabelledData(_part(found.train, number, count), _part(found.test, number, count), found.how)


def _part(samples: Dataset, number: int, count: int) -> Dataset:
    return samples.take(slice(number, None, count))


def _received_graph(config: Mapping[str, Any]) -> LocalTraining:
    return LocalTraining(config[_GRAPH], decode_spec(config[_SPEC]))


def _vector(record: ArrayRecord, spec: TrainingSpec) -> Vector:
    # A strategy may compute in float64.
    return flatten({name: array.numpy().astype(np.float32) for name, array in record.items()}, spec.weights)


def _record(vector: Vector, spec: TrainingSpec) -> ArrayRecord:
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(array) for name, array in unflatten(vector, spec.weights).items()})


def _metrics(outcome: LocalOutcome) -> dict[str, int | float]:
    return {"num-examples": outcome.samples, "loss": outcome.loss, "accuracy": outcome.accuracy}
