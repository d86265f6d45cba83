"""train.py whose rank 1 raises an error before a training step; torchrun starts it.

python -m tests.benchmarks.acceptance.failing_rank MARKER STEP [key=value ...]
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from tests.benchmarks import engine
from tests.benchmarks.acceptance.rows import ROOT


def main() -> None:
    marker, step = Path(sys.argv[1]), int(sys.argv[2])

    def error() -> Exception:
        marker.touch()
        return RuntimeError("injected error")

    if os.environ["RANK"] == "1":
        engine.fail_before_step(step, error)
    sys.argv = ["train.py", *sys.argv[3:]]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


if __name__ == "__main__":
    main()
