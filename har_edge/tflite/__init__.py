"""A .tflite file as a graph: read, list legal cuts, cut, write; no TensorFlow."""
