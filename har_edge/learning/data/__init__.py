"""The labelled samples of a training: where they come from, how they are checked, cut and shared out."""
