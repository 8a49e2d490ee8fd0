"""The page that labels uploaded files, its addresses for scripts, and timelines of labels."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from avdistill.inference.prediction import SEGMENT_COLUMNS, Prediction
from avdistill.preparation.clip_reader import IsolatedReader
from avdistill.progress import OnProgress
from avdistill.server.jobs import DONE, FAILED, Job, Work
from avdistill.server.library import site_of
from avdistill.server.timelines import timeline


async def page(request: Request) -> HTMLResponse:
    """`GET /predict`: the form."""
    site = site_of(request)
    runs = site.students.names
    return site.render(request, "predict.html", title="Predict", runs=runs, limit=site.config.limits.upload_bytes)


async def submit(request: Request) -> Response:
    """`POST /predict`: the form without a script; leads to the page of the job."""
    job = await _received(request)
    return RedirectResponse(f"/predict/{job.id}", 303)


async def result_page(request: Request) -> HTMLResponse:
    """`/predict/JOB`: the state or the result; asks again by itself. With `part=result` the result alone."""
    site, job = site_of(request), _job(request)
    finished = job.state in (DONE, FAILED)
    values: dict[str, Any] = {"job": job, "finished": finished}
    if job.state == DONE:
        values |= {"timeline": timeline(job.result), "result": job.result.describe()}
    name = "result.html" if request.query_params.get("part") == "result" else "job.html"
    response = site.render(request, name, title=f"Predict: {job.name}", **values)
    if not finished:
        response.headers["refresh"] = "1"
    return response


async def create(request: Request) -> JSONResponse:
    """`POST /api/predictions`: upload a file."""
    job = await _received(request)
    return JSONResponse(job.describe(), 202, {"location": f"/api/predictions/{job.id}"})


async def state(request: Request) -> JSONResponse:
    """`GET /api/predictions/JOB`: its state, and its result once it is done."""
    job = _job(request)
    result = {"result": job.result.describe()} if job.state == DONE else {}
    return JSONResponse(job.describe() | result)


async def table(request: Request) -> Response:
    """`GET /api/predictions/JOB/segments.csv`: the rows that `avdistill predict --csv` writes."""
    job = _job(request)
    if job.state != DONE:
        raise HTTPException(409, f"job: expected one that is done, found one that is {job.state}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SEGMENT_COLUMNS)
    writer.writerows(job.result.rows())
    headers = {"content-disposition": 'attachment; filename="segments.csv"'}
    return Response(text.getvalue().encode("utf-8", "replace"), media_type="text/csv", headers=headers)


async def _received(request: Request) -> Job:
    site = site_of(request)
    if site.jobs is None:
        raise HTTPException(404, "this server was started without a run")

    def choose(fields: dict[str, str]) -> Work:
        names = site.students.names
        name = fields.get("run") or (names[0] if names else "")
        if name not in names:
            raise HTTPException(400, f"run: expected one of {', '.join(names) or 'none yet'}, found another")

        def work(file: Path, reader: IsolatedReader, on_progress: OnProgress) -> Prediction:
            return site.students.load(name).predict(file, reader=reader, on_progress=on_progress)

        return work

    return await site.jobs.receive(request, "prediction", choose)


def _job(request: Request) -> Job:
    """The job of an address, with the name of the client's file. Raises 404."""
    site = site_of(request)
    if site.jobs is None:
        raise HTTPException(404, "this server was started without a run")
    job = site.jobs.find(request.path_params["job"], "prediction")
    if job.state == DONE and job.result.file == job.path:
        job.result = replace(job.result, file=Path(job.name))
    return job
