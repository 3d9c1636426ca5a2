"""Metrics, protocols and reports; yields rows, prints nothing."""
