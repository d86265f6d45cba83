"""What a run leaves behind: the run directory, and its mirror at Weights & Biases."""
