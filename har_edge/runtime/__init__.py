"""Everything that runs on a device: sensors, stages, the sink, and nodes that run stages as the plan says."""
