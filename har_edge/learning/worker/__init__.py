"""The worker of a training: what a device computes in a round, and the thread in which it does."""
