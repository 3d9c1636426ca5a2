"""Measurements of whole deployments: the gain of splitting a model over devices, and recovery from faults."""
