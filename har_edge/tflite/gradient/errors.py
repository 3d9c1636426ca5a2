"""The error of a model that cannot be trained as asked."""

from har_edge.errors import CutError


class GradientError(CutError):
    """The model is fine, but it, or a slice of it, cannot be differentiated."""
