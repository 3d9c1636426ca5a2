"""Differentiate a float .tflite: write a training graph of builtin operators, without TensorFlow."""
