"""Files that a run writes: the run directory, and its mirror at Weights & Biases."""
