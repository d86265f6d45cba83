"""Runs that are resolved from a config: identity, learning rate schedule, micro-batches. Torch-free."""
