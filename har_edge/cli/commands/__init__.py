"""The commands of `har-edge`, one module each."""
