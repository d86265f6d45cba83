"""Commands on run directories: list, compare and remove runs, and plot their losses."""
