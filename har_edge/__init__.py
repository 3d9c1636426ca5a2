"""One neural network, spread over several small devices that speak MQTT."""

__version__ = "0.1.0"
