"""The application: its routes, and errors as pages or as JSON."""

import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from avdistill.errors import AvdistillError
from avdistill.reporting.page import render
from avdistill.server import api, auditing, library, predicting, runs, searching
from avdistill.server.config import ServeConfig
from avdistill.server.library import site_of
from avdistill.server.shield import Shield
from avdistill.server.site import open_site

_log = logging.getLogger(__name__)


class _ClipId(Convertor[str]):
    """An id of a clip or a name of a run, which may hold anything, slashes and newlines included."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("clip", _ClipId())


def create_app(config: ServeConfig) -> Starlette:
    """The application of what a config names. Raises AvdistillError where that cannot be opened."""
    site = open_site(config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            site.close()

    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Shield, config=config)],
        exception_handlers={HTTPException: _refused, AvdistillError: _damaged, Exception: _failed},
        lifespan=lifespan,
    )
    app.state.site = site
    return app


#: name -> MIME type, templates of its content
STATIC = {
    "style.css": ("text/css", ("style.css", "audit.css", "server.css")),
    "upload.js": ("text/javascript", ("server/upload.js",)),
    "timeline.js": ("text/javascript", ("server/timeline.js",)),
    "review.js": ("text/javascript", ("server/review.js",)),
    "icon.svg": ("image/svg+xml", ("server/icon.svg",)),
}


async def static(request: Request) -> Response:
    """`/static/NAME`: one of a few files of this package."""
    name = request.path_params["name"]
    if name not in STATIC:
        raise HTTPException(404)
    kind, templates = STATIC[name]
    return Response(
        "".join(map(render, templates)), media_type=kind, headers={"cache-control": "private, max-age=3600"}
    )


async def _refused(request: Request, error: Exception) -> Response:
    """An error that the client can mend."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": error.detail}, error.status_code, headers)
    response = site_of(request).render(
        request, "error.html", status=error.status_code, title=f"Error {error.status_code}", detail=error.detail
    )
    response.headers.update(headers)
    return response


async def _damaged(request: Request, error: Exception) -> Response:
    """Files of this server that cannot be read; what the error names stays on the console."""
    _log.error("serve: %s", error)
    return await _refused(request, HTTPException(500, "a file of the server cannot be read; its console says which"))


async def _failed(request: Request, error: Exception) -> Response:
    """An error of this program; what it says stays on the console."""
    _log.error("serve: %s", "".join(traceback.format_exception(error)))
    return await _refused(request, HTTPException(500, "the server made an error; its console says which"))


ROUTES = [
    Route("/", library.library),
    Route("/clip/{clip:clip}", library.clip),
    Route("/media/thumbnail/{clip:clip}", library.thumbnail),
    Route("/media/player/{clip:clip}", library.player),
    Route("/static/{name}", static),
    Route("/predict", predicting.page),
    Route("/predict", predicting.submit, methods=["POST"]),
    Route("/predict/{job}", predicting.result_page),
    Route("/api/predictions", predicting.create, methods=["POST"]),
    Route("/api/predictions/{job}", predicting.state),
    Route("/api/predictions/{job}/segments.csv", predicting.table),
    Route("/search", searching.page),
    Route("/search", searching.submit, methods=["POST"]),
    Route("/search/{job}", searching.result_page),
    Route("/api/search", searching.find),
    Route("/api/searches", searching.create, methods=["POST"]),
    Route("/api/searches/{job}", searching.state),
    Route("/runs", runs.overview),
    Route("/runs/{run:clip}", runs.one),
    Route("/api/runs", runs.listing),
    Route("/api/runs/{run:clip}", runs.state),
    Route("/api/openapi.json", api.openapi),
    Route("/api/dataset", api.dataset),
    Route("/api/clips", api.clips),
    Route("/api/clips/{clip:clip}", api.clip),
    Route("/audit", auditing.page),
    Route("/api/review", auditing.state),
    Route("/api/votes", auditing.vote, methods=["POST"]),
    Route("/api/votes/undo", auditing.undo, methods=["POST"]),
    Route("/api/decisions.csv", auditing.table),
]
