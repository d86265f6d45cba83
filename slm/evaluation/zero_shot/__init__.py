"""Zero-shot tasks: multiple choice and last-word prediction, scored through lm-eval."""
