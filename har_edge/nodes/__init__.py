"""Sensor, stage and sink: pure handlers, and the loop that runs them."""
