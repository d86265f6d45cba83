"""Measurement of the speed of all shapes of a study."""
