"""A study as a table of matched-compute cells. Torch-free."""
