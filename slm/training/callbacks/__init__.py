"""One habit of the training loop per file."""
