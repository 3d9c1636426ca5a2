"""One neural network, spread over several small devices that speak MQTT.

    import har_edge

    with har_edge.LocalCluster("int8", stages=3) as cluster:
        cluster.replay("subject7", windows=10)
        for result in cluster.results():
            print(result.stream, result.seq, result.label)

The names below are loaded when they are first used, so that this import costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # a type checker takes it for true; typing itself would cost more than all of this
if TYPE_CHECKING:
    from har_edge.api.model import Model as Model
    from har_edge.api.model import load_model as load_model
    from har_edge.api.model import split as split
    from har_edge.api.sensor import Sensor as Sensor
    from har_edge.api.watch import ResultWatcher as ResultWatcher
    from har_edge.api.watch import watch as watch
    from har_edge.cluster.local_cluster import LocalCluster as LocalCluster
    from har_edge.protocol.results import Result as Result

__version__ = "0.1.0"
# The module of each public name.
_PUBLIC = {
    "LocalCluster": "har_edge.cluster.local_cluster",
    "Model": "har_edge.api.model",
    "Result": "har_edge.protocol.results",
    "ResultWatcher": "har_edge.api.watch",
    "Sensor": "har_edge.api.sensor",
    "load_model": "har_edge.api.model",
    "split": "har_edge.api.model",
    "watch": "har_edge.api.watch",
}
__all__ = [  # written out, so that editors see them
    "LocalCluster",
    "Model",
    "Result",
    "ResultWatcher",
    "Sensor",
    "__version__",
    "load_model",
    "split",
    "watch",
]


def __getattr__(name: str) -> object:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
