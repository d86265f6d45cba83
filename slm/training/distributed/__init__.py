"""Processes that train one run together."""
