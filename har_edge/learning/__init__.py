"""Training on the devices themselves: workers, the server that adds what they send, optimisers and compression."""
