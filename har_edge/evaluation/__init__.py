"""Metrics, protocols and reports; it yields rows and prints nothing."""
