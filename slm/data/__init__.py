"""From a corpus to batches: sources, tokenizers, shards on disk, and the order of training."""
