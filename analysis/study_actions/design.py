"""`action=design`: search the best designs of a study at a given cost, and print one as a study file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml
from omegaconf import OmegaConf

from analysis.planning.power import DesignPower
from analysis.planning.search import (
    Assumptions,
    Candidate,
    Search,
    candidate_config,
    compose_ratio,
    search_designs,
)
from analysis.study_actions.plan import compute_power, law_of
from slm.config.hydra import CONF_DIR
from slm.config.schema import Config
from slm.console import Column, FittedTable, console, print_lines
from slm.errors import ConfigError, DesignRefused, Problem
from slm.formatting import TIME_UNITS, in_one_unit, scientific, short_count
from slm.run.spec import RunSpec
from slm.studies.cells import Cell, contrast_of, jobs_of
from slm.studies.expand import cells_of
from slm.studies.plan_tables import MIN_STEPS
from slm.studies.throughput import SECONDS_PER_HOUR, Throughput, load_throughput

SHOWN = 5
STEP = 1.7  # largest sizes of the designs that are shown differ at least by this factor
TARGET = 0.02  # exponent difference, with a power of 80%
# Keys of the study file that the design replaces.
REPLACED = (
    "name", "question", "families", "contrast", "aspect_ratios", "skip_missing_shapes", "models", "sizes",
    "tokens_per_param", "tokens", "flops", "seeds", "anchor_seeds", "anchor_sizes", "min_steps", "claim", "results",
    "lr_audit",
)  # fmt: skip
MACHINE = (
    "action",
    "design",
    "study",
    "hydra",
    "runs_dir",
    "cache_dir",
)  # not part of a study file


def show_designs(
    config: Config, cells: Sequence[Cell], study_option: str, arguments: Sequence[str]
) -> None:
    """Print the best designs by largest size, and the study file of the recommended one.

    Args:
        config, cells: the study that gives recipe, contrast, budgets and largest size.
        study_option: its name in conf/study.
        arguments: overrides of the command line; they become part of the study file.

    Raises:
        ConfigError: if the cost is not given, its unit is unknown, or the families have no aspect ratio.
        DesignRefused: if no design that identifies an exponent costs so little.
    """
    out = console()
    throughput = load_throughput(cells)
    _check(config, cells, throughput)
    wanted = config.design
    contrast = _aspect_ratios(cells)
    largest = wanted.largest or max(config.study.sizes)

    def step_cost(spec: RunSpec, batch: int) -> float:
        flops = float(batch * spec.flops_per_token)
        if wanted.hours is None:
            return flops
        sized = replace(spec, batch_sequences=batch // spec.shape.seq_len)
        rate = throughput.flops_per_second(sized)
        assert rate is not None  # `_check`
        return flops / rate / SECONDS_PER_HOUR

    assumed = Assumptions(law_of(config), config.plan.sigma, config.plan.tau, step_cost)
    limit = wanted.hours or wanted.flops
    assert limit is not None  # `_check`
    found = search_designs(config, contrast, assumed, limit=limit, largest=largest)
    if not found.best:
        raise DesignRefused(_too_small(found, limit, config))
    shown = _spaced(found.best)
    planned = [(each, *_plan(config, each, contrast)) for each in shown]
    out.print(_table(planned, throughput, config))
    within = [row for row in planned if (row[2].mde80_exponent or 1.0) <= TARGET]
    chosen = within[0] if within else min(planned, key=lambda row: row[2].mde80_exponent or 1.0)
    print_lines(out, [_reason(chosen[0], is_within=bool(within))])
    name = f"{config.study.name}_designed"
    print(f"\nconf/study/{name}.yaml:\n")
    print(study_file(study_option, arguments, chosen[0], contrast, name))


def _check(config: Config, cells: Sequence[Cell], throughput: Throughput) -> None:
    design = config.design
    problems = []
    if (design.flops is None) == (design.hours is None):
        rule = "action=design needs one cost of the study, in FLOPs or in device-hours"
        value = None if design.flops is None else f"flops={design.flops:g}, hours={design.hours:g}"
        problems.append(Problem("design", value, rule, "set one of design.flops and design.hours"))
    if design.hours is not None and throughput.flops_per_second(cells[0].spec) is None:
        rule = "the throughput of a device is unknown"
        fix = "set plan=h100 or plan.device_flops, or measure it with action=plan plan.probe=true"
        problems.append(Problem("design.hours", design.hours, rule, fix))
    if not config.study.sizes:
        rule = "action=design chooses sizes, but the rungs of this study are presets"
        problems.append(Problem("study.models", list(config.study.models), rule, "set study.sizes"))
    if problems:
        raise ConfigError(problems)


def _aspect_ratios(cells: Sequence[Cell]) -> tuple[float, float]:
    """Return the aspect ratios of the two families of the contrast."""
    by_family = {cell.family: cell.spec.config.family.aspect_ratio for cell in cells}
    names = contrast_of(cells)
    low, high = (by_family[name] for name in names)
    if low is None or high is None or low >= high:
        rule = "action=design compares aspect ratios, but these families do not differ in theirs"
        raise ConfigError([Problem("study.contrast", list(names), rule)])
    return low, high


def _too_small(found: Search, limit: float, config: Config) -> str:
    unit = "FLOPs" if config.design.hours is None else "device-hours"
    largest = config.design.largest or max(config.study.sizes)
    if not math.isfinite(found.cheapest_exponent):
        return (
            f"no sizes over a decade up to {largest:,} have matched shapes and runs of {MIN_STEPS} steps; raise "
            "design.largest, or lower optimizer.global_batch_tokens"
        )
    return (
        f"{limit:.3g} {unit} are too few: with sizes up to {largest:,} the cheapest design that identifies an exponent "
        f"difference needs {found.cheapest_exponent:.3g} {unit}, and a level {found.cheapest_level:.3g}; raise the "
        "cost, or lower design.largest"
    )


def _spaced(best: Mapping[int, Candidate]) -> list[Candidate]:
    """Return the designs of the largest sizes, from large to small."""
    shown: list[Candidate] = []
    for size, candidate in best.items():
        if not shown or size * STEP <= shown[-1].sizes[-1]:
            shown.append(candidate)
    return shown[:SHOWN]


def _plan(
    config: Config, candidate: Candidate, contrast: tuple[float, float]
) -> tuple[list[Cell], DesignPower]:
    study = candidate_config(config, candidate, contrast)
    cells = cells_of(study, compose_ratio(study))
    power = compute_power(cells)
    assert power is not None
    return cells, power


def _table(
    planned: Sequence[tuple[Candidate, list[Cell], DesignPower]],
    throughput: Throughput,
    config: Config,
) -> FittedTable:
    limit = (
        f"{scientific(config.design.flops)} FLOPs"
        if config.design.flops is not None
        else f"{config.design.hours:g} device-hours"
    )
    candidates = [candidate for candidate, _, _ in planned]
    powers = [power for _, _, power in planned]
    jobs = [jobs_of(cells) for _, cells, _ in planned]
    seconds = [[throughput.seconds(job) for job in group] for group in jobs]
    totals = [None if None in each else sum(filter(None, each)) for each in seconds]
    unit, times = in_one_unit(totals, TIME_UNITS)
    shares = [(power.power_exponent or {}).values() for power in powers]
    columns = [
        Column(
            "sizes", [", ".join(map(short_size, each.sizes)) for each in candidates], wraps=True
        ),
        Column("aspect ratios", [_listed(each.aspect_ratios) for each in candidates], wraps=True),
        Column(
            "tokens_\nper_param", [_listed(each.tokens_per_param) for each in candidates], rank=3
        ),
        Column("batch\ntokens", [short_count(each.batch_tokens) for each in candidates], rank=5),
        Column("seeds", [str(each.seeds) for each in candidates], rank=6),
        Column("cells", [str(len(cells)) for _, cells, _ in planned], rank=1),
        Column("FLOPs", [scientific(sum(job.flops for job in group)) for group in jobs], rank=1),
        Column(f"device\n{unit}", times, rank=1),
        Column("df", [str(power.df) for power in powers], rank=4),
        Column("SE of\nd-alpha", [f"{power.se_exponent:.4f}" for power in powers], rank=2),
        Column("MDE\n(80%)", [f"{power.mde80_exponent:.4f}" for power in powers]),
        Column(
            "power at\n.01/.02/.05", ["/".join(f"{one:.0%}" for one in each) for each in shares]
        ),
        Column("MDE of\nln kappa", [f"{power.mde80_log_kappa:.3f}" for power in powers], rank=2),
    ]
    return FittedTable(columns, f"Best designs up to {limit}, by their largest size")


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _reason(candidate: Candidate, *, is_within: bool) -> str:
    size = short_size(candidate.sizes[-1])
    if is_within:
        return f"largest size {size}: the largest with 80% power at an exponent difference of {TARGET:g}"
    return f"largest size {size}: the smallest MDE; no design has 80% power at an exponent difference of {TARGET:g}"


def study_file(
    study_option: str,
    arguments: Sequence[str],
    candidate: Candidate,
    contrast: tuple[float, float],
    name: str,
) -> str:
    """Return the study file of a design: the base study with overrides, and with the keys of the design."""
    path = CONF_DIR / "study" / f"{study_option}.yaml"
    base = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    assert isinstance(base, dict)
    tree: dict[str, Any] = {"defaults": list(base.pop("defaults", [])), **base}
    for argument in arguments:
        _apply(tree, argument.lstrip("+"))
    study = {key: value for key, value in tree.pop("study", {}).items() if key not in REPLACED}
    low, high = (short_size(size) for size in (candidate.sizes[0], candidate.sizes[-1]))
    study = {
        "name": name,
        "question": f"From {low} to {high} parameters, which aspect ratio is better, and does it change with size?",
        "claim": "exponents",
        "aspect_ratios": [_plain(ratio) for ratio in candidate.aspect_ratios],
        "skip_missing_shapes": True,
        "contrast": [f"aspect_{ratio:g}" for ratio in contrast],
        "sizes": [short_size(size) for size in candidate.sizes],
        "tokens_per_param": [_plain(value) for value in candidate.tokens_per_param],
        "seeds": list(range(candidate.seeds)),
        **study,
    }
    if not tree["defaults"]:
        del tree["defaults"]
    optimizer = {**tree.pop("optimizer", {}), "global_batch_tokens": candidate.batch_tokens}
    content = {**{k: v for k, v in tree.items() if k == "defaults"}, "study": study}
    content |= {"optimizer": optimizer, **{k: v for k, v in tree.items() if k != "defaults"}}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)
    return f"# @package _global_\n{text}"


def _apply(tree: dict[str, Any], argument: str) -> None:
    """Add an override of the command line to the tree of a study file."""
    key, _, value = argument.partition("=")
    if (CONF_DIR / key).is_dir() and key != "study":
        tree["defaults"] = [each for each in tree["defaults"] if f"override /{key}" not in each]
        tree["defaults"].append({f"override /{key}": value})
    elif key.partition(".")[0] not in MACHINE or key.startswith("study."):
        # OmegaConf reads a value as Hydra does: 4e-3 is a number.
        node = OmegaConf.create(tree)
        OmegaConf.update(node, key, OmegaConf.create(f"value: {value}").value, force_add=True)
        tree |= OmegaConf.to_container(node)


def short_size(size: int) -> str:
    """Format 1_200_000 as 1.2m."""
    for suffix, factor in (("b", 10**9), ("m", 10**6), ("k", 10**3)):
        if size >= factor:
            return f"{size / factor:g}{suffix}"
    return str(size)


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value
