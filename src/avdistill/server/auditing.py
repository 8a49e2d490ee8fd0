"""The page of the review, and its addresses for scripts."""

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from avdistill.config_io import parse_json
from avdistill.server.library import catalog_of, site_of
from avdistill.server.review import Review, check_reviewer, review_payload
from avdistill.server.site import clip_url

_LONGEST_BODY = 64 * 1024


def review_of(request: Request) -> Review:
    """The review. Raises 404 without a dataset."""
    review = site_of(request).review
    if review is None:
        raise HTTPException(404, "this server was started without a dataset")
    return review


async def page(request: Request) -> HTMLResponse:
    """`/audit`: review by keyboard."""
    review, site = review_of(request), site_of(request)
    return site.render(
        request,
        "audit.html",
        title="Audit",
        total=len(review.order),
        scores=catalog_of(request).scores,
        table_name=review.path.name,
    )


async def state(request: Request) -> JSONResponse:
    """`GET /api/review`: the next clips of a reviewer, and the progress; `clip` asks for one of its own."""
    review, by = review_of(request), _reviewer(request.query_params.get("by", ""))
    asked = request.query_params.get("clip")
    if asked and catalog_of(request).row(asked) is None:
        raise HTTPException(404, "clip: expected the id of a clip of the dataset, found another")
    return JSONResponse(await run_in_threadpool(_state, request, review, by, asked))


async def vote(request: Request) -> JSONResponse:
    """`POST /api/votes`: record a vote; it is on the disk when this is answered."""
    review, given = review_of(request), await json_body(request, ("clip", "vote", "by"))
    try:
        await run_in_threadpool(review.vote, given["clip"], given["vote"], given["by"])
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    return JSONResponse(await run_in_threadpool(_state, request, review, given["by"], None))


async def undo(request: Request) -> JSONResponse:
    """`POST /api/votes/undo`: take back a reviewer's last vote, whose clip is the next one again."""
    review, by = review_of(request), _reviewer((await json_body(request, ("by",)))["by"])
    clip = await run_in_threadpool(review.undo, by)
    return JSONResponse(await run_in_threadpool(_state, request, review, by, clip))


async def table(request: Request) -> Response:
    """`GET /api/decisions.csv`: what `train --decisions` takes."""
    content = await run_in_threadpool(review_of(request).table)
    headers = {"content-disposition": 'attachment; filename="decisions.csv"'}
    return Response(content, media_type="text/csv", headers=headers)


async def json_body(request: Request, names: tuple[str, ...]) -> dict[str, str]:
    """The strings of a small JSON object. Raises 400, 413 or 415."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "content-type: expected application/json, found another")
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _LONGEST_BODY:
            raise HTTPException(413, f"body: expected at most {_LONGEST_BODY} bytes, found more")
    try:
        given = parse_json(content.decode("utf-8"))
    except ValueError:
        given = None
    if not isinstance(given, dict) or set(given) != set(names) or not all(isinstance(v, str) for v in given.values()):
        raise HTTPException(400, f"body: expected a JSON object of the strings {', '.join(names)}, found another")
    return given


def _reviewer(by: str) -> str:
    try:
        check_reviewer(by)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    return by


def _state(request: Request, review: Review, by: str, first: str | None) -> dict[str, Any]:
    catalog = catalog_of(request)
    names = [*([first] if first else []), *(name for name in review.next_clips(by) if name != first)][:2]
    clips = []
    for name in names:
        row = catalog.row(name)
        assert row is not None
        described = catalog.describe_one(row)
        places = {"player": clip_url("/media/player/", name), "thumbnail": clip_url("/media/thumbnail/", name)}
        said = [each for teacher in catalog.dataset.teachers if (each := catalog.teachers.top(teacher, row, 1))]
        clips.append(described | places | {"page": clip_url("/clip/", name), "teachers": said})
    return review_payload(review.progress(by), clips)
