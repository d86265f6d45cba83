"""`action=watch`: serve a page that shows a study live, on this machine alone unless a token protects it.

The page only reads. It loads nothing from the network, and requests what changed every two seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from slm.config.schema.study import WatchConfig
from slm.errors import ConfigError, Problem, SlmError
from slm.studies.cells import Cell

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from analysis.study_actions.watch.snapshot import Against, Document, Snapshot

log = logging.getLogger("slm")
PACKAGE = "analysis.study_actions.watch"
LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}
REFRESH_SECONDS = 2.0
MISSING = (
    "action=watch needs starlette and uvicorn; run in the repository: pip install -e '.[watch]'"
)
HEADERS = {
    # Vega sets style attributes; it evaluates expressions with its interpreter, so no script needs unsafe-eval.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def watch_study(cells: Sequence[Cell]) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ConfigError: if another address than this machine's own has no token, or the port is in use.
        SlmError: if the extra `watch` is not installed.
    """
    watch = cells[0].spec.config.watch
    check_exposure(watch)
    try:
        import starlette.applications  # noqa: F401
        import uvicorn
    except ImportError:
        raise SlmError(MISSING) from None
    from analysis.study_actions.watch.snapshot import Snapshot
    from slm.charts import page_script

    with _bind(watch) as bound:
        page_script()  # made now, because it holds the GIL for seconds
        snapshot = Snapshot(cells)
        refresher = Refresher(snapshot)
        app = make_app(snapshot, watch, refresher.request)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1
        )  # fmt: skip
        refresher.start()
        host = socket.gethostname() if _is_any_address(watch.host) else watch.host
        host = f"[{host}]" if ":" in host else host
        query = "?token=..." if watch.access_token else ""
        port = bound.getsockname()[1]
        name = cells[0].spec.config.study.name
        log.info("study %s: http://%s:%d/%s (Ctrl-C stops it)", name, host, port, query)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[bound])
        refresher.stop()


def check_exposure(watch: WatchConfig) -> None:
    """Raise a ConfigError if other machines could read the study without a token."""
    if not _is_loopback(watch.host) and not watch.access_token:
        rule = "lets other machines read the study, which needs a token"
        fix = "set watch.access_token=SECRET, or use 127.0.0.1 and an SSH tunnel"
        raise ConfigError([Problem("watch.host", watch.host, rule, fix)])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(watch: WatchConfig) -> socket.socket:
    """Return a listening socket."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            watch.host, watch.port, type=socket.SOCK_STREAM
        )[0]
    except OSError as error:
        rule = f"is no address of this machine: {error.strerror or error}"
        raise ConfigError([Problem("watch.host", watch.host, rule, "use 127.0.0.1")]) from None
    try:
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
        return bound
    except OSError as error:
        rule = f"cannot serve on {watch.host}:{watch.port}: {error.strerror or error}"
        fix = "watch.port=0 takes a free port"
        raise ConfigError([Problem("watch.port", watch.port, rule, fix)]) from None


class Refresher:
    """Thread that refreshes the snapshot while browsers request it."""

    def __init__(self, snapshot: Snapshot):
        self._snapshot = snapshot
        self._wanted, self._stopped = threading.Event(), threading.Event()
        self._refreshed = threading.Event()
        self._last = 0.0
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        self._wanted.set()
        self._thread.start()

    def request(self) -> None:
        """Refresh once more; called with every request of a page. Wait for it if no page was open for a while."""
        is_old = time.monotonic() > self._last + 2 * REFRESH_SECONDS
        if is_old:
            self._refreshed.clear()
        self._wanted.set()
        if is_old:
            self._refreshed.wait(REFRESH_SECONDS)

    def stop(self) -> None:
        self._stopped.set()
        self._wanted.set()
        self._thread.join()
        self._snapshot.worker.stop()

    def _loop(self) -> None:
        while not self._stopped.is_set():
            self._wanted.wait()
            self._wanted.clear()
            try:
                has_more = self._snapshot.refresh()
            except Exception as error:  # shown on the page; the next refresh may succeed
                reason = f"{type(error).__name__}: {error}"
                log.warning("the page is not up to date: %s", reason)
                self._snapshot.fail(reason)
                has_more = False
            self._last = time.monotonic()
            self._refreshed.set()
            if has_more:
                self._wanted.set()
            self._stopped.wait(0.1 if has_more else REFRESH_SECONDS)


def make_app(snapshot: Snapshot, watch: WatchConfig, on_request: Callable[[], None]) -> Starlette:
    """Return the application: the page, its scripts and its documents."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    from slm.charts import css_variables, page_script

    environment = _templates()
    page = environment.get_template("page.html.j2").render(layout=snapshot.layout())
    style = environment.get_template("page.css").render(colours=css_variables())
    script = environment.get_template("page.js").render()

    async def protect(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        answer = refuse(request, watch) or await call_next(request)
        answer.headers.update(HEADERS)
        return answer

    def document(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            await run_in_threadpool(on_request)
            sent = _send(request, getattr(snapshot, name))
            wall, cpu = (1000 * seconds for seconds in snapshot.refresh_seconds)
            sent.headers["Server-Timing"] = f"refresh;dur={wall:.0f}, refresh_cpu;dur={cpu:.0f}"
            return sent

        return answer

    async def curves(request: Request) -> Response:
        against: Against = "flops" if request.query_params.get("x") == "flops" else "tokens"
        return _send(request, await run_in_threadpool(snapshot.curves, against))

    async def details(request: Request) -> Response:
        run_id = request.path_params["run_id"]
        if run_id not in snapshot.by_id:
            return PlainTextResponse("no such run", 404)
        return JSONResponse(await run_in_threadpool(snapshot.details, run_id))

    async def library(request: Request) -> Response:
        return Response(await run_in_threadpool(page_script), media_type="text/javascript")

    def fixed(content: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return Response(content, media_type=media_type)

        return answer

    routes: list[tuple[str, Any]] = [
        ("/", fixed(page, HTMLResponse.media_type or "text/html")),
        ("/page.css", fixed(style, "text/css")),
        ("/page.js", fixed(script, "text/javascript")),
        ("/vega.js", library),
        ("/state.json", document("state")),
        ("/curves.json", curves),
        ("/analysis.json", document("analysis")),
        ("/runs/{run_id}.json", details),
    ]
    return Starlette(
        routes=[Route(path, handler, methods=["GET"]) for path, handler in routes],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=protect)],
    )


def refuse(request: Request, watch: WatchConfig) -> Response | None:
    """Return the answer to a request that may not read the study; None if it may.

    A page of another site could reach this server under a name of its own (DNS rebinding): so the header Host must
    have a known name, unless a token protects the study.
    """
    from starlette.responses import PlainTextResponse, RedirectResponse

    if request.method not in ("GET", "HEAD"):
        return PlainTextResponse("this server only answers GET", 405)
    host = (request.headers.get("host") or "").lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    is_known = name in LOOPBACK_NAMES or name == watch.host.strip("[]").lower()
    if not is_known and not (watch.access_token and _is_any_address(watch.host)):
        return PlainTextResponse("unknown host name", 400)
    if not watch.access_token:
        return None
    given = request.query_params.get("token")
    if given is not None and _equal(given, watch.access_token):
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            _cookie_name(watch), _cookie(watch.access_token), httponly=True, samesite="lax"
        )
        return answer
    if _equal(request.cookies.get(_cookie_name(watch), ""), _cookie(watch.access_token)):
        return None
    return PlainTextResponse("open the page with ?token=SECRET once (watch.access_token)", 401)


def _is_any_address(host: str) -> bool:
    return host in ("0.0.0.0", "::")


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _cookie_name(watch: WatchConfig) -> str:
    """Return a name of its own for each port: a browser sends the cookies of all ports of a host."""
    return f"slm_watch_{watch.port}"


def _cookie(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _send(request: Request, document: Document) -> Response:
    from starlette.responses import Response

    tag = f'"{document.version}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    return Response(document.body, media_type="application/json", headers={"ETag": tag})


def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from slm.charts import script_json

    environment = Environment(
        loader=PackageLoader(PACKAGE),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["script_json"] = script_json
    return environment
