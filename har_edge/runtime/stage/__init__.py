"""A stage: one slice of the model, run for every window whose parts have come."""
