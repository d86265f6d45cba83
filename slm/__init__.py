"""Deep or wide, below one billion parameters, under matched compute."""

__version__ = "0.1.0"
