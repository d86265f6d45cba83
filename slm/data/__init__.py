"""Data: corpora, tokenizers, shards on disk, and training batches in a reproducible order."""
