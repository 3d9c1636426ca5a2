"""What runs on a device: sensors, stages, the sink, and nodes that take the stages they are given."""
