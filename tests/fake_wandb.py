"""A W&B server on loopback, with the requests that a run, its artifact and the public API of wandb 0.31 send.

A line of the history replaces the line at the same offset of an earlier upload under the same id, as at W&B.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeRun:
    """What the server has of one run."""

    attributes: dict[str, Any] = field(default_factory=dict)
    """Variables of the mutation that created the run: displayName, groupName, jobType, tags, config."""
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    starts: int = 0
    """Number of attempts that uploaded the history from its first line on."""
    artifacts: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        if self.exit_code is None:
            return "running"
        return "finished" if self.exit_code == 0 else "failed"

    @property
    def node(self) -> dict[str, Any]:
        """The run in the answer of the public API."""
        return {
            "state": self.state,
            "tags": self.attributes["tags"],
            "group": self.attributes["groupName"],
            "jobType": self.attributes["jobType"],
            "config": self.attributes["config"],
            "summaryMetrics": json.dumps(self.summary),
        }


class FakeWandb:
    """The server; its runs by id."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        """Close the port: later connections are refused."""
        self.server.shutdown()
        self.server.server_close()

    def _handler(fake) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_PUT(self) -> None:
                self.body()
                self.answer({})

            def do_POST(self) -> None:
                content: Any = {}
                body = self.body()
                if self.path == "/graphql":
                    request = json.loads(body)
                    content = {"data": fake.answer(request["query"], request.get("variables"))}
                elif self.path.endswith("/file_stream"):
                    fake.receive(self.path.split("/")[-2], json.loads(body))
                self.answer(content)

            def body(self) -> bytes:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(body) if self.headers.get("Content-Encoding") else body

            def answer(self, content: Any) -> None:
                encoded = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

        return Handler

    def answer(self, query: str, variables: dict[str, Any] | None) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        assert found is not None
        given = variables or {}
        if found[1] == "UpsertBucket":
            return self._upsert(given)
        if found[1] == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": files}}
        if found[1] == "CreateArtifact":
            wanted = given["input"]
            self.runs[wanted["runName"]].artifacts.append(wanted["artifactCollectionName"])
            artifact = {
                "id": "id",
                "state": "COMMITTED",
                "artifactSequence": {"latestArtifact": None},
            }
            return {"createArtifact": {"artifact": artifact}}
        if found[1] == "Runs":
            return self._list_runs()
        team: dict[str, Any] = {"entity": "me", "username": "me", "teams": {"edges": []}}
        viewer = {"id": "id", "email": "", "flags": "{}", **team}
        features = {"features": []}
        # Every other query gets the answers of all: it takes the one that it has asked for.
        return {"viewer": viewer, "serverInfo": features, "project": None, "entity": None}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(given["name"], FakeRun())
        run.attributes |= {key: value for key, value in given.items() if value is not None}
        project = {"id": "id", "name": given["project"], "entity": {"id": "id", "name": "me"}}
        names = {"name": given["name"], "displayName": given.get("displayName")}
        bucket = {"id": "id", **names, "project": project, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _list_runs(self) -> dict[str, Any]:
        edges = [
            {"node": {"id": name, "name": name, **run.node}, "cursor": ""}
            for name, run in self.runs.items()
        ]
        pages = {"endCursor": "", "hasNextPage": False}
        runs = {"edges": edges, "pageInfo": pages}
        return {
            "project": {"internalId": "1", "runCount": len(edges), "readOnly": False, "runs": runs}
        }

    def receive(self, name: str, update: dict[str, Any]) -> None:
        """Write the lines of a file stream request at their offset."""
        run, files = self.runs[name], update.get("files") or {}
        if lines := files.get("wandb-history.jsonl"):
            start, rows = lines["offset"], [json.loads(line) for line in lines["content"]]
            assert start <= len(run.history), "a gap in the history"
            run.starts += start == 0
            run.history[start : start + len(rows)] = rows
        if lines := files.get("wandb-summary.json"):
            run.summary = json.loads(lines["content"][-1])
        if update.get("complete"):
            run.exit_code = update["exitcode"]


@contextmanager
def fake_wandb() -> Iterator[FakeWandb]:
    fake = FakeWandb()
    thread = threading.Thread(target=fake.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.stop()
