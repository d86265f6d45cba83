"""Compilation of a run's blocks with torch.compile."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from slm.errors import ConfigError, Problem
from slm.model.loss import compile_chunk_loss
from slm.model.transformer import Transformer
from slm.run.compile_rule import CompileDecision, compile_decision
from slm.run.spec import RunSpec

log = logging.getLogger(__name__)


def compile_blocks(model: Transformer, spec: RunSpec, accelerator: str) -> None:
    """Compile every block in place if `decide_compile` says so; the names of parameters stay the same.

    Blocks of a shape share one piece of compiled code, and torch keeps it on disk for later processes.

    Raises:
        ConfigError: if trainer.compile=on and the machine cannot compile.
    """
    decision = decide_compile(spec, accelerator)
    if not decision.compiles:
        if compile_decision(spec, accelerator).compiles:  # but the machine cannot
            log.info("blocks are not compiled: %s", decision.reason)
        return
    if spec.config.trainer.strategy == "ddp":
        # DDPOptimizer would cut each block's graph where a gradient bucket ends. It exists for models that are
        # compiled as one graph; here every block is a graph of its own, so all-reduces already overlap.
        from torch._dynamo import config as dynamo_config  # takes a second to import

        dynamo_config.optimize_ddp = False
    if accelerator == "gpu":
        model.chunk_loss = compile_chunk_loss()
    for block in model.blocks:
        # With fallback_random, dropout draws the same numbers as without compilation.
        block.compile(dynamic=False, options={"fallback_random": True})


def decide_compile(spec: RunSpec, accelerator: str) -> CompileDecision:
    """Return whether the blocks are compiled on this machine, and why.

    Raises:
        ConfigError: if trainer.compile=on and the machine cannot compile.
    """
    decision = compile_decision(spec, accelerator)
    missing = missing_compiler(accelerator) if decision.compiles else None
    if missing is None:
        return decision
    if spec.config.trainer.compile == "on":
        rule = f"torch.compile needs {missing}"
        raise ConfigError([Problem("trainer.compile", "on", rule, "install it, or use auto")])
    return CompileDecision(False, f"torch.compile needs {missing}")


def missing_compiler(accelerator: str) -> str | None:
    """Return what torch.compile lacks on this machine to build its kernels; None if nothing.

    On a CPU, inductor builds kernels with a C++ compiler. On a GPU, Triton builds its launchers with a C
    compiler. Both include Python.h, which some distributions have in a separate package.
    """
    if accelerator == "gpu":
        found = _first_command(os.environ.get("CC"), "gcc", "clang")
        if found is None:
            return "a C compiler (gcc or clang, or the one that CC names), which is not found"
    else:
        default = "clang++" if sys.platform == "darwin" else "g++"
        if _first_command(os.environ.get("CXX"), default) is None:
            return f"a C++ compiler ({default}, or the one that CXX names), which is not found"
    folders = python_include_folders()
    if not any((folder / "Python.h").exists() for folder in folders):
        return f"Python.h, which is not in {folders[0]}: the package python3-dev, on Debian"
    return None


def _first_command(named: str | None, *defaults: str) -> str | None:
    """Return the path of the command that a variable names, else of the first default that exists."""
    names = (named,) if named else defaults
    return next((path for name in names if (path := shutil.which(name))), None)


def python_include_folders() -> list[Path]:
    """Return where inductor and Triton look for Python.h: Python's own folder, then CPATH."""
    # Debian's default scheme, posix_local, names a folder without headers.
    own = sysconfig.get_path("include", scheme="posix_prefix")
    named = [path for path in os.environ.get("CPATH", "").split(os.pathsep) if path]
    return [Path(own), *map(Path, named)]
