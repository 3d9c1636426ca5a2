"""Treat a .tflite file as a graph: read it, list legal cuts, cut it, write slices; without TensorFlow."""
