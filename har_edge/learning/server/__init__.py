"""The server of a training: it gives samples out, adds what workers send, and keeps the state of the run."""
