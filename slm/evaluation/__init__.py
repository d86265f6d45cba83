"""Evaluation of trained models on any text, and their export."""
