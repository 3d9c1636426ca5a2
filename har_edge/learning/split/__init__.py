"""Split training: one model over several devices, each with the weights of its stages."""
