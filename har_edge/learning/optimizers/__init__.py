"""The steps of weights: optimizers in NumPy, the learning rate of a step, and over a whole run."""
