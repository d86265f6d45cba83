"""Who may read the page: addresses, Host header, token and methods; and the errors before it is served."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.study_actions.watch.server import HEADERS, check_exposure, make_app, watch_study
from analysis.study_actions.watch.snapshot import Snapshot
from slm.config.schema.study import WatchConfig
from slm.errors import ConfigError, SlmError
from tests.benchmarks.watch import get_json, served, study_cells, write_run
from tests.conftest import Cli

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.testclient import TestClient

LOCAL = "http://127.0.0.1:8642"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    cells = study_cells("study=smoke", f"runs_dir={tmp_path_factory.mktemp('runs')}")
    write_run(cells[0], "failed", share=0.5, rows=20)
    found = Snapshot(cells)
    found.refresh()
    yield found
    found.worker.stop()


def client(snapshot: Snapshot, base_url: str = LOCAL, **watch: str) -> TestClient:
    app = make_app(snapshot, WatchConfig(**watch), lambda: None)  # type: ignore[arg-type]
    return TestClient(app, base_url=base_url, follow_redirects=False)


@pytest.mark.parametrize("host", ["127.0.0.1:8642", "localhost:1", "[::1]:8642", "LOCALHOST"])
def test_own_host_names_are_answered(snapshot: Snapshot, host: str) -> None:
    answer = client(snapshot).get("/", headers={"Host": host})
    assert answer.status_code == 200 and "<title>smoke</title>" in answer.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[::2]:8642", ""])
def test_other_host_names_are_refused(snapshot: Snapshot, host: str) -> None:
    for path in ("/", "/state.json", "/page.js"):
        assert client(snapshot).get(path, headers={"Host": host}).status_code == 400


def test_only_reading_is_possible_and_headers_forbid_the_rest(snapshot: Snapshot) -> None:
    one = client(snapshot)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert one.request(method, "/state.json").status_code == 405
    for path in ("/", "/state.json", "/nothing"):
        headers = one.get(path, headers={"Origin": "http://evil.example"}).headers
        assert {key: headers[key] for key in HEADERS} == HEADERS
        assert not [key for key in headers if key.startswith("access-control")]
    assert "unsafe-eval" not in HEADERS["Content-Security-Policy"]


def test_unchanged_documents_are_not_sent_again(snapshot: Snapshot) -> None:
    one = client(snapshot)
    first = one.get("/state.json")
    again = one.get("/state.json", headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


def test_text_of_a_run_is_data_and_never_markup(snapshot: Snapshot) -> None:
    one = client(snapshot)
    failed = snapshot.cells[0].spec.run_id
    run = one.get(f"/runs/{failed}.json").json()
    assert run["state"] == "failed" and "<b>out of memory</b>" in run["traceback"]
    assert run["log"].startswith("training ") and run["latest"]["training loss"]
    for name in ("nothing", "..%2F..%2Fetc%2Fpasswd", "../lr_tuning"):
        assert one.get(f"/runs/{name}.json").status_code == 404


def test_a_token_is_exchanged_for_a_cookie(snapshot: Snapshot) -> None:
    watch = {"host": "192.0.2.1", "access_token": "sécret;1"}
    one = client(snapshot, "http://192.0.2.1:8642", **watch)
    assert one.get("/state.json").status_code == 401
    assert one.get("/", params={"token": "wrong"}).status_code == 401
    answer = one.get("/", params={"token": "sécret;1"})
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "cret" not in cookie
    assert one.get("/state.json").status_code == 200
    assert client(snapshot, "http://other.example", **watch).get("/").status_code == 400


def test_all_addresses_need_the_token_under_any_name(snapshot: Snapshot) -> None:
    one = client(snapshot, "http://workstation:8642", host="0.0.0.0", access_token="secret")
    assert one.get("/").status_code == 401
    one.get("/", params={"token": "secret"})
    assert one.get("/").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_addresses_need_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match=r"watch\.access_token"):
        check_exposure(WatchConfig(host=host))
    check_exposure(WatchConfig(host=host, access_token="secret"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_own_addresses_need_none(host: str) -> None:
    check_exposure(WatchConfig(host=host))


def test_a_used_port_is_an_error_that_names_the_fix(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        found = cli("sweep.py", "study=smoke", "action=watch", f"watch.port={port}")
    assert found.returncode == 2
    assert f"watch.port={port}" in found.stderr and "watch.port=0" in found.stderr


def test_a_missing_extra_is_named(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SlmError, match=r"pip install -e '\.\[watch\]'"):
        watch_study(snapshot.cells)


@pytest.mark.slow
def test_ctrl_c_ends_the_server_with_code_0(tmp_path: Path) -> None:
    with served("study=smoke", f"runs_dir={tmp_path}") as (url, process):
        assert "state.json" not in url
        get_json(f"{url}state.json")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr is not None and "Traceback" not in process.stderr.read()
    assert not list(tmp_path.iterdir())  # watching writes nothing
