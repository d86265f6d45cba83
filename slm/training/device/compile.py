"""Whether and how the blocks of a run are compiled."""

from __future__ import annotations

import logging
import os
import shutil
import sys

from slm.errors import ConfigError, Problem
from slm.model.transformer import Transformer
from slm.run.spec import RunSpec

log = logging.getLogger(__name__)
MIN_CPU_FLOPS = 2e13
MIN_GPU_STEPS = 1000


def compile_blocks(model: Transformer, spec: RunSpec, accelerator: str) -> None:
    """Compile every block in place, if `should_compile`; names of parameters stay as they are.

    Blocks of a shape share one piece of compiled code, and torch keeps it on disk for later processes.

    Raises:
        ConfigError: for trainer.compile=on where there is no C++ compiler.
    """
    if not should_compile(spec, accelerator):
        return
    if cxx_compiler() is None:
        if spec.config.trainer.compile == "on":
            rule = "torch.compile needs a C++ compiler, and none is found"
            raise ConfigError([Problem("trainer.compile", "on", rule, "auto does without")])
        log.info("blocks are not compiled: no C++ compiler is found")
        return
    for block in model.blocks:
        # Dropout draws what it would draw without being compiled.
        block.compile(dynamic=False, options={"fallback_random": True})


def should_compile(spec: RunSpec, accelerator: str) -> bool:
    """`trainer.compile`; auto means where it pays.

    Compiling takes about 15 s on CPU and saves a fifth of a step there, so a run has to be one of
    minutes: MIN_CPU_FLOPS are about two on one core. On a GPU steps are a matter of launching
    kernels, and all but tiny counts of them pay.

    It follows from the config, not from what is left of a run, so that one that goes on takes the
    same steps; and from the budget of the shortest branch, so that branches of a trunk do.
    """
    choice = spec.config.trainer.compile
    if choice != "auto":
        return choice == "on"
    share = (spec.config.schedule.warmup_budget_tokens or spec.tokens) / spec.tokens
    if accelerator == "gpu":
        return spec.steps * share >= MIN_GPU_STEPS
    return spec.flops * share >= MIN_CPU_FLOPS


def cxx_compiler() -> str | None:
    """Where the compiler is that torch would call."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX") or default)
