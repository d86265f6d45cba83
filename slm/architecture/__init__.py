"""Shapes of models and their cost in parameters, FLOPs and memory. Torch-free."""
