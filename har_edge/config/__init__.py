"""What a user sets: the pipeline file, what a model is for, and the catalogue of models."""
