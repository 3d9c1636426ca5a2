"""Bridges to other systems, each with its own extra."""
