"""An int8 model of a float one: the ranges of its tensors, and the quantized file."""
