"""Search in an index: by a clip, a label or an uploaded file; nearest neighbors of a clip."""

from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from avdistill.errors import AvdistillError
from avdistill.preparation.clip_reader import IsolatedReader
from avdistill.progress import OnProgress, Progress
from avdistill.server.jobs import DONE, FAILED, Job, Work
from avdistill.server.library import number_of, site_of
from avdistill.server.searcher import HITS, Query, Searcher

_MOST_HITS = 100
_LONGEST_QUERY = 2000


def searcher_of(request: Request) -> Searcher:
    """The index. Raises 404 without one."""
    found = site_of(request).searcher
    if found is None:
        raise HTTPException(404, "this server was started without --index")
    return found


async def page(request: Request) -> HTMLResponse:
    """`GET /search`: the forms, and what was found."""
    site, searcher, query, error = site_of(request), searcher_of(request), _query(request), ""
    clips: list[dict[str, Any]] | None = None
    if query.clip or query.label or query.text:
        try:
            clips = await run_in_threadpool(_found, searcher, query)
        except AvdistillError as failed:
            error = str(failed)
    return site.render(
        request,
        "search.html",
        status=400 if error else 200,
        title="Search",
        clips=clips,
        error=error,
        query=query,
        spaces=searcher.spaces,
        file_spaces=searcher.file_spaces,
        text_spaces=searcher.text_spaces,
        shared_spaces=searcher.shared_spaces,
        limit=site.config.limits.upload_bytes,
    )


async def submit(request: Request) -> Response:
    """`POST /search`: an upload without a script; leads to the page of the job."""
    job = await _received(request)
    return RedirectResponse(f"/search/{job.id}", 303)


async def result_page(request: Request) -> HTMLResponse:
    """`/search/JOB`: the state or what was found; with `part=result` that alone."""
    site, job = site_of(request), _job(request)
    finished = job.state in (DONE, FAILED)
    name = "found.html" if request.query_params.get("part") == "result" else "search_job.html"
    values: dict[str, Any] = {"job": job, "finished": finished, "clips": job.result or []}
    response = site.render(request, name, title=f"Search: {job.name}", **values)
    if not finished:
        response.headers["refresh"] = "1"
    return response


async def find(request: Request) -> JSONResponse:
    """`GET /api/search`: by `clip`, `label` or `text`."""
    searcher, query = searcher_of(request), _query(request)
    if sum(map(bool, (query.clip, query.label, query.text))) != 1:
        raise HTTPException(400, "search: expected one of clip, label and text")
    try:
        clips = await run_in_threadpool(_found, searcher, query)
    except AvdistillError as error:
        raise HTTPException(400, str(error)) from error
    return JSONResponse({"clips": clips})


async def create(request: Request) -> JSONResponse:
    """`POST /api/searches`: by an uploaded file."""
    job = await _received(request)
    return JSONResponse(job.describe(), 202, {"location": f"/api/searches/{job.id}"})


async def state(request: Request) -> JSONResponse:
    """`GET /api/searches/JOB`: its state, and what was found once it is done."""
    job = _job(request)
    return JSONResponse(job.describe() | ({"clips": job.result} if job.state == DONE else {}))


def _found(searcher: Searcher, query: Query) -> list[dict[str, Any]]:
    return searcher.describe(searcher.find(query))


def _query(request: Request) -> Query:
    given = {name: request.query_params.get(name, "") for name in ("clip", "label", "text", "space", "target", "where")}
    _check_lengths(given)
    return Query(**given, k=number_of(request, "k", HITS, _MOST_HITS))


def _check_lengths(given: dict[str, str]) -> None:
    if any(len(value) > _LONGEST_QUERY for value in given.values()):
        raise HTTPException(400, f"search: expected at most {_LONGEST_QUERY} characters, found more")


async def _received(request: Request) -> Job:
    site, searcher = site_of(request), searcher_of(request)
    if site.jobs is None or not searcher.file_spaces:
        raise HTTPException(404, "the index has no space of a student, which embeds files")

    def choose(fields: dict[str, str]) -> Work:
        query = Query(
            space=fields.get("space") or searcher.file_spaces[0],
            target=fields.get("target", ""),
            where=fields.get("where", ""),
        )
        _check_lengths({"where": query.where})
        if query.space not in searcher.file_spaces:
            raise HTTPException(400, f"space: expected one of {', '.join(searcher.file_spaces)}, found another")
        if query.target and query.target not in searcher.spaces:
            raise HTTPException(400, f"target: expected one of {', '.join(searcher.spaces)}, found another")

        def work(file: Path, reader: IsolatedReader, on_progress: OnProgress) -> list[dict[str, Any]]:
            clips = searcher.describe(searcher.find_file(file, query, reader))
            on_progress(Progress(len(clips)))
            return clips

        return work

    return await site.jobs.receive(request, "search", choose)


def _job(request: Request) -> Job:
    """The job of an address. Raises 404."""
    site = site_of(request)
    if site.jobs is None:
        raise HTTPException(404, "this server takes no uploads")
    return site.jobs.find(request.path_params["job"], "search")
