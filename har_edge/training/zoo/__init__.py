"""Well-known networks of the literature with random weights from a seed, to try and to measure splits on."""
