"""The transformer, its loss, initialisation and checkpoints; independent of training and its tools."""
