"""Studies: tables of matched-compute cells, and the scheduling of their runs. Torch-free."""
