"""Everything that a user sets: the pipeline file, the task of a model, and the catalogue of models."""
