"""Power of the designs that would settle a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.formatting import format_number
from analysis.planning.power import DesignPower
from analysis.study_actions.plan import compute_power
from slm.config.hydra import compose_study
from slm.studies.cells import jobs_of
from slm.studies.expand import cells_of


@dataclass(frozen=True)
class StudyPower:
    """Cells, training FLOPs and power of a study of this repository."""

    study: str
    cells: int
    flops: float
    power: DesignPower

    def row(self) -> dict[str, str]:
        """Return a row of a table for people; a refused design has no numbers."""
        power = self.power
        return {
            "study": self.study,
            "cells": str(self.cells),
            "FLOPs": f"{self.flops:.2g}",
            "SE of loss difference, nats": format_number(power.se_level),
            "power at ln(compute multiplier) 0.05 / 0.1": _powers(power.power_kappa, (0.05, 0.1)),
            "SE of exponent difference": format_number(power.se_exponent),
            "power at exponent difference 0.02 / 0.05": _powers(power.power_exponent, (0.02, 0.05)),
            "status": "REFUSED" if power.refusals else "OK",
        }


def _powers(power: dict[float, float] | None, effects: Sequence[float]) -> str:
    return " / ".join(f"{power[effect]:.0%}" for effect in effects) if power else ""


def study_power(study: str) -> StudyPower:
    """Compute the power of a study in conf/study; a study that compares no families has none."""
    config, compose = compose_study([f"study={study}"])
    cells = cells_of(config, compose)
    power = compute_power(cells)
    if power is None:
        raise ValueError(f"study={study} compares no families")
    return StudyPower(study, len(cells), float(sum(job.flops for job in jobs_of(cells))), power)
