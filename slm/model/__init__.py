"""The model alone: no training, no Lightning, no Hydra, no W&B."""
