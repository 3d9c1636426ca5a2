"""Measurements of a broker and of the link to it."""
