"""W&B workspace and report of a study: panels, colours, files, and saving them to a server on loopback.

The workspace of `study=smoke` is compared with tests/data/workspace.json; delete the file to write it again.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from analysis.charts import level
from analysis.report.study_report import StudyReport, analyze_study
from analysis.study_actions.dashboard import content as content_module
from analysis.study_actions.dashboard import save
from analysis.study_actions.dashboard.content import Content
from slm.charts import LIGHT
from slm.config.hydra import Composer, load_composed_config, register_schema
from slm.errors import DataError, RunError
from slm.studies.cells import Cell
from slm.studies.expand import cells_of
from slm.tracking.run_dir import RunDirectory
from tests.conftest import ROOT
from tests.full_study import full_study

wandb = pytest.importorskip("wandb")
pytest.importorskip("wandb_workspaces")

SNAPSHOT = ROOT / "tests" / "data" / "workspace.json"
FAMILIES = ("deep_thin", "wide_shallow")
KEY = "0" * 40


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    def composed(overrides: Sequence[str]) -> Any:
        return compose("sweep", ["study=smoke", f"runs_dir={runs}", *overrides])

    runs = tmp_path_factory.mktemp("runs")
    register_schema()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return list(cells_of(load_composed_config(composed([])), Composer(composed)))


def changed(cells: list[Cell], runs: Path, *varied: str, **study: Any) -> list[Cell]:
    """Return the cells with another folder of runs, point of the grid and keys of the study."""
    return [
        replace(cell, varied=varied, spec=replace(cell.spec, config=config))
        for cell in cells
        for old in [cell.spec.config]
        for config in [replace(old, runs_dir=str(runs), study=replace(old.study, **study))]
    ]


@pytest.fixture(scope="module")
def report() -> StudyReport:
    return analyze_study(full_study(families=FAMILIES, anchor_seeds=0), bootstrap=0)


@pytest.fixture
def content(smoke: list[Cell]) -> Content:
    names = ("level", "loss_against_flops", "exponent_difference")
    images = {name: Path(f"{name}.png") for name in names}
    return Content(smoke, FAMILIES, "VERDICT", "HEADLINE", "LOSSES", images)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error(cells: Sequence[Cell]) -> None:
        raise DataError("no finished cell")

    monkeypatch.setattr(content_module, "write_report", raise_error)


def spec_of(content: Content) -> dict[str, Any]:
    from analysis.study_actions.dashboard.workspace import build_workspace

    model = build_workspace(content, "slm", "team")._to_model()
    spec: dict[str, Any] = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return spec


def panels(spec: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return each panel with the name of its section."""
    sections = spec["section"]["panelBankConfig"]["sections"]
    return [(section["name"], panel) for section in sections for panel in section["panels"]]


def shown(panel: dict[str, Any]) -> Any:
    """Return the title of a panel, or the beginning of its text."""
    config = panel["config"]
    return config.get("chartTitle") or config["value"].partition("\n")[0]


def test_workspace_equals_the_snapshot(content: Content) -> None:
    text = json.dumps(spec_of(content), indent=1, sort_keys=True) + "\n"
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(text)
        pytest.fail(f"{SNAPSHOT} was missing and is written now; check and commit it")
    assert text == SNAPSHOT.read_text()


def test_panels_of_each_section(content: Content) -> None:
    found: dict[str, list[str]] = {}
    for section, panel in panels(spec_of(content)):
        found.setdefault(section, []).append(shown(panel))
    assert found == {
        "Loss": [
            "Lowest validation loss of each family (nats/token)",
            "Validation loss against FLOPs (nats/token)",
            "Validation loss against FLOPs (bits/byte)",
            "Validation loss against tokens (nats/token)",
            "Validation loss against tokens (bits/byte)",
            "Training loss against FLOPs (nats/token)",
            "Training loss against tokens (nats/token)",
        ],
        "Paired difference by rung": ["level", "LOSSES"],
        "Exponents and verdict": [
            "VERDICT",
            "loss_against_flops",
            "exponent_difference",
        ],
        "Learning rates": ["Learning rate"],
        "Throughput and MFU": ["Throughput (tokens/s)", "MFU", "Peak memory (bytes)"],
        "Gradient health": [
            "Gradient norm",
            "Weight norm by tensor group",
            "Update-to-weight ratio by tensor group",
            "RMS of the residual stream by depth",
        ],
        "Failures and divergences": ["### Runs by state", "Training tokens by state of the run"],
    }


def test_runs_are_filtered_grouped_coloured_and_all_shown(content: Content) -> None:
    spec = spec_of(content)["section"]
    (runs,) = spec["runSets"]
    assert [(one["key"]["name"], one["value"]) for one in runs["filters"]["filters"]] == [
        ("group", "smoke"),
        ("run.recipe_id", content.recipe_ids),
    ]
    facts = ["family", "rung", "tokens_per_param"]
    assert [key["name"] for key in runs["grouping"]] == [f"run.value.{fact}" for fact in facts]
    limits = {spec["settings"]["maxRuns"]}
    limits |= {p["config"]["limit"] for _, p in panels({"section": spec}) if "limit" in p["config"]}
    assert min(limits) > len(content.cells)
    expected = {"deep_thin": LIGHT["series-1"], "wide_shallow": LIGHT["series-2"]}
    colours = spec["customRunColors"]
    for cell in content.cells:
        assert colours.pop(cell.spec.run_id) == expected[cell.family]
    by_family = Counter(
        (family, colour)
        for key, colour in colours.items()
        for family in FAMILIES
        if f"%22{family}%22" in key
    )
    # Of each family: itself, 2 sizes, 2 sizes x 2 budgets
    assert by_family == {(family, expected[family]): 7 for family in FAMILIES}


@pytest.mark.usefixtures("no_report")
def test_study_without_a_finished_cell(smoke: list[Cell], tmp_path: Path) -> None:
    found = content_module.load_content(smoke, tmp_path)
    texts = [shown(panel) for name, panel in panels(spec_of(found)) if "verdict" in name]
    assert texts == ["There is no report yet: no finished cell."]
    assert [found.colour(family) for family in FAMILIES] == [LIGHT["series-1"], LIGHT["series-2"]]


@pytest.mark.parametrize("kind", ["khop", "lr_transfer", "lr_audit"])
def test_other_kinds_of_studies(
    kind: str, smoke: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = "optimizer.lr=0.004"
    cells = changed(smoke, tmp_path, rate, analysis=kind, grid={"optimizer.lr": (0.004,)})
    written = content_module.report_folder(cells)
    written.mkdir(parents=True)
    (written / "report.md").write_text("# Title\n")
    (written / "chart.png").write_bytes(b"")
    monkeypatch.setattr(content_module, "write_report", lambda cells: None)
    found = content_module.load_content(cells, tmp_path)
    spec = spec_of(found)
    titles = [shown(panel) for _, panel in panels(spec)]
    assert "# Title" in titles and "chart" in titles
    assert "Final validation loss against peak learning rate (nats/token)" in titles
    assert ("Error rate by number of hops" in titles) == (kind == "khop")
    assert spec["section"]["runSets"][0]["grouping"][-1]["name"] == "optimizer.value.lr"


def test_failed_cells_are_listed_with_their_error(smoke: list[Cell], tmp_path: Path) -> None:
    cells = changed(smoke, tmp_path)
    run = RunDirectory.of(cells[0].spec)
    run.path.mkdir(parents=True)
    status = {"state": "failed", "failure": "OutOfMemoryError: 3 | 4 GB"}
    (run.path / "status.json").write_text(json.dumps(status))
    text = Content(cells, FAMILIES, "").failures()
    assert "| planned | 7 |" in text and "| failed | 1 |" in text
    assert "| failed | OutOfMemoryError: 3 \\| 4 GB |" in text


def test_lr_audit_of_the_study(smoke: list[Cell], tmp_path: Path) -> None:
    audit = tmp_path / "lr_audit.json"
    family = {"interior": True, "penalty": 0.0012345, "cost_of_2x": None, "passed": True}
    audit.write_text(json.dumps({"recipe_id": "r", "families": {"deep_thin": family}}))
    cells = changed(smoke, tmp_path, lr_audit=str(audit))
    found = Content(cells, FAMILIES, "")
    assert "| deep_thin | True | 0.0012345 | None | True |" in found.lr_audit()
    assert any(shown(panel) == "### Learning-rate audit" for _, panel in panels(spec_of(found)))


def test_offline_writes_files_without_an_entity(
    smoke: list[Cell],
    report: StudyReport,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(content_module, "write_report", lambda cells: report)
    monkeypatch.setattr(content_module, "report_figures", lambda report: [level(report)])
    wandb.teardown()  # the environment may have changed since another test
    with caplog.at_level(logging.INFO, "slm"):
        save.save_dashboard(smoke)
    folder = content_module.report_folder(smoke).parent / "dashboard"
    assert (folder / "level.png").read_bytes().startswith(b"\x89PNG")
    for name in ("workspace", "report"):
        text = (folder / f"{name}.json").read_text()
        assert json.loads(text) and save.NO_ENTITY not in text
        assert '"report/level"' in text and report.comparison.verdict.word in text
    assert "W&B is offline: WANDB_MODE=offline" in caplog.text
    assert "repeat this command when W&B is online" in caplog.text


def test_missing_extra_is_named(smoke: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(RunError, match=r"pip install -e '\.\[dashboard\]'"):
        save.save_dashboard(smoke)


class FakeServer(ThreadingHTTPServer):
    """The part of W&B's GraphQL that the dashboard uses; `refusal` is the error message of `upsertView`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.views: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.refusal = ""

    def answer(self, operation: str, variables: dict[str, Any]) -> Any:
        entity = {"id": "e", "name": "team"}
        project = {"id": "p", "name": "slm", "internalId": "p", "entity": entity}
        listed = project | {
            "entityName": "team",
            "createdAt": "",
            "isBenchmark": False,
            "user": None,
        }
        if operation == "upsertView":
            return {"upsertView": self._upsert(variables)}
        if operation in {"allViews", "projectViews"}:
            kind, name = variables.get("viewType", "runs"), variables.get("viewName")
            found = [
                {"node": view, "cursor": view["id"]}
                for view in self.views
                if view["type"] == kind and name in {None, view["name"]}
            ]
            page = {"endCursor": None, "hasNextPage": False}
            return {"project": {"allViews": {"edges": found, "pageInfo": page}}}
        if operation == "UpsertBucket":
            self.runs.append(variables)
        bucket = {"id": "b", "name": variables.get("name"), "displayName": "", "project": project}
        return {
            "Viewer": {"viewer": {"id": "u", "username": "user", "entity": "team", "flags": "{}"}},
            "GetDefaultEntity": {"viewer": {"id": "u", "entity": "team"}},
            "GetProjects": {
                "models": {
                    "edges": [{"node": listed}],
                    "pageInfo": {"endCursor": None, "hasNextPage": False},
                }
            },
            "RunResumeStatus": {"model": project | {"bucket": None}},
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
            "CreateRunFiles": {"createRunFiles": {"runID": "r", "files": []}},
        }[operation]

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        view = next((view for view in self.views if view["id"] == variables.get("id")), None)
        is_new = view is None
        if view is None:
            view = {"id": f"view{len(self.views)}"}
            self.views.append(view)
        keys = ("name", "displayName", "description", "spec", "type")
        view.update({key: variables[key] for key in keys})
        view["project"] = {"id": "p", "name": "slm", "entityName": variables["entityName"]}
        return {"view": view, "inserted": is_new}


class FakeHandler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self._reply({})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.path.endswith("/graphql"):
            self._reply({})
            return
        body = json.loads(content)
        match = re.search(r"(?:query|mutation) (\w+)", body["query"])
        assert match is not None
        name = {"UpsertView2": "upsertView", "View": "allViews", "ProjectViews": "projectViews"}
        operation = name.get(match[1], match[1])
        if operation == "upsertView" and self.server.refusal:
            self._reply({"errors": [{"message": self.server.refusal}]})
            return
        try:
            self._reply({"data": self.server.answer(operation, body.get("variables") or {})})
        except KeyError:
            self._reply({"errors": [{"message": f"unknown operation {operation}"}]})

    def _reply(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_DIR", str(tmp_path))
        monkeypatch.delenv("WANDB_MODE")
        wandb.teardown()  # a process reads these variables once
        yield server
        wandb.teardown()
        server.shutdown()


@pytest.mark.usefixtures("no_report")
def test_second_call_updates_workspace_and_report(
    server: FakeServer, smoke: list[Cell], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "slm"):
        save.save_dashboard(smoke)
        first = [view | {} for view in server.views]
        save.save_dashboard(smoke)
    assert [view["id"] for view in server.views] == [view["id"] for view in first]
    assert {view["type"]: view["displayName"] for view in server.views} == {
        "runs": "Report of study smoke",
        "project-view": "Study smoke",
    }
    words = re.findall(r"W&B (report|workspace) (created|updated): (http\S+)", caplog.text)
    assert [word[:2] for word in words] == [
        ("report", "created"),
        ("workspace", "created"),
        ("report", "updated"),
        ("workspace", "updated"),
    ]
    assert "/team/slm" in words[1][2]


def test_report_run_has_the_group_and_a_job_type_of_its_own(
    server: FakeServer, smoke: list[Cell], tmp_path: Path
) -> None:
    written = content_module.report_folder(smoke)
    written.mkdir(parents=True, exist_ok=True)
    (written / "results.json").write_text("{}")
    Image.new("RGB", (4, 4)).save(tmp_path / "level.png")
    content = Content(smoke, FAMILIES, "", images={"level": tmp_path / "level.png"})
    for _ in range(2):
        save.log_report_run(content, "slm", "team", tmp_path)
    assert {run["name"] for run in server.runs} == {"smoke-report"}
    assert (server.runs[0]["groupName"], server.runs[0]["jobType"]) == ("smoke", "report")


@pytest.mark.usefixtures("no_report")
def test_error_of_the_server_is_one_message(server: FakeServer, smoke: list[Cell]) -> None:
    server.refusal = "permission denied"
    with pytest.raises(RunError, match=r"W&B did not save .* smoke: .*permission denied") as error:
        save.save_dashboard(smoke)
    assert "\n" not in str(error.value)
    assert server.views == []


@pytest.mark.usefixtures("no_report")
def test_host_that_refuses_connections(
    server: FakeServer, smoke: list[Cell], caplog: pytest.LogCaptureFixture
) -> None:
    server.shutdown()
    server.server_close()
    with caplog.at_level(logging.INFO, "slm"):
        save.save_dashboard(smoke)
    assert "does not answer" in caplog.text
