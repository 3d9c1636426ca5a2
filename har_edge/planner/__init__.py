"""What runs where: partitioning, the task of a model, the pipeline."""
