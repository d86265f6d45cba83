"""What a study must have to be one."""

from __future__ import annotations

from collections.abc import Iterator

from slm.config.schema import Config, StudyConfig
from slm.errors import ConfigError, Problem

NOT_FOR_GRID = {
    "size", "seed", "family", "model", "runs_dir", "cache_dir", "rerun", "action",
}  # fmt: skip
NOT_FOR_GRID_SECTIONS = {"budget", "study", "plan"}


def check_study(config: Config) -> None:
    """Raise a ConfigError that lists what a study lacks, or what contradicts itself in it."""
    problems = [
        *_missing(config.study),
        *_grid(config.study),
        *_contrast(config.study),
        *_rates(config),
    ]
    if not config.study.families and not config.study.sizes and not config.study.models:
        cause = Problem("study", config.study.name, "is not a study", "try study=demo")
        problems.insert(0, cause)
    if problems:
        raise ConfigError(problems)


def _missing(study: StudyConfig) -> Iterator[Problem]:
    if not study.families:
        rule = "a sweep needs at least one"
        yield Problem("study.families", "[]", rule, "for example [deep_thin]")
    if not study.seeds:
        yield Problem("study.seeds", "[]", "a sweep needs at least one", "for example [0]")
    if not study.sizes and not study.models:
        fix = "for example study.sizes=[128k], or study.models=[mobilellm_125m]"
        yield Problem("study.sizes", "[]", "a sweep needs at least one rung", fix)
    if not (study.tokens_per_param or study.tokens or study.flops):
        fix = "for example study.tokens_per_param=[5], or study.tokens=[1b]"
        yield Problem("study.tokens_per_param", "[]", "a sweep needs at least one budget", fix)
    kinds = {k: getattr(study, k) for k in ("tokens_per_param", "tokens", "flops")}
    given = [kind for kind, values in kinds.items() if values]
    if len(given) > 1:
        shown = ", ".join(f"{kind}: {list(kinds[kind])}" for kind in given)
        rule = f"has budgets of {len(given)} kinds, and a study has them in one unit"
        fix = " ".join(f"study.{kind}=[]" for kind in given[:-1])
        yield Problem("study", shown, rule, f"for example {fix}")
    if study.sizes and study.models:
        rule = "rungs are either sizes or models; study.sizes has some too"
        yield Problem("study.models", list(study.models), rule, "set one of them to []")


def _grid(study: StudyConfig) -> Iterator[Problem]:
    for key, values in study.grid.items():
        if not values:
            yield Problem(f"study.grid.{key}", "[]", "needs values", "remove it")
        if key in NOT_FOR_GRID or key.partition(".")[0] in NOT_FOR_GRID_SECTIONS:
            rule = "the study has a place of its own for this, or it is no part of a run"
            yield Problem(f"study.grid.{key}", list(values), rule, "remove it")


def _contrast(study: StudyConfig) -> Iterator[Problem]:
    named = study.contrast
    if not named:
        return
    shown = list(named)
    if len(named) != 2 or len(set(named)) != 2:
        yield Problem("study.contrast", shown, "names two families, the deeper first")
    for name in sorted(set(named) - set(study.families)):
        listed = ", ".join(study.families) or "none"
        yield Problem("study.contrast", shown, f"{name} is no family of the study", listed)


def _rates(config: Config) -> Iterator[Problem]:
    study = config.study
    kind = config.parametrization.kind
    policy = study.lr_policy
    if policy == "transfer" and kind != "completep":
        rule = f"a rate is carried over width and depth by completep alone, not by {kind}"
        fix = "parametrization=completep, or study.lr_policy=tuned or fixed"
        yield Problem("study.lr_policy", policy, rule, fix)
    if policy == "tuned" and "optimizer.lr" in study.grid:
        rule = "the policy finds the rate of each shape, and study.grid varies it too"
        yield Problem("study.lr_policy", policy, rule, "fixed, for a grid of rates")
