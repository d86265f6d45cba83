"""Device of a process: accelerator, memory, compilation and random number generators."""
