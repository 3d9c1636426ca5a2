"""Measurements on the test bed: what splitting a model over devices gives, and whether the planner foresaw it."""
