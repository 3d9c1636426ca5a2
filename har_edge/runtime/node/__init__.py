"""A node: a device that runs the stages that the plan gives it."""
