"""The text of README.md and docs/: overrides exist, Python and YAML examples work, links lead to files."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from slm.commands import COMMANDS
from slm.config.hydra import CONF_DIR
from slm.config.schema import field_descriptions
from slm.formatting import short_count
from tests.conftest import ROOT
from tests.pages import PAGES, Page, all_commands

OVERRIDE = re.compile(r"\+{0,2}([a-z][\w./]*)=(.+)")
# Keys whose last part is a name of the user's choice.
OPEN_KEYS = "ladder.aspect_ratios.", "study.grid.", "plan.law."
# Settings of `python -m slm`, and of launchers, that the text mentions without their command.
OTHER_KEYS = {
    "out", "run", "text", "stride", "window", "jobs_per_gpu", "max_num_timeout", "format", "prompt", "samples",
    "temperature", "top_k", "top_p", "column", "document", "dtype", "limit", "new_tokens", "prompt_tokens", "protocol",
    "rounds", "start_token", "task_data", "tasks",
}  # fmt: skip
NOT_OVERRIDES = {"key=value", "group=option", "devices=1"}
PYTHON_VALUES = ("=True", "=False")  # of arguments in Python
RUN_OF_TESTS = ROOT / "tests/data/runs_v1/single/deep_thin-L6-d32-0.041Mtok-s1-feafb7cc"
EXECUTED_ELSEWHERE = {"docs/lightning.md"}  # tests/slm/training/test_lightning.py
KEYS = {key for key, _, _ in field_descriptions()}
MAX_README_LINES = 150
RUN_HASH = re.compile(r"[0-9a-f]{8}")


def test_readme_is_short() -> None:
    assert len(PAGES[0].text.splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize(
    ("study", "page"),
    [
        ("micro", "README.md"),
        ("micro", "docs/index.md"),
        ("demo", "docs/quickstart.md"),
    ],
)
def test_result_in_the_text_is_that_of_the_committed_report(study: str, page: str) -> None:
    path = ROOT / "analysis" / "examples" / study / "results.json"
    comparison = json.loads(path.read_text())["comparison"]
    block = comparison["block"]
    low, high = block["level_ci"]
    text = " ".join((ROOT / page).read_text().split())
    assert f"{block['level']:+.3f} nats/token" in text
    assert f"95% CI [{low:+.3f}, {high:+.3f}]" in text
    assert f"`{comparison['verdict']['word']}`" in text


def test_runs_named_in_examples_are_those_of_the_demo() -> None:
    lines = (ROOT / "analysis/examples/demo/results.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    known = {run["run_id"].rpartition("-")[2] for run in runs}
    known |= {
        f"{run['family']} {short_count(run['size'])}, {short_count(run['tokens'])} tokens"
        for run in runs
    }
    words = [word for c in all_commands() if c.name == "slm" for word in c.arguments]
    words += [
        w
        for name in ("runs diff", "runs rm")
        for w in shlex.split(" ".join(COMMANDS[name].examples))
    ]
    named = {word for word in words if RUN_HASH.fullmatch(word) or word.endswith(" tokens")}
    assert len(named) >= 4 and named <= known


def mentioned_overrides() -> list[str]:
    """Return the overrides in inline code that consists of overrides alone."""
    found = []
    for code in (code for page in PAGES for code in page.inline_code):
        try:
            words = shlex.split(code)
        except ValueError:
            continue
        if all(OVERRIDE.fullmatch(word) for word in words):
            found += words
    return sorted(o for o in set(found) - NOT_OVERRIDES if not o.endswith(PYTHON_VALUES))


def test_mentioned_overrides_exist() -> None:
    assert not [override for override in mentioned_overrides() if not _exists(override)]
    assert len(mentioned_overrides()) > 100


def _exists(override: str) -> bool:
    match = OVERRIDE.fullmatch(override)
    assert match is not None
    key, value = match.groups()
    if key.startswith("hydra/") or (CONF_DIR / key).is_dir():
        return value.isupper() or _is_option(key, value)
    return key in OTHER_KEYS or key.startswith(("hydra.", *OPEN_KEYS)) or key in KEYS


def _is_option(group: str, value: str) -> bool:
    if group.startswith("hydra/"):
        return value in {"basic", "local", "optuna", "ray", "slurm"}
    return all((CONF_DIR / group / f"{option}.yaml").exists() for option in value.split(","))


YAML_BLOCKS = [block for page in PAGES for block in page.blocks("yaml")]


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=lambda block: block.splitlines()[0])
def test_example_file_has_known_keys(block: str) -> None:
    path = Path(block.splitlines()[0].removeprefix("# "))
    content = yaml.safe_load(block)
    assert path.suffix == ".yaml" and not (ROOT / path).exists()
    if path.parent == Path("conf/hydra/launcher"):
        assert content["_target_"].startswith("hydra_plugins.slm_study.")
        return
    assert (ROOT / path.parent).is_dir()
    if "@package _global_" not in block:
        content = {path.parent.name: content}
    assert {f"{name}.{key}" for name, keys in content.items() for key in keys} <= KEYS


WITH_PYTHON = [p for p in PAGES if p.blocks("python") and p.name not in EXECUTED_ELSEWHERE]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_code_of_a_page_runs(
    page: Page,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run the blocks of a page one after another; a `# word: reason` after a print is what it prints."""
    (tmp_path / "analysis").symlink_to(ROOT / "analysis")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(page.blocks("python")).replace("runs/single/RUN", str(RUN_OF_TESTS))
    exec(compile(code, page.name, "exec"), {"__name__": page.path.stem})
    printed = capsys.readouterr().out.splitlines()
    for expected in re.findall(r"print\(.*\)  # (\w+): ", code):
        assert expected in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Page) -> None:
    """The build of the site checks links between its pages; this checks them as a git host shows them."""
    targets = [link.partition("#")[0] for link in page.links if "://" not in link]
    generated = {"changelog.md"}
    missing = [t for t in targets if t and not (page.path.parent / t).exists()]
    assert not set(missing) - generated


REPOSITORY_PATH = re.compile(r"(?:slm|analysis|tests|conf|hydra_plugins|docs)/[\w./]*")
TEST_FILE, TEST_NAME = re.compile(r"test_\w+\.py"), re.compile(r"test_\w+")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_tests_exist(page: Page) -> None:
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    for code in page.inline_code:
        if REPOSITORY_PATH.fullmatch(code):
            assert (ROOT / code).exists(), code
        elif TEST_FILE.fullmatch(code):
            assert code in sources, code
        elif TEST_NAME.fullmatch(code):
            assert any(f"def {code}(" in source for source in sources.values()), code


def test_citation_has_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == project["version"] and citation["license"] == "MIT"
    assert project["license"] == "MIT" and (ROOT / "LICENSE").read_text().startswith("MIT License")


LOADED = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["']?(https?:)?//""")
LINKED = re.compile(r"""<a\b[^>]*?href="(?![a-z]+:|#)([^"#?]+)""")
LOADED_BY_CSS = re.compile(r"""(?:url\(|@import\s+)["']?(?:https?:)?//""")


@pytest.mark.slow
def test_site_is_complete_and_works_from_disk_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert (tmp_path / "search/search_index.js").is_file()
    pages = [page for page in tmp_path.rglob("*.html") if page.name != "404.html"]
    assert len(pages) >= len(PAGES)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not LOADED.search(text), page
        targets = {page.parent / unquote(link) for link in LINKED.findall(text)}
        assert not [target for target in targets if not target.is_file()], page
        assert "<!-- help" not in text and "<!-- configuration" not in text, page
    assert not [css for css in tmp_path.rglob("*.css") if LOADED_BY_CSS.search(css.read_text())]
    keys = html.unescape((tmp_path / "configuration.html").read_text(encoding="utf-8"))
    assert not [key for key in KEYS if f"<code>{key}</code>" not in keys]
