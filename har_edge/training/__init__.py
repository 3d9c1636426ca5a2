"""The one room that imports TensorFlow."""
