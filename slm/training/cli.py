"""`python -m slm coordinates`."""

from __future__ import annotations

from pathlib import Path

from slm.training.coordinate_check import write_coordinates


def coordinates(out: Path) -> None:
    """Run the coordinate checks of all parametrizations and write them to a JSON file."""
    write_coordinates(out)
    print(f"wrote {out}; to plot it, run: python -m analysis {out} --of coordinates --out DIR")
