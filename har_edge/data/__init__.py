"""Samples in: recordings, windows, replay."""
