"""Messages, topics and the buses that carry them."""
