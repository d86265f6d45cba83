"""Measurement of a model's speed in a process of its own.

The peak memory of a process includes whatever ran in it before: other models, texts and tasks. A fresh process
holds the model alone, besides Python and torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
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
    return speed_from(json.loads(done.stdout.splitlines()[-1]))


def speed_from(saved: dict[str, Any]) -> InferenceSpeed:
    """Return the speed in an object of JSON."""
    rounds = {name: tuple(saved[name]) for name in ("prefill_seconds", "decode_seconds_per_token")}
    return InferenceSpeed(**{**saved, **rounds})


def main(folder: str, arguments: dict[str, Any]) -> None:
    """Print the speed of a model as JSON."""
    import torch

    from slm.evaluation.load import load_model
    from slm.evaluation.speed import measure_inference
    from slm.model.dtypes import DTYPES

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        model = load_model(folder).to(device, DTYPES[arguments["dtype"]])
    else:
        model = load_model(folder, arguments["dtype"])
    speed = measure_inference(model, **arguments)
    if device == "cpu":
        speed = replace(speed, peak_memory_bytes=_peak_resident_bytes() or speed.peak_memory_bytes)
    print(json.dumps(asdict(speed)))


def _peak_resident_bytes() -> int | None:
    """Return the peak of this process alone; None on systems other than Linux.

    getrusage also counts the process that started this one, as it was before its program was replaced.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("VmHWM:")]
    return int(found[0][1]) * 1024 if found else None


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
