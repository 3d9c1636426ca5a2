"""The part of the app at the SuperLink: any strategy of Flower's, from the weights of the configured model."""

from flwr.app import Context
from flwr.serverapp import strategy
from flwr.serverapp.strategy import Strategy

from har_edge.integrations.flower import make_server_app


def make_strategy(context: Context) -> Strategy:
    """Build the strategy that the configuration names, for all nodes."""
    nodes = int(context.run_config["nodes"])
    build = getattr(strategy, str(context.run_config["strategy"]))
    return build(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)


app = make_server_app(make_strategy)
