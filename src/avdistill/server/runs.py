"""The pages of runs: curves while a run trains, results, and the tables of studies."""

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse

from avdistill.server.library import site_of
from avdistill.server.run_files import Run, chart, read_run, read_study

_COLUMNS = {"run": "run", "method": "method", "model": "student", "step": "step", "steps": "of", "state": "state"}


async def overview(request: Request) -> HTMLResponse:
    """`/runs`: all runs and studies."""
    site = site_of(request)
    runs, studies = await run_in_threadpool(_all, request)
    rows = [run.row for run in runs]
    columns = _COLUMNS | {key: key for row in rows for key in row if key not in _COLUMNS}
    values: dict[str, Any] = {"rows": rows, "columns": columns, "studies": studies}
    return site.render(request, "runs.html", title="Runs", names=list(site.students.folders), **values)


async def one(request: Request) -> HTMLResponse:
    """`/runs/NAME`: the curves of a run; asks again by itself while it trains."""
    site, run = site_of(request), await run_in_threadpool(_run, request)
    charts = {group: drawn for group, curves in run.curves.items() if (drawn := chart(curves)) is not None}
    response = site.render(request, "run.html", title=run.name, run=run, charts=charts)
    if run.training:
        response.headers["refresh"] = "5"
    return response


async def listing(request: Request) -> JSONResponse:
    """`GET /api/runs`."""
    runs, studies = await run_in_threadpool(_all, request)
    return JSONResponse({"runs": [run.row for run in runs], "studies": studies})


async def state(request: Request) -> JSONResponse:
    """`GET /api/runs/NAME`: its row and curves."""
    run = await run_in_threadpool(_run, request)
    return JSONResponse({"run": run.row, "training": run.training, "error": run.error, "curves": run.curves})


def _all(request: Request) -> tuple[list[Run], list[dict[str, Any]]]:
    site = site_of(request)
    runs = [read_run(name, folder) for name, folder in site.students.folders.items()]
    return runs, [read_study(folder) for folder in site.studies]


def _run(request: Request) -> Run:
    name = request.path_params["run"]
    folders = site_of(request).students.folders
    if name not in folders:
        raise HTTPException(404, "run: expected the name of one of --run, found another")
    return read_run(name, folders[name])
