"""Measurement of a model's speed in a process of its own.

Other models, texts and tasks that ran in a process before leave memory and caches behind, which a fresh process does
not have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slm.errors import RunError
from slm.evaluation.protocols import Settings
from slm.tracking.speeds import InferenceSpeed

ROOT = Path(__file__).resolve().parents[2]  # of the package
ARGUMENTS = ("prompt_tokens", "new_tokens", "rounds", "dtype")


def measure_in_process(folder: Path, settings: Settings) -> InferenceSpeed:
    """Measure the speed of the model in a folder, on the GPU if there is one.

    Raises:
        RunError: if the process fails, with the last line of its output.
    """
    arguments = {name: getattr(settings, name) for name in ARGUMENTS}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder), json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RunError(f"the measurement of speed failed: {lines[-1]}")
    return InferenceSpeed.from_dict(json.loads(done.stdout.splitlines()[-1]))


def main(folder: str, arguments: dict[str, Any]) -> None:
    """Print the speed of a model as JSON."""
    import torch

    from slm.evaluation.load import load_model
    from slm.evaluation.speed import lengthen, measure_inference
    from slm.model.dtypes import DTYPES

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        model = load_model(folder).to(device, DTYPES[arguments["dtype"]])
    else:
        model = load_model(folder, arguments["dtype"])
    lengthen(model, arguments["prompt_tokens"] + arguments["new_tokens"])
    speed = measure_inference(model, **arguments)
    print(json.dumps(asdict(speed)))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
