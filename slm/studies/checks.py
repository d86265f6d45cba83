"""Validation of the study section of a config."""

from __future__ import annotations

from collections.abc import Iterator

from slm.config.schema import Config, OptimizerConfig, StudyConfig
from slm.errors import ConfigError, Problem

# Keys that study.grid cannot vary.
RESERVED_KEYS = {"size", "seed", "family", "model", "runs_dir", "cache_dir", "rerun", "action"}
RESERVED_SECTIONS = {"budget", "study", "plan", "design"}


def check_study(config: Config) -> None:
    """Raise a ConfigError that lists all missing and contradictory settings of a study."""
    problems = [
        *_missing(config.study),
        *_aspect_ratios(config.study),
        *_grid(config.study),
        *_contrast(config.study),
        *_rates(config),
    ]
    if not config.study.all_families and not config.study.sizes and not config.study.models:
        cause = Problem("study", config.study.name, "is not a study", "try study=demo")
        problems.insert(0, cause)
    if problems:
        raise ConfigError(problems)


def _missing(study: StudyConfig) -> Iterator[Problem]:
    if not study.all_families:
        fix = "for example study.families=[deep_thin], or study.aspect_ratios=[4,32]"
        yield Problem("study.families", "[]", "a study needs at least one family", fix)
    if not study.seeds:
        fix = "for example study.seeds=[0]"
        yield Problem("study.seeds", "[]", "a study needs at least one seed", fix)
    if not study.sizes and not study.models:
        fix = "for example study.sizes=[128k], or study.models=[mobilellm_125m]"
        yield Problem("study.sizes", "[]", "a study needs at least one rung", fix)
    if not (study.tokens_per_param or study.tokens or study.flops):
        fix = "for example study.tokens_per_param=[5], or study.tokens=[1b]"
        yield Problem(
            "study.tokens_per_param", "[]", "a study needs at least one token budget", fix
        )
    kinds = {k: getattr(study, k) for k in ("tokens_per_param", "tokens", "flops")}
    given = [kind for kind, values in kinds.items() if values]
    if len(given) > 1:
        shown = ", ".join(f"{kind}: {list(kinds[kind])}" for kind in given)
        rule = f"sets token budgets in {len(given)} units, use one of them: {shown}"
        fix = " ".join(f"study.{kind}=[]" for kind in given[:-1])
        yield Problem("study", study.name, rule, f"for example {fix}")
    if study.sizes and study.models:
        rule = "study.sizes is set too, but rungs are either sizes or models"
        yield Problem("study.models", list(study.models), rule, "set one of them to []")


def _aspect_ratios(study: StudyConfig) -> Iterator[Problem]:
    key, ratios = "study.aspect_ratios", study.aspect_ratios
    for ratio in dict.fromkeys(ratios):
        name = f"aspect_{ratio:g}"
        if ratio != float(f"{ratio:g}"):
            rule = "has more than the 6 digits that the name of its family shows"
            yield Problem(key, ratio, rule, f"nearest: {ratio:g}")
        if ratios.count(ratio) > 1:
            yield Problem(key, f"{ratio:g}", "is listed more than once", "list it once")
        if name in study.families:
            rule = f"its family {name} is in study.families too"
            yield Problem(key, f"{ratio:g}", rule, "remove it from one of them")
    if ratios and "family.aspect_ratio" in study.grid:
        rule = "study.grid varies family.aspect_ratio too"
        fix = "list all ratios in study.aspect_ratios, and remove the key from study.grid"
        yield Problem(key, [f"{ratio:g}" for ratio in ratios], rule, fix)


def _grid(study: StudyConfig) -> Iterator[Problem]:
    for key, values in study.grid.items():
        if not values:
            yield Problem(f"study.grid.{key}", "[]", "needs values", "add values or remove the key")
        if key in RESERVED_KEYS or key.partition(".")[0] in RESERVED_SECTIONS:
            rule = "study.grid cannot vary this key: the study sets it, or it does not change the result"
            yield Problem(f"study.grid.{key}", list(values), rule, "remove the key")


def _contrast(study: StudyConfig) -> Iterator[Problem]:
    named = study.contrast
    if not named:
        return
    shown = list(named)
    if len(named) != 2 or len(set(named)) != 2:
        yield Problem("study.contrast", shown, "must list two families, the deeper one first")
    for name in sorted(set(named) - set(study.all_families)):
        listed = f"families: {', '.join(study.all_families) or 'none'}"
        yield Problem("study.contrast", shown, f"{name} is not a family of the study", listed)


def _rates(config: Config) -> Iterator[Problem]:
    study = config.study
    kind = config.parametrization.kind
    policy = study.lr_policy
    if policy == "transfer" and kind != "completep":
        rule = f"only completep transfers a learning rate across width and depth, not {kind}"
        fix = "use parametrization=completep, or study.lr_policy=tuned or fixed"
        yield Problem("study.lr_policy", policy, rule, fix)
    if policy == "tuned" and "optimizer.lr" in study.grid:
        rule = "tunes the learning rate of each shape, but study.grid varies optimizer.lr too"
        fix = "use study.lr_policy=fixed for a grid of learning rates"
        yield Problem("study.lr_policy", policy, rule, fix)
    if study.lr_reference is not None and not study.lr_tokens_exponent:
        rule = "is used only with a rule for the learning rate"
        fix = "set study.lr_tokens_exponent, or optimizer.lr instead"
        yield Problem("study.lr_reference", study.lr_reference, rule, fix)
    elif study.lr_reference is not None and config.optimizer.lr != OptimizerConfig().lr:
        rule = f"is not used, because study.lr_reference={study.lr_reference:g} gives the rates"
        fix = (
            "set study.lr_reference instead, or study.lr_reference=null study.lr_tokens_exponent=0"
        )
        yield Problem("optimizer.lr", config.optimizer.lr, rule, fix)
    if policy == "tuned" and study.lr_tokens_exponent:
        rule = "tunes the learning rate of each shape, but study.lr_tokens_exponent sets it too"
        yield Problem("study.lr_policy", policy, rule, "set study.lr_tokens_exponent=0")
