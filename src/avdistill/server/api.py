"""What scripts ask for of the dataset, as JSON, and the OpenAPI file that describes all such addresses."""

from importlib.resources import files

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from avdistill.server.catalog import PAGE_CLIPS
from avdistill.server.library import catalog_of, clip_of, details, filter_of, number_of, site_of

_MOST_CLIPS = 1000


async def dataset(request: Request) -> JSONResponse:
    """`GET /api/dataset`: what the dataset is, and what of it can be asked for."""
    catalog = catalog_of(request)
    found = catalog.dataset
    return JSONResponse(
        {
            "name": found.folder.resolve().name,
            "checksum": found.checksum,
            "clips": len(found),
            "splits": list(catalog.splits),
            "classes": list(found.classes),
            "fps": found.fps,
            "sample_rate_hz": found.sample_rate_hz,
            "teachers": sorted(found.teachers),
            "mismatch": None if catalog.scores is None else catalog.scores.name,
        }
    )


async def clips(request: Request) -> JSONResponse:
    """`GET /api/clips`: a page of clips."""
    catalog, size = catalog_of(request), number_of(request, "size", PAGE_CLIPS, _MOST_CLIPS)
    page = catalog.page(filter_of(request), number_of(request, "page", 1, 10**9), size)
    counts = {"page": page.number, "pages": page.pages, "total": page.total}
    return JSONResponse(counts | {"clips": catalog.describe(page.clips)})


async def clip(request: Request) -> JSONResponse:
    """`GET /api/clips/ID`: one clip, with what teachers and students say of it, and its neighbors."""
    site, row = site_of(request), clip_of(request)
    catalog = catalog_of(request)
    said = await run_in_threadpool(details, site, catalog, row)
    students = [{"name": each["name"], **each["prediction"]} for each in said["students"]]
    rest = {key: said[key] for key in ("facts", "teachers", "extra", "neighbors")}
    return JSONResponse(catalog.describe_one(row) | rest | {"students": students})


async def openapi(request: Request) -> Response:
    """`GET /api/openapi.json`: this interface, in OpenAPI 3.1."""
    content = files("avdistill.server").joinpath("openapi.json").read_bytes()
    return Response(content, media_type="application/json")
